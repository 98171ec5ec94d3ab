package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	pollEvery = 10 * time.Millisecond
	// patience is the longest wait for anything that must happen: generous,
	// because the machine may be busy with other things.
	patience = 90 * time.Second
)

// await polls until cond holds; what describes the state at the end.
func await(t *testing.T, within time.Duration, what func() string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for end := time.Now().Add(within); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", within, what())
		}
	}
}

func say(s string) func() string { return func() string { return s } }

// proc is a process of one of our commands. Its output goes to a file.
type proc struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	out   string
	begun time.Time
	ended chan struct{} // closed once it has been waited for
}

// start runs a command, such as "ps" "broker", until it ends or the test does.
// A failed test shows the end of its output.
func start(t *testing.T, name, bin string, args ...string) *proc {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), name+"-*.out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // the child has its own
	p := &proc{t: t, name: name, out: f.Name(), ended: make(chan struct{})}
	p.cmd = exec.Command(filepath.Join(binDir, bin), args...)
	p.cmd.Dir = filepath.Dir(f.Name())
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.Env = environment(t)
	p.cmd.SysProcAttr = ownGroup()
	p.begun = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // until the process ends, which the cleanup waits for
		p.cmd.Wait() // the exit code is asked for later
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		<-p.ended
		if t.Failed() {
			t.Logf("output of %s (%s %s):\n%s", name, bin, strings.Join(args, " "), tail(p.output()))
		}
	})
	return p
}

// marker is the variable by which the processes of a test are found, those
// that they started included.
const marker = "E2E_TEST"

// environment is ours without the variables that set flags.
func environment(t *testing.T) []string {
	env := []string{marker + "=" + t.Name()}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "PS_") {
			env = append(env, e)
		}
	}
	return env
}

func tail(s string) string {
	const most = 6000
	if len(s) > most {
		return "… " + s[len(s)-most:]
	}
	return s
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

// kill sends SIGKILL to the process and what it started in its group.
func (p *proc) kill() {
	if p.alive() {
		syscall.Kill(-p.pid(), syscall.SIGKILL) // it may have ended just now
	}
}

func (p *proc) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// signal sends a signal to the process alone.
func (p *proc) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatal(err)
	}
}

func (p *proc) output() string {
	b, err := os.ReadFile(p.out)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// says waits until the output contains text, which must be before the process
// ends, and returns how long that took since it was started.
func (p *proc) says(text string, within time.Duration) time.Duration {
	p.t.Helper()
	await(p.t, within, func() string { return p.name + " does not say " + strconv.Quote(text) + ":\n" + tail(p.output()) },
		func() bool {
			over := !p.alive() // asked first: what it said last is in the file by then
			if strings.Contains(p.output(), text) {
				return true
			}
			if over {
				p.t.Fatalf("%s ended without saying %q:\n%s", p.name, text, tail(p.output()))
			}
			return false
		})
	return time.Since(p.begun)
}

// exits waits until the process has ended and returns its exit code (−1 if a
// signal ended it) and how long it ran.
func (p *proc) exits(within time.Duration) (int, time.Duration) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		p.t.Fatalf("%s does not end within %v:\n%s", p.name, within, tail(p.output()))
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(p.begun)
}

// succeeds waits until the process has ended well and returns its output.
func (p *proc) succeeds() string {
	p.t.Helper()
	if code, _ := p.exits(patience); code != 0 {
		p.t.Fatalf("%s: exit code %d, want 0:\n%s", p.name, code, tail(p.output()))
	}
	return p.output()
}

// found is a process of this test run, whoever started it.
type found struct {
	pid  int
	line string // its command line
}

// processes lists the live processes that run one of our commands, all or
// those that the test of a name started, directly or not. Where there is no
// /proc it finds none.
func processes(test string) []found {
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var all []found
	for _, dir := range names {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !strings.HasPrefix(exe, binDir) {
			continue // gone, a zombie, or not ours
		}
		if env, err := os.ReadFile(filepath.Join(dir, "environ")); test != "" && (err != nil || !strings.Contains("\x00"+string(env), "\x00"+marker+"="+test+"\x00")) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		all = append(all, found{pid, strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")})
	}
	return all
}

// none waits until nothing that the test started runs any more.
func none(t *testing.T, within time.Duration) {
	t.Helper()
	var left []found
	await(t, within, func() string { return "these processes still run: " + lines(left) }, func() bool {
		left = processes(t.Name())
		return len(left) == 0
	})
}

func lines(ps []found) string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString("\n" + strconv.Itoa(p.pid) + " " + p.line)
	}
	return b.String()
}
