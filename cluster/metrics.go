package cluster

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tributary/job"
	"tributary/ledger"
)

// metrics writes a job's losses, named metrics and decisions to files and
// keeps the newest values for the status. Lines of metrics.jsonl are
// {"step":…,"loss":…} and {"step":…,"<name>":…}.
type metrics struct {
	mu        sync.Mutex
	last      job.Status // guarded by mu, as everything below
	file      *os.File
	decisions *os.File
	loss, acc float64
	bytes     float64 // per step, both directions
	marks     []mark
	dir       string
}

type mark struct {
	at   time.Time
	step uint64
}

func newMetrics(rec *job.Record, pipe *job.Pipeline, dir string) *metrics {
	m := &metrics{dir: dir, bytes: 8 * float64(pipe.Layout.P) * float64(pipe.Ranks)}
	m.last.Job, m.last.State, m.last.Steps = rec.Name, "waiting", pipe.Steps
	if err := os.MkdirAll(dir, 0o755); err != nil {
		slog.Warn("metrics are not written", "err", err)
		return m
	}
	m.file = appendTo(filepath.Join(dir, "metrics.jsonl"))
	m.decisions = appendTo(filepath.Join(dir, "decisions.jsonl"))
	return m
}

func appendTo(name string) *os.File {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		slog.Warn("file is not written", "file", name, "err", err)
		return nil
	}
	return f
}

func (m *metrics) line(f *os.File, v any) {
	if f == nil {
		return
	}
	b, err := json.Marshal(v)
	if err == nil {
		_, err = f.Write(append(b, '\n'))
	}
	if err != nil {
		slog.Warn("metrics line lost", "file", f.Name(), "err", err)
	}
}

// history rewrites decisions.jsonl from what the authority holds.
func (m *metrics) history(ds []*ledger.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.decisions == nil {
		return
	}
	if err := m.decisions.Truncate(0); err != nil {
		slog.Warn("decisions not rewritten", "err", err)
	}
	for _, d := range ds {
		m.line(m.decisions, d)
	}
}

func (m *metrics) decided(d *ledger.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.line(m.decisions, d)
}

func (m *metrics) losses(step uint64, x []float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, l := range x {
		m.loss = l
		m.line(m.file, map[string]any{"step": step + uint64(i), "loss": l})
	}
}

func (m *metrics) named(step uint64, name string, x float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "accuracy" {
		m.acc = x
	}
	m.line(m.file, map[string]any{"step": step, name: x})
}

// rateOver is the time over which steps per second are averaged.
const rateOver = 2 * time.Second

func (m *metrics) status(s job.Status) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if n := len(m.marks); n == 0 || s.Step != m.marks[n-1].step {
		m.marks = append(m.marks, mark{now, s.Step})
	}
	for len(m.marks) > 2 && now.Sub(m.marks[0].at) > rateOver {
		m.marks = m.marks[1:]
	}
	a, b := m.marks[0], m.marks[len(m.marks)-1]
	if d := b.at.Sub(a.at).Seconds(); d > 0 && b.step > a.step {
		s.StepsPerSec = float64(b.step-a.step) / d
		s.MBPerSec = s.StepsPerSec * m.bytes / 1e6
	}
	s.Loss, s.Accuracy, s.Dir = m.loss, m.acc, m.dir
	m.last = s
}

func (m *metrics) snapshot() job.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}

func (m *metrics) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range []*os.File{m.file, m.decisions} {
		if f != nil {
			if err := f.Close(); err != nil {
				slog.Warn("file not closed", "err", err)
			}
		}
	}
	m.file, m.decisions = nil, nil
}
