package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"tributary/cluster"
	"tributary/internal/cli"
	"tributary/job"
)

// rig is a cluster of processes: a broker, parameter servers, a job and its
// workers.
type rig struct {
	t      *testing.T
	dir    string
	url    string
	port   string
	broker *proc
	procs  map[string]*proc // servers and workers: the newest process of a name
	link   *cli.Link        // this test's own connection
	spec   *job.Spec
	rec    *job.Record
}

// newRig starts a broker and as many servers as the job wants, and submits it.
func newRig(t *testing.T, s *job.Spec) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), port: "0", spec: s, procs: map[string]*proc{}}
	r.startBroker()
	r.link = connect(t, r.url)
	for i := range s.Servers {
		r.server(fmt.Sprintf("ps-%d", i+1))
	}
	start(t, "submit", "ps", "submit", write(t, s), "--nats", r.url).succeeds()
	auth, err := r.link.Authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.rec, err = cluster.Job(t.Context(), auth, s.Name); err != nil {
		t.Fatal(err)
	}
	return r
}

// connect connects this test to a broker until it ends.
func connect(t *testing.T, url string) *cli.Link {
	t.Helper()
	l, err := cli.Broker{NATS: url, Wait: patience}.Connect(t.Context(), "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, l.Close()) })
	return l
}

var brokerAt = regexp.MustCompile(`broker at (nats://127\.0\.0\.1:([0-9]+))\n`)

// startBroker starts the broker, the first time on a free port, then on the
// same one with the same store.
func (r *rig) startBroker() {
	r.t.Helper()
	r.broker = start(r.t, "broker", "ps", "broker", "--port", r.port, "--dir", filepath.Join(r.dir, "broker"))
	r.broker.says("broker at ", patience)
	await(r.t, patience, say("no address"), func() bool { return brokerAt.MatchString(r.broker.output()) })
	m := brokerAt.FindStringSubmatch(r.broker.output())
	r.url, r.port = m[1], m[2]
}

// server starts a parameter server, whose folder stays the same.
func (r *rig) server(name string) *proc {
	r.t.Helper()
	p := start(r.t, name, "ps", "serve", "--nats", r.url, "--name", name, "--dir", filepath.Join(r.dir, name), "--lease-ttl", "1s")
	r.procs[name] = p
	return p
}

func (r *rig) worker(name string, args ...string) *proc {
	r.t.Helper()
	p := start(r.t, name, "worker", append([]string{"run", "--nats", r.url, "--name", name, "--job", r.spec.Name}, args...)...)
	r.procs[name] = p
	return p
}

// workers starts as many workers as the job waits for: w1, w2, …
func (r *rig) workers() {
	for i := range r.spec.Workers {
		r.worker(fmt.Sprintf("w%d", i+1))
	}
}

// status asks the job's coordinator; without an answer the state is empty.
func (r *rig) status() job.Status {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Second)
	defer cancel()
	s, err := cluster.StatusOf(ctx, r.link.NATS(), r.rec)
	if err != nil {
		return job.Status{}
	}
	return s
}

// until waits for a status.
func (r *rig) until(what string, cond func(*job.Status) bool) job.Status {
	r.t.Helper()
	var s job.Status
	await(r.t, patience, func() string { return fmt.Sprintf("%s; the job: %+v", what, s) }, func() bool {
		s = r.status()
		return cond(&s)
	})
	return s
}

func (r *rig) atStep(n uint64) job.Status {
	r.t.Helper()
	return r.until(fmt.Sprintf("step %d", n), func(s *job.Status) bool { return s.Step >= n })
}

// final waits until the job has finished and reads its model with the command
// for that, and its last cut from the servers' folders.
func (r *rig) final() *final {
	r.t.Helper()
	s := r.until("the job finishes", func(s *job.Status) bool { return s.Ended() })
	if s.State != "finished" {
		r.t.Fatalf("the job ended %s: %s", s.State, s.Reason)
	}
	return r.result(s)
}

// result reads a job that stands still.
func (r *rig) result(s job.Status) *final {
	r.t.Helper()
	out := filepath.Join(r.t.TempDir(), "model.safetensors")
	start(r.t, "model", "ps", "model", r.spec.Name, "--no-eval", "-o", out, "--nats", r.url).succeeds()
	f := &final{}
	var err error
	if f.params, _, err = readSafetensors(out); err != nil {
		r.t.Fatal(err)
	}
	// A server that was restarted after the end takes the job to a new timeline
	// but writes no new cut.
	if f.cut, err = readCut(r.rec, func(owner string) string { return filepath.Join(r.dir, owner, r.spec.Name) }, s.Cut); err != nil {
		r.t.Fatal(err)
	}
	return f
}

// end stops servers and broker in good order; all must end well.
func (r *rig) end() {
	r.t.Helper()
	var all []*proc
	for name, p := range r.procs {
		if strings.HasPrefix(name, "ps-") {
			all = append(all, p)
		}
	}
	for _, p := range append(all, r.broker) {
		p.signal(syscall.SIGTERM)
		p.succeeds()
	}
}
