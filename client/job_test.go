package client

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary/aggregate"
	"tributary/comm/wire"
	"tributary/internal/rng"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
	"tributary/shard"
)

const testJob = "job"

// pairRule needs two tensors per contribution: w ← w − LR·g·d.
type pairRule struct{}

var pairSpec = optim.Spec{Name: "pair", Phases: []optim.Phase{{Needs: []optim.Role{optim.Grad, optim.HessDiag}, Passes: []optim.Pass{{}}}}}

func (pairRule) Spec() *optim.Spec { return &pairSpec }

func (pairRule) Prepare(int, *optim.Step) {}

func (pairRule) Apply(_ int, k *optim.Step, s *optim.Span[float32]) {
	lr := float32(k.LR)
	for i, w := range s.W {
		s.Out[i] = w - float32(lr*float32(s.G[optim.Grad][i]*s.G[optim.HessDiag][i]))
	}
}

// fleet is a small job: real shards, sessions that compute, a scripted
// coordinator, and a network that loses, repeats and reorders.
type fleet struct {
	t       *rapid.T
	plan    *Plan
	cfg     shard.Config
	shards  []*shard.Shard
	workers []*node
	flying  []packet
	decided []*ledger.Decision
	led     ledger.State
	incs    map[string]uint64
	now     time.Duration
	key     rng.Key
	draws   uint64
	lossy   bool
}

// node is one worker: its session, and the work it has taken.
type node struct {
	name string
	ses  *Session
	work *Work
}

type packet struct {
	to   string // "coordinator", a worker's name, or a shard's number
	from string
	h    wire.Header
	tail []byte
}

func (f *fleet) chance(p float64) bool { f.draws++; return f.key.Float64(f.draws) < p }

func (f *fleet) pick(n int) int { f.draws++; return f.key.IntN(f.draws, n) }

func newFleet(t *rapid.T, workers int) *fleet {
	l, err := layout.New([]layout.Tensor{{Name: "w", Shape: []int{9, 7}, Init: layout.Init{Kind: layout.Uniform, Scale: 1}}}, 4)
	if err != nil {
		t.Fatal(err)
	}
	agg, err := aggregate.New[float32]("mean", nil)
	if err != nil {
		t.Fatal(err)
	}
	sgd, err := optim.New[float32]("sgd", map[string]any{"momentum": 0.9})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{t: t, incs: map[string]uint64{}, key: rng.New(rapid.Uint64().Draw(t, "seed"), "fleet"), lossy: true}
	c := shard.Config{Job: testJob, Layout: l, Rule: sgd, Agg: agg, LR: func(uint64) float64 { return 0.1 }, Seed: 1,
		Ranks: rapid.IntRange(1, 4).Draw(t, "ranks"), Steps: uint64(rapid.IntRange(2, 6).Draw(t, "steps")), Window: rapid.IntRange(1, 4).Draw(t, "window"),
		Broadcast: rapid.Bool().Draw(t, "broadcast"), Shards: rapid.IntRange(1, 4).Draw(t, "shards"),
		Mode: rapid.SampledFrom([]shard.Mode{shard.Streaming, shard.ByReduction}).Draw(t, "mode"), Staleness: rapid.IntRange(0, 2).Draw(t, "staleness")}
	if rapid.Bool().Draw(t, "two roles") {
		c.Rule = pairRule{}
	}
	f.cfg = c
	f.plan = &Plan{Layout: l, Shards: c.Shards, Ranks: c.Ranks, Staleness: c.Staleness, Pinned: true, Broadcast: c.Broadcast, Steps: c.Steps, Window: c.Window,
		Streaming: c.Mode == shard.Streaming, Rule: c.Rule.Spec()}
	for k, r := range l.Shards(c.Shards) {
		c.ID, c.Chunks, c.Epoch = k, r, uint64(10+k)
		f.shards = append(f.shards, shard.New(c))
	}
	for i := range workers {
		f.start(fmt.Sprintf("w%d", i), uint64(i+1))
	}
	return f
}

func (f *fleet) start(name string, nonce uint64) {
	f.workers = append(f.workers, &node{name: name, ses: NewSession(SessionConfig{Job: testJob, Worker: name, Nonce: nonce, Retry: 50 * time.Millisecond,
		Open: func(record []byte) (*Plan, error) {
			if string(record) != "record" {
				return nil, fmt.Errorf("record %q", record)
			}
			return f.plan, nil
		}})})
}

func (f *fleet) decide(d ledger.Decision) {
	d.N = f.led.N + 1
	if d.Timeline == 0 {
		d.Timeline = f.led.Timeline
	}
	f.led.Apply(&d)
	f.decided = append(f.decided, &d)
	h := wire.Header{Kind: wire.News, Job: testJob, Timeline: f.led.Timeline, Seq: d.N}
	for k := range f.shards {
		f.post(packet{fmt.Sprint(k), "coordinator", h, d.Encode()})
	}
	for _, w := range f.workers {
		f.post(packet{w.name, "coordinator", h, d.Encode()})
	}
}

// view deals the ranks out to the workers, from one of them on.
func (f *fleet) view(first int) {
	d := ledger.Decision{Kind: ledger.View, View: f.led.View + 1}
	for r := range f.cfg.Ranks {
		w := f.workers[(r+first)%len(f.workers)]
		d.Ranks = append(d.Ranks, ledger.Member{Worker: w.name, Incarnation: f.incs[w.name]})
	}
	f.decide(d)
}

func (f *fleet) begin() {
	d := ledger.Decision{Kind: ledger.Begin, Timeline: f.led.Timeline + 1}
	for k := range f.shards {
		d.Epochs = append(d.Epochs, uint64(10+k))
	}
	f.decide(d)
}

func (f *fleet) post(p packet) {
	p.tail = bytes.Clone(p.tail)
	f.flying = append(f.flying, p)
}

// deliver hands over one message of those on their way.
func (f *fleet) deliver() {
	i := f.pick(min(len(f.flying), 40))
	p := f.flying[i]
	again := f.lossy && f.chance(0.1)
	if !again {
		f.flying[i] = f.flying[0]
		f.flying = f.flying[1:]
	}
	if f.lossy && f.chance(0.15) {
		return
	}
	m := wire.NewMessage(p.h, bytes.Clone(p.tail), nil)
	switch {
	case p.to == "coordinator":
		f.coordinate(p.from, m)
	case p.to[0] == 'w':
		for _, w := range f.workers {
			if w.name == p.to {
				f.sent(w, w.ses.Handle(m, f.now))
			}
		}
	default:
		var k int
		fmt.Sscan(p.to, &k)
		f.shardDid(k, f.shards[k].Handle(m, f.now))
	}
}

func (f *fleet) shardDid(k int, outs []shard.Out) {
	for _, o := range outs {
		p := packet{from: fmt.Sprint(k), h: o.H, tail: o.Tail}
		switch o.Kind {
		case shard.ToWorker:
			p.to = o.Worker
			f.post(p)
		case shard.ToWorkers:
			for _, w := range f.workers {
				p.to = w.name
				f.post(p)
			}
		case shard.ToPeers:
			for other := range f.shards {
				if other != k {
					p.to = fmt.Sprint(other)
					f.post(p)
				}
			}
		case shard.ToCoord:
			p.to = "coordinator"
			f.post(p)
		}
	}
}

func (f *fleet) coordinate(from string, m *wire.Message) {
	switch m.Kind {
	case wire.Join:
		if f.incs[m.Worker] == 0 {
			f.incs[m.Worker] = uint64(len(f.incs) + 1)
		}
		f.post(packet{m.Worker, from, wire.Header{Kind: wire.Welcome, Job: testJob, Worker: m.Worker, Seq: m.Seq, Incarnation: f.incs[m.Worker], Lo: f.led.N}, []byte("record")})
	case wire.AskNews:
		for n := max(m.Seq, 1); n <= f.led.N; n++ {
			f.post(packet{from, "coordinator", wire.Header{Kind: wire.News, Job: testJob, Timeline: f.led.Timeline, Seq: n}, f.decided[n-1].Encode()})
		}
	}
}

// sent takes what a session says, checks the session, and lets it compute.
func (f *fleet) sent(w *node, outs []Out) {
	for _, o := range outs {
		p := packet{to: "coordinator", from: w.name, h: o.H, tail: o.Tail}
		if o.Shard >= 0 {
			p.to = fmt.Sprint(o.Shard)
		}
		f.post(p)
	}
	checkCredit(f.t, w.ses)
}

// checkCredit fails if a contribution has more chunks in flight to a shard than
// its window, or if the session lost count.
func checkCredit(t interface{ Fatalf(string, ...any) }, s *Session) {
	for _, c := range s.flight {
		left := 0
		for k, r := range s.ranges {
			n := 0
			for ci := r.Lo; ci < r.Hi; ci++ {
				if c.state[ci] == inFlight {
					n++
				}
				if c.state[ci] != done {
					left++
				}
			}
			if n != c.out[k] || n > s.plan.Window {
				t.Fatalf("rank %d, step %d: %d chunks in flight to shard %d, counted %d, window %d", c.Rank, c.Step, n, k, c.out[k], s.plan.Window)
			}
		}
		if left != c.left {
			t.Fatalf("rank %d, step %d: %d chunks left, counted %d", c.Rank, c.Step, left, c.left)
		}
	}
}

// compute does a part of the work: takes it, or pushes for one of its ranks.
func (f *fleet) compute(w *node) {
	if w.work == nil || len(w.work.Ranks) == 0 {
		w.work = nil
		if work, ok := w.ses.Take(f.now); ok {
			if want := work.Step - min(work.Step, uint64(f.plan.Staleness)); work.Version != want {
				f.t.Fatalf("step %d on version %d, want %d", work.Step, work.Version, want)
			}
			w.work = &work
			return
		}
		f.sent(w, w.ses.Advance(f.now))
		return
	}
	r := w.work.Ranks[0]
	w.work.Ranks = w.work.Ranks[1:]
	c := gradients(w.work.Roles, r, w.work.Step, w.work.Params)
	c.Version = w.work.Version
	outs, err := w.ses.Push(c, f.now)
	if err != nil {
		w.work = nil // moved or rewound
	}
	f.sent(w, outs)
}

// gradients are a function of rank, step and parameters.
func gradients(roles []optim.Role, rank int, step uint64, params []float32) Contribution {
	k := rng.New(9, "gradient").With(uint64(rank)).With(step)
	c := Contribution{Rank: rank, Step: step, Examples: float64(1 + rank), Extra: map[optim.Role][]float32{}}
	for _, ro := range roles {
		g := make([]float32, len(params))
		for i := range g {
			g[i] = float32(k.With(uint64(ro)).Float64(uint64(i))) + float32(0.5*params[i])
		}
		if c.Extra[ro] = g; ro == optim.Grad {
			c.Grad = g
		}
	}
	return c
}

// want are the parameters of the same job in one process.
func (f *fleet) want() []float32 {
	l := f.cfg.Layout
	w := make([]float32, l.P)
	l.InitParams(f.cfg.Seed, layout.Range{Hi: l.P}, w)
	r := optim.NewRunner(f.cfg.Rule, l, w, optim.RunnerOptions{})
	versions := [][]float32{w}
	for step := range f.cfg.Steps {
		var ms []aggregate.Meta
		in := optim.Input[float32]{LR: 0.1}
		gs := map[optim.Role][][]float32{}
		for rank := range f.cfg.Ranks {
			c := gradients(f.plan.Roles(step), rank, step, versions[step-min(step, uint64(f.cfg.Staleness))])
			ms = append(ms, aggregate.Meta{Rank: rank, Examples: c.Examples})
			for ro, g := range c.Extra {
				gs[ro] = append(gs[ro], g)
			}
		}
		for ro, g := range gs {
			in.G[ro] = make([]float32, l.P)
			f.cfg.Agg.Combine(in.G[ro], g, f.cfg.Agg.Weights(nil, ms, nil))
		}
		r.Step(in)
		versions = append(versions, r.Params())
	}
	return r.Params()
}

func (f *fleet) joined() bool {
	return !slices.ContainsFunc(f.workers, func(w *node) bool { return w.ses.inc == 0 })
}

func (f *fleet) run(until func() bool) {
	for limit := f.now + 5*time.Minute; !until(); {
		if f.now > limit {
			for k, sh := range f.shards {
				lo, hi := sh.Versions()
				f.t.Logf("shard %d at %d..%d", k, lo, hi)
			}
			for _, w := range f.workers {
				f.t.Logf("%s: %s [%s]", w.name, w.ses.Waiting(f.now), w.ses.Debug())
			}
			f.t.Fatalf("a wait does not end")
		}
		switch {
		case len(f.flying) > 0 && f.chance(0.9):
			f.deliver()
		case f.chance(0.6):
			f.compute(f.workers[f.pick(len(f.workers))])
		default:
			f.now += 20 * time.Millisecond
			for _, w := range f.workers {
				f.sent(w, w.ses.Tick(f.now))
			}
			for k, sh := range f.shards {
				f.shardDid(k, sh.Tick(f.now))
			}
			h := wire.Header{Kind: wire.News, Job: testJob, Timeline: f.led.Timeline, Seq: f.led.N} // the beacon
			for k := range f.shards {
				f.post(packet{fmt.Sprint(k), "coordinator", h, nil})
			}
			for _, w := range f.workers {
				f.post(packet{w.name, "coordinator", h, nil})
			}
		}
	}
}

func (f *fleet) finished() bool {
	for _, sh := range f.shards {
		if lo, _ := sh.Versions(); lo < f.cfg.Steps || sh.Ledger().N < f.led.N {
			return false
		}
	}
	for _, w := range f.workers {
		if !w.ses.Acknowledged() {
			return false
		}
	}
	return true
}

// Whatever is lost, repeated or overtaken, whoever holds a rank, and however
// often the job is rewound: it ends, with the parameters of one process, and no
// session ever exceeds its windows.
func TestFleet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFleet(t, rapid.IntRange(1, 3).Draw(t, "workers"))
		f.run(f.joined)
		f.view(0)
		f.begin()
		for range rapid.IntRange(0, 4).Draw(t, "disturbances") {
			end := f.now + time.Duration(f.pick(400))*time.Millisecond
			f.run(func() bool { return f.now > end || f.finished() })
			if f.chance(0.3) {
				f.begin()
			} else {
				f.view(f.pick(3)) // in mid-push
			}
		}
		f.lossy = f.chance(0.5)
		f.run(f.finished)
		want := f.want()
		for k, sh := range f.shards {
			r := f.plan.Layout.Shards(f.cfg.Shards)[k]
			for ci := r.Lo; ci < r.Hi; ci++ {
				outs := sh.Handle(wire.NewMessage(wire.Header{Kind: wire.Pull, Job: testJob, Timeline: f.led.Timeline, Shard: uint32(k), Epoch: uint64(10 + k),
					Worker: "reader", Chunk: uint32(ci), Step: f.cfg.Steps}, nil, nil), f.now)
				x := f.plan.Layout.Chunk(ci)
				if len(outs) != 1 || !bytes.Equal(outs[0].Tail, wire.Bytes32(want[x.Lo:x.Hi])) {
					t.Fatalf("chunk %d differs from that of one process: %+v", ci, outs)
				}
			}
		}
	})
}
