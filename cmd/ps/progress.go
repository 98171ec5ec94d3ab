package main

import (
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"tributary/job"
)

// progress shows a run on the terminal: a bar, or plain lines when standard
// output is not one.
type progress struct {
	bar      *progressbar.ProgressBar // nil: plain lines
	fancy    bool
	lastLine time.Time
	lastStep uint64
	waits    string
}

// A plain line comes every lineEvery while the job moves, and again when it
// waits for somebody.
const lineEvery = 2 * time.Second

func newProgress(plain bool) *progress {
	return &progress{fancy: !plain && term.IsTerminal(int(os.Stdout.Fd()))}
}

// say writes a line of its own.
func (p *progress) say(format string, args ...any) {
	if p.bar != nil {
		p.bar.Clear() // the library's errors are those of the terminal
	}
	fmt.Printf(format+"\n", args...)
}

// wait says, once, what is being waited for.
func (p *progress) wait(text string) {
	if text != p.waits {
		p.waits = text
		p.say("%s", text)
	}
}

func (p *progress) status(s *job.Status) {
	if s.WaitingFor != "" && s.Since > 1 {
		p.wait("waiting for " + s.WaitingFor)
	} else if s.WaitingFor == "" {
		p.waits = ""
	}
	if s.Timeline == 0 {
		return
	}
	if p.fancy {
		p.draw(s)
		return
	}
	if s.Step != p.lastStep && time.Since(p.lastLine) >= lineEvery {
		p.line(s)
	}
}

func (p *progress) line(s *job.Status) {
	p.lastLine, p.lastStep = time.Now(), s.Step
	fmt.Printf("step %d/%d  %s\n", s.Step, s.Steps, figures(s))
}

func figures(s *job.Status) string {
	return fmt.Sprintf("%s  %.1f steps/s  %.1f MB/s", measured(s, "  "), s.StepsPerSec, s.MBPerSec)
}

// measured gives loss and accuracy, as far as they are known.
func measured(s *job.Status, between string) string {
	loss, accuracy := "not known yet", "not measured yet"
	if s.Loss != 0 {
		loss = fmt.Sprintf("%.4f", s.Loss)
	}
	if s.Accuracy > 0 {
		accuracy = fmt.Sprintf("%.2f %%", 100*s.Accuracy)
	}
	return "loss " + loss + between + "accuracy " + accuracy
}

func (p *progress) draw(s *job.Status) {
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(int64(s.Steps), progressbar.OptionSetWriter(os.Stdout), progressbar.OptionShowCount(), progressbar.OptionSetWidth(24),
			progressbar.OptionThrottle(50*time.Millisecond), progressbar.OptionSetPredictTime(true), progressbar.OptionSetElapsedTime(false), progressbar.OptionClearOnFinish())
	}
	p.bar.Describe(figures(s))
	if err := p.bar.Set64(int64(s.Step)); err != nil {
		p.fancy = false // the terminal is gone: lines will do
	}
}

// done shows the last state.
func (p *progress) done(s *job.Status) {
	if p.bar != nil {
		p.bar.Clear()
	}
	p.line(s)
	p.bar = nil
}
