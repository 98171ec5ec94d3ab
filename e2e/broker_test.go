package e2e

import (
	"testing"

	"tributary/cluster"
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

// TestReductions: in a cluster of processes rules run their passes over the
// shards. Rows of the network's first matrix lie in three shards each, which
// are cut inside of them; the shards count how often they exchanged sums.
func TestReductions(t *testing.T) {
	t.Parallel()
	for rule, each := range map[string]uint64{"lamb": 1, "adamp": 1, "adafactor": 2, "muon": 1, "sam": 2} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			sets := []string{"chunk=24", "servers=2", "workers=2", "steps=6", "model={kind: mlp, hidden: [8]}", "checkpoint.every=0"}
			spec := ruleJob(t, rule, append(sets, "shards=25")...)
			r := newRig(t, spec)
			pipe, err := job.Compile(r.rec)
			if err != nil {
				t.Fatal(err)
			}
			row, rows := pipe.Layout.Tensors[0].RowLen(), 0
			for lo := 0; lo < pipe.Layout.Tensors[0].Len; lo += row {
				if shardOf(pipe, lo+row-1)-shardOf(pipe, lo) >= 2 {
					rows++
				}
			}
			if rows == 0 {
				t.Fatalf("no row of %d parameters lies in three of %d shards", row, pipe.Shards)
			}
			r.workers()
			got := r.final()
			all, err := cluster.StatsOf(t.Context(), r.link.NATS(), r.rec)
			if err != nil {
				t.Fatal(err)
			}
			if len(all) != pipe.Shards {
				t.Errorf("%d shards answer, want %d", len(all), pipe.Shards)
			}
			for _, s := range all {
				if s.Reductions != each*spec.Steps {
					t.Errorf("shard %d ran %d reductions in %d updates, want %d", s.Shard, s.Reductions, spec.Steps, each*spec.Steps)
				}
			}
			r.end()
			same(t, got, reference(t, ruleJob(t, rule, append(sets, "shards=1", "servers=1")...)))
		})
	}
}

// shardOf is the shard that holds a parameter.
func shardOf(p *job.Pipeline, parameter int) int {
	for k, r := range p.Layout.Shards(p.Shards) {
		if parameter/p.Layout.ChunkLen < r.Hi {
			return k
		}
	}
	return -1
}
