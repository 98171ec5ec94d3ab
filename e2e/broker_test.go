package e2e

import (
	"testing"

	"tributary/job"
)

// TestProcesses: an undisturbed run of separate processes gives the bits that
// nodes and workers in one process give, and everything ends by itself or when
// told to.
func TestProcesses(t *testing.T) {
	t.Parallel()
	spec := smallJob(t, "name=processes", "steps=30", "servers=3", "shards=7", "workers=2")
	r := newRig(t, spec)
	r.workers()
	got := r.final()
	for _, name := range []string{"w1", "w2"} {
		r.procs[name].succeeds()
		r.procs[name].says(`job "processes" finished`, patience)
	}
	r.end()
	none(t, patience)
	same(t, got, reference(t, smallJob(t, "steps=30")))
}

// TestBrokerKilled: the broker dies by SIGKILL in the middle of training and
// comes back on the same port and store. Nobody else is touched.
func TestBrokerKilled(t *testing.T) {
	t.Parallel()
	spec := smallJob(t, "name=broker", "steps=1000000", "optimizer.schedule={kind: constant}", "workers=2", "window=1")
	r := newRig(t, spec)
	r.workers()
	for _, step := range []uint64{5, 12} {
		s := r.atStep(r.status().Step + step)
		r.broker.kill()
		r.broker.exits(patience)
		t.Logf("killed the broker, process %d, at step %d or later", r.broker.pid(), s.Step)
		r.startBroker()
		r.until("the job goes on", func(now *job.Status) bool { return now.Step > s.Step+3 })
	}
	start(t, "stop", "ps", "stop", spec.Name, "--nats", r.url).succeeds()
	end := r.until("the job stops", func(s *job.Status) bool { return s.Ended() })
	t.Logf("stopped at step %d of timeline %d", end.Step, end.Timeline)
	got := r.result(end)
	for _, name := range []string{"w1", "w2"} {
		r.procs[name].succeeds()
	}
	r.end()
	short := *spec
	short.Steps = end.Cut.Step
	same(t, got, reference(t, &short))
}
