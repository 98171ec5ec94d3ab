package cluster

import (
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tributary/job"
	"tributary/ledger"
)

// metrics writes a job's losses, named metrics and decisions to files and
// keeps the newest values for the status. Lines of metrics.jsonl are
// {"t":…,"step":…,"<name>":…}, where t is in seconds since the coordinator
// started, step counts updates from 1 and name is loss, accuracy,
// steps_per_second or what a worker reported.
type metrics struct {
	log   *slog.Logger
	start time.Time

	mu        sync.Mutex
	last      job.Status // guarded by mu, as everything below
	file      *os.File
	decisions *os.File
	loss, acc float64
	paramSize float64 // bytes of all parameters
	ranks     int
	marks     []mark
	rated     time.Time // when a rate was last written
	dir       string
}

type mark struct {
	at   time.Time
	step uint64
}

// Files of a job's report.
const (
	MetricsFile   = "metrics.jsonl"
	DecisionsFile = "decisions.jsonl"
)

func newMetrics(pipe *job.Pipeline, dir string, log *slog.Logger) *metrics {
	m := &metrics{log: log, start: time.Now(), dir: dir, paramSize: 4 * float64(pipe.Layout.P), ranks: pipe.Ranks}
	m.last.Job, m.last.State, m.last.Steps = pipe.Spec.Name, "waiting", pipe.Steps
	if err := os.MkdirAll(dir, 0o755); err != nil {
		log.Warn("metrics are not written", "err", err)
		return m
	}
	m.file = m.open(MetricsFile, os.O_APPEND)
	m.decisions = m.open(DecisionsFile, os.O_TRUNC) // written anew from the authority
	return m
}

func (m *metrics) open(name string, how int) *os.File {
	f, err := os.OpenFile(filepath.Join(m.dir, name), os.O_CREATE|os.O_WRONLY|how, 0o644)
	if err != nil {
		m.log.Warn("file is not written", "err", err)
		return nil
	}
	return f
}

func (m *metrics) lineLocked(f *os.File, v any) {
	if f == nil {
		return
	}
	b, err := json.Marshal(v)
	if err == nil {
		_, err = f.Write(append(b, '\n'))
	}
	if err != nil {
		m.log.Warn("line lost", "file", f.Name(), "err", err)
	}
}

func (m *metrics) metricLocked(step uint64, name string, x float64) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return // JSON has no word for it, and the job halts for its own reason
	}
	t := math.Round(time.Since(m.start).Seconds()*1e3) / 1e3
	m.lineLocked(m.file, map[string]any{"t": t, "step": step, name: x})
}

func (m *metrics) decided(d *ledger.Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lineLocked(m.decisions, d)
}

// losses takes the losses of the updates step+1, step+2, …
func (m *metrics) losses(step uint64, x []float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, l := range x {
		m.loss = l
		m.metricLocked(step+1+uint64(i), "loss", l)
	}
}

func (m *metrics) named(step uint64, name string, x float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == "accuracy" {
		m.acc = x
	}
	m.metricLocked(step, name, x)
}

// Steps per second are averaged over rateOver and written every rateEvery.
const (
	rateOver  = 2 * time.Second
	rateEvery = time.Second
)

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
		// Every rank's gradient goes up, every worker's parameters come down.
		s.MBPerSec = s.StepsPerSec * m.paramSize * float64(m.ranks+s.Live()) / 1e6
		if now.Sub(m.rated) > rateEvery {
			m.rated = now
			m.metricLocked(s.Step, "steps_per_second", s.StepsPerSec)
		}
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
				m.log.Warn("file not closed", "err", err)
			}
		}
	}
	m.file, m.decisions = nil, nil
}
