package e2e

import (
	"net"
	"testing"
	"time"

	"tributary/job"
)

// soon is how long a command may be silent about what it waits for.
const soon = 2 * time.Second

// nobody is an address where nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed(t, l.Close())
	return "nats://" + l.Addr().String()
}

// givesUp checks that a command soon says what it waits for, and gives up when
// its time is over. Tests that call it are not parallel to those that keep the
// machine busy, which is not what is measured.
func givesUp(t *testing.T, p *proc, text string, after time.Duration) {
	t.Helper()
	if took := p.says(text, patience); took > soon {
		t.Errorf("%s says %q after %v, want %v at most", p.name, text, took, soon)
	}
	code, took := p.exits(after + patience)
	if code != 1 {
		t.Errorf("%s: exit code %d, want 1:\n%s", p.name, code, p.output())
	}
	// The process must start and connect before its time begins.
	if took < after || took > after+2*soon {
		t.Errorf("%s gives up after %v, want about %v", p.name, took, after)
	}
}

// TestNoBroker: without a broker every command says so and gives up.
func TestNoBroker(t *testing.T) {
	url := nobody(t)
	const wait = 2500 * time.Millisecond
	for _, c := range []struct {
		name, bin string
		args      []string
	}{
		{"serve", "ps", []string{"serve", "--name", "ps-1"}},
		{"submit", "ps", []string{"submit"}},
		{"status", "ps", []string{"status", "digits"}},
		{"worker", "worker", []string{"run", "--job", "digits", "--name", "w1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, c.name, c.bin, append(c.args, "--nats", url, "--wait", wait.String())...)
			givesUp(t, p, "waiting for a broker at "+url, wait)
			p.says("giving up after 2.5s", patience)
			p.says("no broker at "+url, patience)
		})
	}
}

// TestNoServer: a submission waits for parameter servers, a worker for its
// job's coordinator.
func TestNoServer(t *testing.T) {
	r := &rig{t: t, dir: t.TempDir(), port: "0"}
	r.startBroker()
	const wait = 2500 * time.Millisecond
	t.Run("submit", func(t *testing.T) {
		t.Parallel()
		p := start(t, "submit", "ps", "submit", "--nats", r.url, "--for-servers", wait.String())
		givesUp(t, p, "waiting: submit \"digits\": too few parameter servers: it wants 3, 0 are alive", wait)
	})
	t.Run("worker", func(t *testing.T) {
		t.Parallel()
		p := start(t, "worker", "worker", "run", "--job", "nosuch", "--name", "w1", "--nats", r.url, "--wait", wait.String())
		givesUp(t, p, `waiting for the coordinator of job "nosuch": nobody answers; was the job submitted?`, wait)
		p.says("gave up after 2.5s", patience)
	})
}

// TestServersGone: a worker of a job whose servers have died.
func TestServersGone(t *testing.T) {
	spec := smallJob(t, "name=gone", "steps=1000000", "servers=1", "workers=1")
	r := newRig(t, spec)
	const wait = 2500 * time.Millisecond
	w := r.worker("w1", "--patience", wait.String())
	at := r.atStep(3)
	r.procs["ps-1"].kill()
	killed := time.Now()
	w.says("waiting for shard ", patience)
	if took := time.Since(killed); took > soon {
		t.Errorf("the worker says it after %v, want %v at most", took, soon)
	}
	if code, _ := w.exits(patience); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	w.says("gave up after 2.5s", patience)
	t.Logf("killed at step %d or later", at.Step)
	s := start(t, "status", "ps", "status", "gone", "--nats", r.url)
	s.succeeds()
	s.says("coordinator on node ps-1", patience)
}

// TestTooFewWorkers: the job, its worker and its status say who is missing.
// After its time the job starts with those that are there.
func TestTooFewWorkers(t *testing.T) {
	spec := smallJob(t, "name=few", "workers=2", "steps=10", "servers=1", "timeouts.start=6s")
	r := newRig(t, spec)
	const wait = 2500 * time.Millisecond
	w := r.worker("w1", "--patience", wait.String())
	givesUp(t, w, `waiting for job "few" to start: too few workers`, wait)
	r.until("the worker has left", func(s *job.Status) bool { return s.Live() == 0 })
	s := start(t, "status", "ps", "status", "few", "--nats", r.url)
	s.succeeds()
	s.says("workers: 0 of 2 have joined", patience)
	r.worker("w2").succeeds()
	if s := r.status(); s.State != "finished" {
		t.Errorf("the job is %s, want finished with one worker", s.State)
	}
}

// TestNoWorkers: a job for which no worker comes halts and says why.
func TestNoWorkers(t *testing.T) {
	t.Parallel()
	r := newRig(t, smallJob(t, "name=none", "timeouts.start=1s"))
	p := start(t, "status", "ps", "status", "none", "--nats", r.url)
	p.succeeds()
	if s := r.until("the job halts", func(s *job.Status) bool { return s.Ended() }); s.State != "halted" || s.Reason != "no worker came within 1s" {
		t.Errorf("the job is %s: %s", s.State, s.Reason)
	}
}
