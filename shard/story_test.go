package shard

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary/aggregate"
	"tributary/comm/wire"
	"tributary/internal/rng"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// testing.TB without what rapid's T lacks.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
}

const (
	testJob   = "job"
	testEpoch = 100 // of shard 0; shard k has testEpoch+k
)

// smallModel has a buffer, an undecayed vector and two matrices; with chunks
// of 8 parameters it has ten of them, and their borders lie inside of rows.
func smallModel(t tb, chunk int) *layout.Layout {
	t.Helper()
	return newLayout(t, chunk,
		layout.Tensor{Name: "w", Shape: []int{5, 7}, Init: layout.Init{Kind: layout.Uniform, Scale: 0.5}},
		layout.Tensor{Name: "b", Shape: []int{9}, NoDecay: true, Init: layout.Init{Kind: layout.Normal, Scale: 0.1}},
		layout.Tensor{Name: "stat", Shape: []int{3}, Buffer: true, Init: layout.Init{Kind: layout.Constant, Scale: 1}},
		layout.Tensor{Name: "out", Shape: []int{3, 11}, Init: layout.Init{Kind: layout.Uniform, Scale: 0.3}})
}

func newLayout(t tb, chunk int, tensors ...layout.Tensor) *layout.Layout {
	t.Helper()
	l, err := layout.New(tensors, chunk)
	if err != nil {
		t.Fatalf("layout: %v", err)
	}
	return l
}

func newRule(t tb, name string, hyper map[string]any) optim.Rule[float32] {
	t.Helper()
	r, err := optim.New[float32](name, hyper)
	if err != nil {
		t.Fatalf("rule: %v", err)
	}
	return r
}

func meanByExamples(t tb) aggregate.Rule[float32] {
	t.Helper()
	r, err := aggregate.New[float32]("mean", map[string]any{"by": "examples"})
	if err != nil {
		t.Fatalf("aggregation: %v", err)
	}
	return r
}

// sgdJob is a small synchronous job with momentum; tests change what they need.
func sgdJob(t tb, ranks int, steps uint64) Config {
	t.Helper()
	return Config{Job: testJob, Layout: smallModel(t, 8), Rule: newRule(t, "sgd", map[string]any{"momentum": 0.9}), Agg: meanByExamples(t),
		LR: func(t uint64) float64 { return 0.1 / float64(t) }, Ranks: ranks, Steps: steps, Window: 4, Seed: 7}
}

// story drives all shards of a job by hand: it carries what they say to each
// other, stands in for workers and coordinator, and checks what must hold
// always: that memory of messages is given back once, that whatever is
// published for a chunk and version is published with the same bits every
// time, and that it is finite.
type story struct {
	t      tb
	cfg    Config
	shards []*Shard
	now    time.Duration
	n      uint64 // decisions

	made, released int
	pending        []envelope // between shards
	lose           func(envelope) bool
	acks           []wire.Header // all answers to workers but parameters
	coord          []Out         // all that went to the coordinator
	params         map[place]string
	cuts           map[ledger.CutID][]layout.Section
	saved          map[ledger.CutID]int // shards that saved
	keepCuts       bool                 // SaveCut is not answered by itself
	auto           bool                 // decide to close what every shard holds (ByDecision)
	staged         map[stagedMark]map[uint32]bool
	closed         uint64
	sparse         bool // contributions name runs of parameters
}

type envelope struct {
	to   int
	h    wire.Header
	tail []byte
}

type place struct {
	chunk   uint32
	version uint64
}

// newStory makes the shards and begins timeline 1, in which worker w<r> serves
// rank r.
func newStory(t tb, cfg Config, shards int) *story {
	t.Helper()
	s := &story{t: t, cfg: cfg, params: map[place]string{}, cuts: map[ledger.CutID][]layout.Section{}, saved: map[ledger.CutID]int{},
		staged: map[stagedMark]map[uint32]bool{}, auto: true}
	ranges := cfg.Layout.Shards(shards)
	if len(ranges) != shards {
		t.Fatalf("%d chunks do not make %d shards", cfg.Layout.Chunks(), shards)
	}
	s.cfg.Shards = shards
	for k := range ranges {
		c := s.cfg
		c.ID, c.Chunks, c.Epoch = k, ranges[k], uint64(testEpoch+k)
		s.shards = append(s.shards, New(c))
	}
	s.decide(ledger.Decision{Kind: ledger.View, View: 1, Ranks: members(cfg.Ranks)})
	s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 1, Epochs: s.epochs()})
	return s
}

func members(ranks int) []ledger.Member {
	var ms []ledger.Member
	for r := range ranks {
		ms = append(ms, ledger.Member{Worker: workerOf(r), Incarnation: 1})
	}
	return ms
}

func workerOf(rank int) string { return fmt.Sprintf("w%d", rank) }

func (s *story) epochs() []uint64 {
	var es []uint64
	for _, sh := range s.shards {
		es = append(es, sh.cfg.Epoch)
	}
	return es
}

// decide makes the next decision and tells all shards as news.
func (s *story) decide(d ledger.Decision) {
	s.t.Helper()
	s.n++
	d.N = s.n
	if d.Timeline == 0 && len(s.shards) > 0 {
		d.Timeline = s.shards[0].led.Timeline
	}
	for k := range s.shards {
		s.send(k, wire.Header{Kind: wire.News, Job: testJob, Seq: d.N}, d.Encode())
	}
	s.settle()
}

// send hands shard k one message whose memory is poisoned when it is released.
func (s *story) send(k int, h wire.Header, tail []byte) {
	b := slices.Clone(tail)
	s.made++
	m := wire.NewMessage(h, b, func() {
		s.released++
		for i := range b {
			b[i] = 0xff // NaN as a number
		}
	})
	s.do(k, s.shards[k].Handle(m, s.now))
}

// do performs a shard's outputs.
func (s *story) do(k int, outs []Out) {
	outs = slices.Clone(outs) // the next call into the shard overwrites them
	for i := range outs {
		outs[i].Tail = slices.Clone(outs[i].Tail)
	}
	for i := range outs {
		o := &outs[i]
		switch o.Kind {
		case ToWorker, ToWorkers:
			if o.H.Kind != wire.Params {
				s.acks = append(s.acks, o.H)
				continue
			}
			s.published(k, o)
		case ToPeers:
			for to := range s.shards {
				if to != k {
					s.pending = append(s.pending, envelope{to, o.H, o.Tail})
				}
			}
		case ToCoord:
			s.coord = append(s.coord, *o)
			if o.H.Kind == wire.Staged && s.auto {
				s.hold(o.H)
			}
		case SaveCut:
			s.cuts[o.Cut] = append(s.cuts[o.Cut], o.Sections...)
			if !s.keepCuts {
				s.do(k, s.shards[k].CutSaved(o.Cut, s.now))
				s.saved[o.Cut]++
			}
		case LoadCut:
			s.do(k, s.shards[k].CutLoaded(o.Cut, s.cuts[o.Cut], s.now))
		}
	}
}

// published checks parameters that were handed out.
func (s *story) published(k int, o *Out) {
	p := place{o.H.Chunk, o.H.Step}
	if wire.Checksum(o.Tail) != o.H.CRC || int(o.H.Count) != s.cfg.Layout.Chunk(int(p.chunk)).Len() || !wire.AllFinite(viewFloat32(o.Tail)) {
		s.t.Errorf("shard %d published bad parameters of %+v: %+v", k, p, o.H)
	}
	if s.cfg.Mode == Async {
		return
	}
	if was, ok := s.params[p]; ok && was != string(o.Tail) {
		s.t.Errorf("shard %d published other bits for %+v than before", k, p)
	}
	s.params[p] = string(o.Tail)
}

// hold is the coordinator's part of an atomic step closed by decision.
func (s *story) hold(h wire.Header) {
	m := stagedMark{int(h.Rank), h.Step, ledger.Member{Worker: h.Worker, Incarnation: h.Incarnation}}
	if s.staged[m] == nil {
		s.staged[m] = map[uint32]bool{}
	}
	s.staged[m][h.Shard] = true
}

// settle delivers what shards said to each other, and decides what is due,
// until nothing is left.
func (s *story) settle() { s.settleIn(func(n int) int { return 0 }) }

// settleIn is settle in the order that pick gives: it chooses one of n.
func (s *story) settleIn(pick func(n int) int) {
	for {
		for len(s.pending) > 0 {
			i := pick(len(s.pending))
			e := s.pending[i]
			s.pending = slices.Delete(s.pending, i, i+1)
			if s.lose == nil || !s.lose(e) {
				s.send(e.to, e.h, e.tail)
			}
		}
		if !s.closeDue() {
			return
		}
	}
}

func (s *story) closeDue() bool {
	led := &s.shards[0].led
	if s.cfg.Mode != ByDecision || !s.auto || led.Timeline == 0 {
		return false
	}
	ms := make([]ledger.Member, s.cfg.Ranks)
	for r := range ms {
		if !led.In(r) {
			continue
		}
		ms[r], _ = led.Member(r)
		if len(s.staged[stagedMark{r, s.closed, ms[r]}]) < len(s.shards) {
			return false
		}
	}
	s.closed++
	s.decide(ledger.Decision{Kind: ledger.Close, Step: s.closed - 1, Ranks: ms})
	return true
}

// tick lets time pass at every shard.
func (s *story) tick(d time.Duration) {
	s.t.Helper()
	s.now += d
	for k, sh := range s.shards {
		s.do(k, sh.Tick(s.now))
	}
	s.settle()
}

// contribution is what one rank pushes for one step.
type contribution struct {
	rank           int
	step           uint64
	g              [optim.NumRoles][]float32 // nil: null
	runs           []layout.Range            // parameters that it names; nil: all
	examples, loss float64
}

// rolesOf are the roles of a contribution to a step of the job.
func rolesOf(cfg *Config, step uint64) []optim.Role {
	spec := cfg.Rule.Spec()
	n := uint64(len(spec.Phases))
	return spec.Roles(int(step%n), step/n+1)
}

// contribute draws rank's numbers for a step: a function of both alone.
func (s *story) contribute(rank int, step uint64) contribution {
	k := rng.New(3, "gradient").With(uint64(rank)).With(step)
	c := contribution{rank: rank, step: step, examples: float64(1 + rank%3), loss: k.Float64(1 << 20)}
	for _, ro := range rolesOf(&s.cfg, step) {
		g := make([]float32, s.cfg.Layout.P)
		for i := range g {
			g[i] = float32(k.With(uint64(ro)).Float64(uint64(i))*2 - 1)
			if s.cfg.Half {
				g[i] = math.Float32frombits(math.Float32bits(g[i]) &^ 0xffff)
			}
		}
		c.g[ro] = g
	}
	if s.sparse {
		c.runs = []layout.Range{}
		for lo := k.IntN(1<<21, 5); lo < s.cfg.Layout.P; {
			hi := min(lo+1+k.IntN(1<<21+uint64(lo), 9), s.cfg.Layout.P)
			c.runs = append(c.runs, layout.Range{Lo: lo, Hi: hi})
			lo = hi + 1 + k.IntN(1<<22+uint64(lo), 20)
		}
	}
	return c
}

// messages are the pushes of c, chunk by chunk and role by role.
func (s *story) messages(c contribution) []envelope {
	var out []envelope
	for k, sh := range s.shards {
		for ci := sh.cfg.Chunks.Lo; ci < sh.cfg.Chunks.Hi; ci++ {
			for _, ro := range rolesOf(&s.cfg, c.step) {
				h := wire.Header{Kind: wire.Push, Job: testJob, Timeline: sh.led.Timeline, View: sh.led.View, Shard: uint32(k), Epoch: sh.cfg.Epoch,
					Rank: uint32(c.rank), Step: c.step, Pulled: c.step, Role: ro, Chunk: uint32(ci), Phase: uint8(sh.phaseOf(c.step)), Examples: c.examples, Loss: c.loss}
				m, _ := sh.led.Member(c.rank)
				h.Worker, h.Incarnation = m.Worker, m.Incarnation
				if c.g[ro] == nil {
					h.Encoding, h.Examples = wire.Null, 0
					out = append(out, envelope{k, h, nil})
					continue
				}
				r := s.cfg.Layout.Chunk(ci)
				tail := wire.Bytes32(c.g[ro][r.Lo:r.Hi])
				h.Encoding, h.Count = wire.F32, uint32(r.Len())
				switch {
				case s.cfg.Half:
					x := make([]uint16, r.Len())
					wire.ToHalf(x, c.g[ro][r.Lo:r.Hi])
					h.Encoding, tail = wire.BF16, wire.BytesHalf(x)
				case c.runs != nil:
					var n int
					tail, n = wire.AppendRuns(nil, runsIn(c.runs, r), c.g[ro][r.Lo:r.Hi])
					h.Encoding, h.Count = wire.Rows, uint32(n)
				}
				h.CRC = wire.Checksum(tail)
				out = append(out, envelope{k, h, tail})
			}
		}
	}
	return out
}

// runsIn are the parts of runs that lie in a chunk.
func runsIn(runs []layout.Range, chunk layout.Range) []wire.Run {
	var in []wire.Run
	for _, r := range runs {
		if lo, hi := max(r.Lo, chunk.Lo), min(r.Hi, chunk.Hi); lo < hi {
			in = append(in, wire.Run{Lo: lo - chunk.Lo, Hi: hi - chunk.Lo})
		}
	}
	return in
}

func (s *story) push(cs ...contribution) {
	s.t.Helper()
	for _, c := range cs {
		for _, m := range s.messages(c) {
			s.send(m.to, m.h, m.tail)
		}
	}
	s.settle()
}

// step pushes step t of all ranks that are in.
func (s *story) step(t uint64) {
	s.t.Helper()
	for r := range s.cfg.Ranks {
		if s.shards[0].led.In(r) {
			s.push(s.contribute(r, t))
		}
	}
}

// at fails unless every chunk of every shard is at version v.
func (s *story) at(v uint64) {
	s.t.Helper()
	for k, sh := range s.shards {
		if lo, hi := sh.Versions(); lo != v || hi != v {
			s.t.Fatalf("shard %d is at versions %d to %d, want %d", k, lo, hi, v)
		}
	}
}

// balanced fails unless all memory of messages was given back, once.
func (s *story) balanced() {
	s.t.Helper()
	if s.made != s.released {
		s.t.Errorf("%d messages made, %d released", s.made, s.released)
	}
}

// last is the last answer to a worker.
func (s *story) last() wire.Header {
	s.t.Helper()
	if len(s.acks) == 0 {
		s.t.Fatalf("no answer")
	}
	return s.acks[len(s.acks)-1]
}

func (s *story) applied() (n uint64) {
	for _, sh := range s.shards {
		n += sh.stats.Applied
	}
	return n
}

// vector puts the parts of all shards together.
func (s *story) vector(part func(*Shard) []float32) []float32 {
	var x []float32
	for _, sh := range s.shards {
		x = append(x, part(sh)...)
	}
	return x
}

func (s *story) parameters() []float32 {
	return s.vector(func(sh *Shard) []float32 {
		if sh.cfg.Mode == Async {
			return sh.bufs[0]
		}
		return sh.bufs[sh.chunks[0].version%sh.keep()]
	})
}

// slotVector is slot i with zeros for the parameters that have none.
func (sh *Shard) slotVector(i int) []float32 {
	x := make([]float32, sh.n)
	for c := sh.cfg.Chunks.Lo; c < sh.cfg.Chunks.Hi; c++ {
		for _, b := range sh.cfg.Layout.Blocks(nil, c) {
			copy(x[b.Lo-sh.lo:b.Hi-sh.lo], sh.span(i, b.Tensor, b.Lo, b.Hi))
		}
	}
	return x
}

// dump is all state of a shard that a step may change, as text.
func (sh *Shard) dump() string {
	var b strings.Builder
	all := slices.Clone(sh.bufs)
	for i := range sh.slots {
		all = append(all, sh.slots[i].data)
	}
	for _, x := range all {
		for _, v := range x {
			fmt.Fprintf(&b, "%08x", math.Float32bits(v))
		}
		b.WriteByte('\n')
	}
	for i := range sh.tens {
		fmt.Fprintln(&b, sh.tens[i].Slots)
	}
	for i := range sh.chunks {
		fmt.Fprintln(&b, sh.chunks[i].version)
		for _, row := range sh.chunks[i].staged {
			for _, e := range row {
				fmt.Fprint(&b, e.step, e.member, e.vals, ";")
			}
		}
	}
	fmt.Fprintln(&b, sh.model, sh.applied, sh.updates, sh.led.N, sh.log.Next)
	return b.String()
}

func (s *story) dump() string {
	var b strings.Builder
	for _, sh := range s.shards {
		b.WriteString(sh.dump())
	}
	return b.String()
}

// sameBits fails unless got is want bit for bit.
func sameBits(t tb, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s[%d] = %x, want %x", what, i, got[i], want[i])
		}
	}
}

// twin is the plain second implementation: one process, one shard, whole
// vectors, contributions combined in rank order.
type twin struct {
	cfg  Config
	r    *optim.Runner[float32]
	next uint64 // step
}

func newTwin(cfg Config) *twin {
	l := cfg.Layout
	w := make([]float32, l.P)
	l.InitParams(cfg.Seed, layout.Range{Hi: l.P}, w)
	return &twin{cfg: cfg, r: optim.NewRunner(cfg.Rule, l, w, optim.RunnerOptions{Seed: cfg.Seed})}
}

// step takes one update with contributions in rank order.
func (x *twin) step(cs ...contribution) {
	var ms []aggregate.Meta
	for _, c := range cs {
		ms = append(ms, aggregate.Meta{Rank: c.rank, Examples: c.examples, Loss: c.loss, Null: c.null()})
	}
	w := x.cfg.Agg.Weights(nil, ms, nil)
	phases := uint64(len(x.cfg.Rule.Spec().Phases))
	in := optim.Input[float32]{LR: x.cfg.LR(x.next/phases + 1)}
	for i, m := range ms {
		if !m.Null {
			in.Loss += float64(w[i] * m.Loss)
			in.Examples += m.Examples
		}
	}
	t := x.next
	if x.cfg.Mode == Async {
		t = 0
		for _, c := range cs {
			t = max(t, c.step)
		}
	}
	for _, ro := range rolesOf(&x.cfg, t) {
		in.G[ro] = make([]float32, x.cfg.Layout.P)
		for i := range in.G[ro] {
			var gs [][]float32
			for _, c := range cs {
				if gs = append(gs, nil); c.g[ro] != nil && c.names(i) {
					gs[len(gs)-1] = c.g[ro][i : i+1]
				}
			}
			x.cfg.Agg.Combine(in.G[ro][i:i+1], gs, w)
		}
	}
	if slices.ContainsFunc(cs, func(c contribution) bool { return c.runs != nil && !c.null() }) {
		in.Runs = []layout.Range{}
		for i := range x.cfg.Layout.P {
			if slices.ContainsFunc(cs, func(c contribution) bool { return !c.null() && c.names(i) }) {
				in.Runs = append(in.Runs, layout.Range{Lo: i, Hi: i + 1})
			}
		}
	}
	x.r.Phase(int(x.next%phases), in)
	x.next++
}

// names says whether c pushes parameter i.
func (c *contribution) names(i int) bool {
	return c.runs == nil || slices.ContainsFunc(c.runs, func(r layout.Range) bool { return r.Lo <= i && i < r.Hi })
}

func (c *contribution) null() bool {
	return !slices.ContainsFunc(c.g[:], func(g []float32) bool { return g != nil })
}

// equal fails unless the shards hold the twin's parameters and slots.
func (s *story) equal(x *twin) {
	s.t.Helper()
	sameBits(s.t, "parameters", s.parameters(), x.r.Params())
	for i, sl := range s.cfg.Rule.Spec().Slots {
		if sl.Elements() {
			sameBits(s.t, "slot "+sl.Name, s.vector(func(sh *Shard) []float32 { return sh.slotVector(i) }), x.r.Slot(sl.Name))
		}
	}
}

func TestStory(t *testing.T) {
	s := newStory(t, sgdJob(t, 3, 4), 3)
	x := newTwin(s.cfg)
	for step := range uint64(4) {
		s.at(step)
		s.step(step)
		x.step(s.contribute(0, step), s.contribute(1, step), s.contribute(2, step))
		s.equal(x)
	}
	s.at(4)
	s.balanced()
	if got, want := s.applied(), uint64(4*10); got != want {
		t.Errorf("%d chunks took a step, want %d", got, want)
	}
}
