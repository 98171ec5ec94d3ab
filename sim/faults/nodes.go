package faults

import (
	"errors"
	"fmt"
	"time"

	"tributary/checkpoint"
	"tributary/client"
	"tributary/cluster/place"
	"tributary/comm/wire"
	"tributary/job"
	"tributary/layout"
	"tributary/ledger"
	"tributary/shard"
)

const (
	jobName    = "sim"
	serverTick = 50 * time.Millisecond
	workerTick = 30 * time.Millisecond
)

// authority is the compare-and-set store: decisions by number, and a counter
// that every change advances, from which epochs and incarnations come.
type authority struct {
	revision  uint64
	decisions []*ledger.Decision
}

// server is one parameter-server process: it owns shards and, if placement
// says so, the coordinator.
type server struct {
	w      *world
	id     int
	gen    int // process generation; what an older one started is void
	up     bool
	skew   time.Duration
	shards map[int]*shard.Shard
	audit  map[int]uint64 // next log entry to audit
	coord  *job.Coord
}

func (s *server) name() string { return fmt.Sprintf("ps-%d", s.id+1) }

func (s *server) clock() time.Duration { return s.w.now + s.skew }

func (w *world) serverNames() []string {
	var names []string
	for i := range w.plan.Servers {
		names = append(names, fmt.Sprintf("ps-%d", i+1))
	}
	return names
}

func (w *world) ownerOf(shardID int) *server {
	owner := place.Shards(jobName, w.plan.Shards, w.serverNames(), nil)[shardID]
	for _, s := range w.servers {
		if s.name() == owner {
			return s
		}
	}
	return nil
}

func (w *world) coordServer() *server {
	first := place.Ranked(jobName, 1<<32, w.serverNames())[0]
	for _, s := range w.servers {
		if s.name() == first {
			return s
		}
	}
	return nil
}

// start brings the process up: it takes a new epoch for each of its shards
// from the authority and reads the decisions so far.
func (s *server) start() {
	w := s.w
	s.gen++
	s.up = true
	s.skew = time.Duration(w.intn(1e6)) * time.Millisecond
	s.shards, s.audit = map[int]*shard.Shard{}, map[int]uint64{}
	w.log("start "+s.name(), uint64(s.gen))
	rule, agg, lr, err := w.plan.rule()
	if err != nil {
		w.fail("plan: %v", err)
		return
	}
	for k, r := range w.layout.Shards(w.plan.Shards) {
		if w.ownerOf(k) != s {
			continue
		}
		w.auth.revision++
		s.shards[k] = shard.New(shard.Config{Job: jobName, ID: k, Shards: w.plan.Shards, Layout: w.layout, Chunks: r, Rule: rule, Agg: agg, LR: lr,
			Ranks: w.plan.Ranks, Staleness: w.plan.Staleness, Mode: w.plan.Mode, Steps: w.plan.Steps, CutEvery: w.plan.CutEvery,
			RankState: w.plan.RankState, Window: w.plan.Window, Broadcast: w.plan.Broadcast, Seed: w.plan.Seed, Epoch: w.auth.revision})
	}
	if w.coordServer() == s {
		w.auth.revision++
		cfg := job.CoordConfig{Job: jobName, Ranks: w.plan.Ranks, Workers: w.plan.Workers, Shards: w.plan.Shards, Steps: w.plan.Steps,
			Mode: w.plan.Mode, OnLoss: w.plan.OnLoss, WorkerTimeout: 2 * time.Second, Spec: []byte("{}"), Nonce: w.auth.revision}
		s.coord = job.NewCoord(cfg, append([]*ledger.Decision(nil), w.auth.decisions...), s.clock())
	}
	s.tick(s.gen)
}

func (s *server) crash(down time.Duration) {
	w := s.w
	w.counts.ServerCrashes++
	w.log("crash " + s.name())
	s.up, s.coord, s.shards = false, nil, nil
	w.after(down, s.start)
}

func (s *server) tick(gen int) {
	if !s.up || s.gen != gen {
		return
	}
	for k := range s.w.plan.Shards {
		if sh := s.shards[k]; sh != nil {
			s.do(k, sh.Tick(s.clock()))
		}
	}
	if s.coord != nil {
		s.doCoord(s.coord.Tick(s.clock()))
	}
	s.w.after(serverTick, func() { s.tick(gen) })
}

// do performs a shard's outputs.
func (s *server) do(k int, outs []shard.Out) {
	w, gen := s.w, s.gen
	sh := s.shards[k]
	s.check(k, sh, outs)
	for _, o := range outs {
		switch o.Kind {
		case shard.ToWorker:
			w.toWorker(s.name(), o.Worker, &o.H, o.Tail)
		case shard.ToWorkers:
			for _, x := range w.workers {
				w.toWorker(s.name(), x.name(), &o.H, o.Tail)
			}
		case shard.ToCoord:
			w.toCoord(s.name(), &o.H, o.Tail)
		case shard.ToPeers:
			for other := range w.plan.Shards {
				if other != k {
					w.toShard(s.name(), other, &o.H, o.Tail)
				}
			}
		case shard.SaveCut:
			file := checkpoint.Encode(o.Sections)
			id := o.Cut
			w.after(w.between(time.Millisecond, 200*time.Millisecond), func() {
				if s.up && s.gen == gen { // else the write was torn and never renamed into place
					w.disk[cutFile{k, id}] = file
					s.do(k, sh.CutSaved(id, s.clock()))
				}
			})
		case shard.LoadCut:
			id := o.Cut
			w.after(w.between(time.Millisecond, 50*time.Millisecond), func() {
				if !s.up || s.gen != gen {
					return
				}
				parts, err := checkpoint.Decode(w.disk[cutFile{k, id}])
				if err != nil {
					s.do(k, sh.CutFailed(id, true, err))
					return
				}
				s.do(k, sh.CutLoaded(id, parts, s.clock()))
			})
		}
	}
}

// check audits what a shard just did: nothing is acknowledged as applied
// before it is, and only contributions of the present timeline, one of every
// rank, are counted.
func (s *server) check(k int, sh *shard.Shard, outs []shard.Out) {
	w := s.w
	for _, o := range outs {
		if o.Kind == shard.ToWorker && o.H.Kind == wire.Ack && o.H.Code == wire.OK && o.H.Level == wire.LevelApplied && !sh.Applied(int(o.H.Rank), int(o.H.Chunk), o.H.Step) {
			w.fail("shard %d acknowledged rank %d, step %d, chunk %d as applied before applying it", k, o.H.Rank, o.H.Step, o.H.Chunk)
		}
	}
	for _, e := range sh.LogSince(s.audit[k]) {
		s.audit[k] = e.N + 1
		w.log("close", uint64(k), uint64(e.Chunk), e.Step, e.Timeline)
		if len(e.Inputs) != w.plan.Ranks {
			w.fail("shard %d closed step %d of chunk %d with %d of %d ranks", k, e.Step, e.Chunk, len(e.Inputs), w.plan.Ranks)
		}
		for _, in := range e.Inputs {
			if in.Timeline != e.Timeline {
				w.fail("shard %d counted a contribution of timeline %d in timeline %d (rank %d, step %d)", k, in.Timeline, e.Timeline, in.Rank, e.Step)
			}
		}
	}
}

func (s *server) doCoord(outs []job.Out) {
	w, gen := s.w, s.gen
	for _, o := range outs {
		switch o.Kind {
		case job.ToWorker:
			w.toWorker(s.name(), o.Worker, &o.H, o.Tail)
		case job.ToShard:
			w.toShard(s.name(), o.Shard, &o.H, o.Tail)
		case job.ToAll:
			for k := range w.plan.Shards {
				w.toShard(s.name(), k, &o.H, o.Tail)
			}
			for _, x := range w.workers {
				w.toWorker(s.name(), x.name(), &o.H, o.Tail)
			}
		case job.Propose:
			d := *o.Decision
			w.after(w.between(time.Millisecond, 30*time.Millisecond), func() { s.propose(gen, &d) })
		case job.Enlist:
			w.after(w.between(time.Millisecond, 30*time.Millisecond), func() {
				w.auth.revision++
				rev := w.auth.revision
				if !w.quiet() && w.chance(w.plan.Faults.AuthFail) {
					rev = 0
				}
				if s.up && s.gen == gen {
					s.doCoord(s.coord.Enlisted(o.Worker, o.Nonce, rev, s.clock()))
				}
			})
		case job.Note:
			if w.trace != nil {
				fmt.Fprintf(w.trace, "%12v  note: %s\n", w.now, o.Text)
			}
		}
	}
}

// propose creates a decision under its number unless somebody already did. A
// time-out leaves it open whether it worked; the driver reads again.
func (s *server) propose(gen int, d *ledger.Decision) {
	w := s.w
	fails := !w.quiet() && w.chance(w.plan.Faults.AuthFail)
	if fails && w.chance(0.5) {
		s.decided(gen, nil) // never arrived
		return
	}
	if d.N == uint64(len(w.auth.decisions))+1 {
		w.auth.revision++
		w.auth.decisions = append(w.auth.decisions, d)
		w.log("decide "+string(d.Kind), d.N, d.Timeline, d.Step, d.View)
		if d.Kind == ledger.Begin {
			w.counts.Timelines++
		}
	}
	if fails { // it worked but the answer was lost: reading again finds it later
		w.after(time.Second, func() { s.decided(gen, w.auth.decisions[d.N-1]) })
		return
	}
	s.decided(gen, w.auth.decisions[d.N-1])
}

func (s *server) decided(gen int, d *ledger.Decision) {
	if s.up && s.gen == gen {
		s.doCoord(s.coord.Decided(d, s.clock()))
	}
}

func (w *world) toWorker(from, name string, h *wire.Header, tail []byte) {
	for _, x := range w.workers {
		if x.name() == name {
			w.send(from, name, h, tail, func(m *wire.Message) {
				if x.up {
					x.do(x.session.Handle(m, x.clock()))
				}
			})
		}
	}
}

func (w *world) toShard(from string, k int, h *wire.Header, tail []byte) {
	w.send(from, fmt.Sprintf("shard-%d", k), h, tail, func(m *wire.Message) {
		if s := w.ownerOf(k); s.up {
			s.do(k, s.shards[k].Handle(m, s.clock()))
		}
	})
}

func (w *world) toCoord(from string, h *wire.Header, tail []byte) {
	w.send(from, "coordinator", h, tail, func(m *wire.Message) {
		if s := w.coordServer(); s.up {
			s.doCoord(s.coord.Handle(m, s.clock()))
		}
	})
}

// workerNode is one worker process.
type workerNode struct {
	w       *world
	id      int
	gen     int
	up      bool
	skew    time.Duration
	session *client.Session
	busy    bool // the application computes
}

func (x *workerNode) name() string { return fmt.Sprintf("worker-%d", x.id+1) }

func (x *workerNode) clock() time.Duration { return x.w.now + x.skew }

func (x *workerNode) start() {
	w := x.w
	x.gen++
	x.up, x.busy = true, false
	x.skew = time.Duration(w.intn(1e6)) * time.Millisecond
	w.log("start "+x.name(), uint64(x.gen))
	p := w.plan
	plan := &client.Plan{Layout: w.layout, Shards: p.Shards, Ranks: p.Ranks, Staleness: p.Staleness, Pinned: true, Broadcast: p.Broadcast,
		Steps: p.Steps, Window: p.Window, RankState: p.RankState}
	rule, _, _, err := p.rule()
	if err != nil {
		w.fail("plan: %v", err)
		return
	}
	plan.Roles = rule.Spec().Phases[0].Needs
	x.session = client.NewSession(client.SessionConfig{Job: jobName, Worker: x.name(), Nonce: uint64(x.id+1)<<32 | uint64(x.gen),
		Replace: w.chance(0.5), Open: func([]byte) (*client.Plan, error) { return plan, nil }})
	x.tick(x.gen)
}

func (x *workerNode) crash(down time.Duration) {
	x.w.counts.WorkerCrashes++
	x.w.log("crash " + x.name())
	x.up, x.session = false, nil
	x.w.after(down, x.start)
}

func (x *workerNode) tick(gen int) {
	if !x.up || x.gen != gen {
		return
	}
	x.do(x.session.Tick(x.clock()))
	x.w.after(workerTick, func() { x.tick(gen) })
}

// do sends the session's messages and starts the next computation. Between two
// chunks of a push the process may crash, as the seed says.
func (x *workerNode) do(outs []client.Out) {
	w := x.w
	cut := len(outs)
	dies := len(outs) > 1 && !w.quiet() && w.plan.Faults.WorkerCrash > 0 && w.chance(0.002)
	if dies {
		cut = w.intn(len(outs))
	}
	for _, o := range outs[:cut] {
		if o.Shard < 0 {
			w.toCoord(x.name(), &o.H, o.Tail)
		} else {
			w.toShard(x.name(), o.Shard, &o.H, o.Tail)
		}
	}
	if dies {
		x.crash(w.between(50*time.Millisecond, 4*time.Second))
		return
	}
	if err := x.session.Err(); err != nil && !errors.Is(err, client.ErrDone) {
		if errors.Is(err, client.ErrReplaced) {
			x.crash(w.between(time.Second, 3*time.Second))
			return
		}
		w.fail("%s: %v", x.name(), err)
		return
	}
	x.work()
}

func (x *workerNode) work() {
	if x.busy {
		return
	}
	job, ok := x.session.Take(x.clock())
	if !ok {
		return
	}
	x.busy = true
	w, gen := x.w, x.gen
	var cs []client.Contribution
	for _, r := range job.Ranks {
		c := client.Contribution{Rank: r, Step: job.Step, Version: job.Version, Grad: make([]float32, w.layout.P)}
		c.Loss, c.Examples = w.plan.gradient(c.Grad, job.Params, r, job.Step)
		if w.plan.RankState {
			c.State = fmt.Appendf(nil, "rank %d step %d", r, job.Step+1)
		}
		cs = append(cs, c)
	}
	w.after(w.between(time.Millisecond, 60*time.Millisecond), func() { x.push(gen, cs) })
}

func (x *workerNode) push(gen int, cs []client.Contribution) {
	for i, c := range cs {
		if !x.up || x.gen != gen {
			return
		}
		outs, err := x.session.Push(c, x.clock())
		if err != nil && !errors.Is(err, client.ErrNotMine) {
			x.w.fail("%s: %v", x.name(), err)
			return
		}
		if i == len(cs)-1 {
			x.busy = false
		}
		x.do(outs)
	}
}

// final collects parameters and slots from the cut at the last step, keyed by
// global range: what the bit-for-bit comparison is about.
func (w *world) final() (map[string][]float32, error) {
	var id ledger.CutID
	for _, d := range w.auth.decisions {
		if d.Kind == ledger.Cut {
			id = ledger.CutID{Timeline: d.Timeline, Step: d.Step}
		}
	}
	out := map[string][]float32{}
	for k := range w.plan.Shards {
		parts, err := checkpoint.Decode(w.disk[cutFile{k, id}])
		if err != nil {
			return nil, fmt.Errorf("shard %d, cut at %d: %w", k, id.Step, err)
		}
		for _, p := range parts {
			collect(out, w.layout, p)
		}
	}
	return out, nil
}

func collect(out map[string][]float32, l *layout.Layout, p layout.Section) {
	if p.F32 == nil {
		return
	}
	if out[p.Name] == nil {
		out[p.Name] = make([]float32, l.P)
	}
	copy(out[p.Name][p.Lo:p.Hi], p.F32)
}
