package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"tributary/comm/wire"
	"tributary/job"
	"tributary/layout"
)

// The moments at which a process is killed.
type moment int

const (
	midPush  moment = iota // a worker, between two chunks of one push
	lastPush               // a worker, when its push is on the way as a whole
	pulling                // a worker, while new parameters arrive
	serving                // a server, when a chunk is on the way to it
)

// What happens after a worker's death.
const (
	again    = "restarted with the same name, once it is free"
	replaced = "restarted with the same name, which it takes over"
	gone     = "left dead: its ranks move"
	fresh    = "another worker joins"
	restart  = "restarted on its folder: a new timeline from the last cut"
)

// A killing is what happened at one moment.
type killing struct {
	moment moment
	push   pushID // the one that was under way, if a worker was killed
	pid    int
	seen   string
}

// TestKill sends SIGKILL to workers and servers at 20 seeded moments of three
// runs. The parameters and slots must be those of an undisturbed run that is as
// long. The runs are stopped, not finished: how far they got by the last
// killing is a matter of luck, and the learning rate is constant.
func TestKill(t *testing.T) {
	t.Parallel()
	var incomplete atomic.Int64
	plans := []killPlan{
		{"workers come back", "", []moment{midPush, lastPush, midPush, pulling, midPush, midPush, pulling}, []string{again, replaced}},
		{"others take over", "", []moment{midPush, pulling, midPush, lastPush, midPush, midPush, lastPush}, []string{again, gone, fresh}},
		{"servers and workers", "", []moment{serving, midPush, serving, midPush, serving, pulling, serving}, []string{replaced, gone, fresh}},
		{"two pushes per update", "sam", []moment{midPush, lastPush, serving, midPush, pulling, midPush}, []string{again, gone, fresh}},
	}
	seeds := 1
	if os.Getenv("TRIBUTARY_LONG") == "1" {
		seeds = 5
	}
	t.Run("runs", func(t *testing.T) {
		for i := range seeds * len(plans) {
			p, seed := plans[i%len(plans)], uint64(i+1)
			t.Run(fmt.Sprintf("%s, seed %d", p.name, seed), func(t *testing.T) {
				t.Parallel()
				incomplete.Add(int64(p.run(t, seed)))
			})
		}
	})
	if n := incomplete.Load(); n < int64(3*seeds) {
		t.Errorf("%d killed workers left a push incomplete, want %d or more: the moments are not those that they should be", n, 3*seeds)
	}
}

type killPlan struct {
	name    string
	rule    string // "": the small job's
	moments []moment
	then    []string
}

// run kills along the plan, compares, and returns how many pushes were left
// incomplete between two of their chunks.
func (p *killPlan) run(t *testing.T, seed uint64) int {
	rng := rand.New(rand.NewPCG(seed, 0))
	spec := smallJob(t, "name=kill", "steps=1000000", "optimizer.schedule={kind: constant}", "window=1", "chunk=48", "shards=2", "workers=3", "batch=4")
	if p.rule != "" {
		spec = ruleJob(t, p.rule, "name=kill", "steps=1000000", "optimizer.schedule={kind: constant}", "window=1", "chunk=48", "shards=2", "workers=3", "batch=4")
	}
	r := newRig(t, spec)
	s := newSpy(t, r.url, spec.Name)
	r.workers()
	pipe, err := job.Compile(r.rec)
	if err != nil {
		t.Fatal(err)
	}
	k := &killer{rig: r, spy: s, rng: rng, ranges: pipe.Layout.Shards(pipe.Shards)}
	for i, m := range p.moments {
		then := restart
		if m != serving {
			then = p.then[rng.IntN(len(p.then))]
		}
		k.kill(m, then)
		t.Logf("seed %d, moment %d: killed process %d, %s; %s", seed, i+1, k.last().pid, k.last().seen, then)
	}
	k.goesOn()
	start(t, "stop", "ps", "stop", spec.Name, "--nats", r.url).succeeds()
	end := r.until("the job stops", func(s *job.Status) bool { return s.Ended() })
	t.Logf("stopped at step %d of timeline %d", end.Step, end.Timeline)
	got := r.result(end)
	r.end()
	short := *spec
	short.Steps = end.Checkpoint
	same(t, got, reference(t, &short))
	return k.report(t, pipe.Layout.Chunks())
}

type killer struct {
	*rig
	spy    *spy
	rng    *rand.Rand
	ranges []layout.Range
	all    []killing
}

func (k *killer) last() *killing { return &k.all[len(k.all)-1] }

// goesOn waits until the job has made some steps since the last killing.
func (k *killer) goesOn() job.Status {
	k.t.Helper()
	from := k.until("the coordinator answers", func(s *job.Status) bool { return s.State == "running" })
	return k.until("the job goes on", func(s *job.Status) bool {
		return s.State == "running" && (s.Step > from.Step || s.Timeline > from.Timeline && s.Step > s.Cut.Step)
	})
}

// kill waits for the moment, kills, and does what comes then.
func (k *killer) kill(m moment, then string) {
	k.t.Helper()
	at := k.goesOn()
	after, rank := at.Step+2+k.rng.Uint64N(5), uint32(k.rng.IntN(k.spec.Ranks))
	rg := k.ranges[k.rng.IntN(len(k.ranges))]
	chunk := uint32(rg.Lo + k.rng.IntN(rg.Len()/2)) // with a window of one chunk, the others follow one by one
	if m == lastPush {
		chunk = uint32(k.ranges[len(k.ranges)-1].Hi - 1)
	}
	victims := maps.Clone(k.procs) // the trap springs on another goroutine
	died := make(chan *proc, 1)
	var done killing
	k.spy.set(func(h *wire.Header) bool {
		if h.Step < after || h.Chunk != chunk || h.Kind != wire.Params && h.Rank != rank {
			return false
		}
		var victim *proc
		switch {
		case m == serving && h.Kind == wire.Push:
			victim = victims[k.rec.Owners[h.Shard]]
		case m == pulling && h.Kind == wire.Params:
			victim = victims[k.spy.holder[rank]]
		case (m == midPush || m == lastPush) && h.Kind == wire.Push && h.Incarnation > k.spy.floor[h.Worker]:
			victim = victims[h.Worker]
			done.push = pushID{h.Worker, h.Incarnation, h.Timeline, h.Step, h.Rank}
		}
		if victim == nil || !victim.alive() {
			return false
		}
		syscall.Kill(victim.pid(), syscall.SIGKILL)
		done.moment, done.pid = m, victim.pid()
		done.seen = fmt.Sprintf("%s, at step %d, when %s was seen", victim.name, h.Step, describe(h))
		died <- victim
		return true
	})
	var victim *proc
	await(k.t, patience, func() string { return fmt.Sprintf("moment %d of step %d or later; the job: %+v", m, after, k.status()) }, func() bool {
		select {
		case victim = <-died:
			return true
		default:
			return false
		}
	})
	victim.exits(patience)
	k.all = append(k.all, done)
	delete(k.procs, victim.name)
	k.spy.bury(victim.name)
	switch then {
	case again:
		k.worker(victim.name)
	case replaced:
		k.worker(victim.name, "--replace")
	case fresh:
		k.worker(fmt.Sprintf("fresh-%d", len(k.all)))
	case restart:
		k.server(victim.name)
	case gone:
		if k.workersAlive() == 0 {
			k.worker(fmt.Sprintf("fresh-%d", len(k.all)))
		}
	}
}

func (k *killer) workersAlive() int {
	n := 0
	for _, name := range slices.Collect(maps.Keys(k.procs)) {
		if !strings.HasPrefix(name, "ps-") && k.procs[name].alive() {
			n++
		}
	}
	return n
}

func describe(h *wire.Header) string {
	if h.Kind == wire.Params {
		return fmt.Sprintf("chunk %d of version %d", h.Chunk, h.Step)
	}
	return fmt.Sprintf("chunk %d of rank %d on its way from %s to shard %d", h.Chunk, h.Rank, h.Worker, h.Shard)
}

// report says, now that all has been seen, how much of the killed workers'
// pushes there was, and returns how many were cut off between two chunks.
func (k *killer) report(t *testing.T, chunks int) int {
	n := 0
	for _, x := range k.all {
		if x.moment != midPush && x.moment != lastPush {
			continue
		}
		got := k.spy.chunks(x.push)
		t.Logf("process %d had sent %d of %d chunks of rank %d, step %d", x.pid, got, chunks, x.push.rank, x.push.step)
		if got > 0 && got < chunks {
			n++
		}
	}
	return n
}
