package e2e

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tributary/cluster"
	"tributary/comm"
	"tributary/comm/wire"
	"tributary/job"
)

// TestHostileBytes: what anybody publishes on a running job's subjects that is
// not a message of the protocol, or is one that was damaged, changes nothing;
// the nodes count it.
func TestHostileBytes(t *testing.T) {
	t.Parallel()
	spec := smallJob(t, "name=hostile", "steps=1000000", "optimizer.schedule={kind: constant}", "workers=2")
	r := newRig(t, spec)
	s := newSpy(t, r.url, spec.Name)
	r.workers()
	r.atStep(3)
	rng := rand.New(rand.NewPCG(1, 0))
	subjects := []string{comm.PeerSubject(spec.Name), comm.NewsSubject(spec.Name), comm.ParamsSubject(spec.Name),
		comm.WorkerSubject(spec.Name, "w1"), comm.CoordSubject(spec.Name, "w1"), comm.CoordSubject(spec.Name, "stranger")}
	for k := range spec.Shards {
		subjects = append(subjects, comm.ShardSubject(spec.Name, k, "w1"), comm.ShardSubject(spec.Name, k, "stranger"))
	}
	for _, what := range []string{"status", "stop", "resume", "health"} {
		subjects = append(subjects, "tb.ctl."+r.rec.Coordinator+"."+what)
	}
	nc := r.link.NATS()
	const frames = 2000
	for range frames {
		if err := nc.Publish(subjects[rng.IntN(len(subjects))], s.hostile(rng)); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	r.until("the job goes on", func() func(*job.Status) bool {
		from := r.status().Step
		return func(now *job.Status) bool { return now.Step > from+5 }
	}())
	var malformed, dropped uint64
	for _, node := range []string{"ps-1", "ps-2"} {
		h := health(t, r, node)
		malformed += h.Malformed
		dropped += h.Dropped
	}
	t.Logf("%d malformed frames counted of %d sent", malformed, frames)
	if malformed < frames/10 || dropped != 0 {
		t.Errorf("%d malformed and %d dropped frames counted, want %d or more and none", malformed, dropped, frames/10)
	}
	start(t, "stop", "ps", "stop", spec.Name, "--nats", r.url).succeeds()
	end := r.until("the job stops", func(s *job.Status) bool { return s.Ended() })
	if end.State != "stopped" || end.Timeline != 1 {
		t.Errorf("the job is %s in timeline %d (%s), want stopped in 1", end.State, end.Timeline, end.Reason)
	}
	got := r.result(end)
	for _, name := range []string{"w1", "w2"} {
		r.procs[name].succeeds()
	}
	r.end()
	short := *spec
	short.Steps = end.Cut.Step
	same(t, got, reference(t, &short))
}

func health(t *testing.T, r *rig, node string) cluster.Health {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var h cluster.Health
	if err := cluster.Ask(ctx, r.link.NATS(), node, "health", nil, &h); err != nil {
		t.Fatal(err)
	}
	return h
}

// hostile makes a frame that is no good: noise, noise that begins as a frame
// does, a real frame cut off, or a real frame whose tensor was damaged. Headers
// are not damaged in ways that leave a sound message: who may write those can
// lie as well, which is for permissions to prevent.
func (s *spy) hostile(rng *rand.Rand) []byte {
	s.mu.Lock()
	real := slices.Clone(s.frames[rng.IntN(len(s.frames))])
	s.mu.Unlock()
	noise := make([]byte, rng.IntN(4096))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	switch rng.IntN(4) {
	case 0:
		return noise
	case 1:
		return append(real[:8:8], noise...)
	case 2:
		return real[:rng.IntN(len(real))]
	default:
		m, err := wire.Decode(real, nil)
		if err != nil || len(m.Tail) == 0 {
			return noise
		}
		m.Tail[rng.IntN(len(m.Tail))] ^= byte(1 + rng.IntN(255)) // a view of real
		return real
	}
}
