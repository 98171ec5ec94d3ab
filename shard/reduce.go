package shard

import (
	"slices"
	"time"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/optim"
)

// reduction drives the passes of one atomic step whose reductions cross
// shards. Every shard sends its list of block values; whoever has all lists
// adds the blocks in ascending global order (C2). The lists of a closed step
// stay available until the next one is closed everywhere, because a shard that
// missed one asks for it: a closed step is never abandoned, only repeated (C9).
type reduction struct {
	active  bool
	step    uint64
	stage   int
	lists   map[partKey][]float64 // received and own, of this step and its neighbours
	scratch [][]float32
	sums    [][]float64
	gather  [][]float32
	own     []float64 // list being built
	at      int       // where the current block's values start in own
	since   time.Duration
}

type partKey struct {
	step  uint64
	stage int
	shard int
}

func (s *Shard) aggPasses() []optim.Pass { return s.cfg.Agg.Spec(s.cfg.Ranks).Passes }

// stagePass is the pass that stage i of a step runs; rule is false for one of the
// aggregation stage. ok is false after the last stage that reduces.
func (s *Shard) stagePass(step uint64, i int) (p optim.Pass, rule, ok bool) {
	agg := s.aggPasses()
	if i < len(agg) {
		return agg[i], false, true
	}
	rp := s.passes(step)
	if j := i - len(agg); j < len(rp)-1 {
		return rp[j], true, true
	}
	// A step of a rule without reductions still closes everywhere or nowhere:
	// one empty stage is the barrier.
	return optim.Pass{}, false, i == 0
}

// startReduction begins the next step once every rank is staged whole.
func (s *Shard) startReduction(now time.Duration) {
	t := s.chunks[0].version
	if s.red.active || s.phase != running || s.broken != "" || t >= s.limit() || !s.statesReady(t+1) {
		return
	}
	some := false
	for rank := range s.cfg.Ranks {
		in := s.led.In(rank)
		if some = some || in; in && !s.whole(rank, t) {
			return
		}
	}
	if !some {
		return
	}
	r := &s.red
	r.active, r.step, r.stage, r.since = true, t, 0, now
	if r.lists == nil {
		r.lists = map[partKey][]float64{}
		for range s.scratchCount() {
			r.scratch = append(r.scratch, make([]float32, s.n))
		}
	}
	sc := s.scalars(t, &s.chunks[0])
	sc.k.Reduced = make([][][]float64, len(s.passes(t)))
	for i := range s.tens {
		s.tens[i].Reduced = make([][][]float64, len(s.passes(t)))
	}
	s.runStage(now)
}

func (s *Shard) scratchCount() int {
	most := 0
	for _, ph := range s.spec.Phases {
		n := 0
		for _, p := range ph.Passes {
			n += p.Scratch
		}
		most = max(most, n)
	}
	return most
}

// prepareTensors lets the rule compute what it needs per tensor for a pass.
func (s *Shard) prepareTensors(pass int, sc *stepScalars) {
	for i := range s.tens {
		if ts := &s.tens[i]; ts.Info != nil && !ts.Info.Buffer {
			optim.PrepareTensor(s.cfg.Rule, pass, &sc.k, ts)
		}
	}
}

// runStage computes this shard's list of the current stage and sends it.
func (s *Shard) runStage(now time.Duration) {
	r := &s.red
	pass, rule, _ := s.stagePass(r.step, r.stage)
	r.own = nil
	if len(pass.Reduce) > 0 || pass.Scratch > 0 {
		sc := s.scalars(r.step, &s.chunks[0])
		if rule {
			s.prepareTensors(r.stage-len(s.aggPasses()), sc)
		}
		for ci := range s.chunks {
			s.stageChunk(ci, sc, pass, rule)
		}
	}
	own := r.own
	if own == nil {
		own = []float64{}
	}
	r.lists[partKey{r.step, r.stage, s.cfg.ID}] = own
	r.since = now
	s.stats.Reductions++
	s.sendPartial(r.step, r.stage)
	s.advance(now)
}

func (s *Shard) sendPartial(step uint64, stage int) {
	h := s.header(wire.Partial)
	h.Step, h.Pass = step, uint8(stage)
	list := s.red.lists[partKey{step, stage, s.cfg.ID}]
	tail := wire.Bytes64(list)
	h.Count, h.CRC = uint32(len(list)), wire.Checksum(tail)
	s.outs = append(s.outs, Out{Kind: ToPeers, H: h, Tail: tail})
}

// stageChunk appends the block values of one chunk to the list being built.
func (s *Shard) stageChunk(ci int, sc *stepScalars, pass optim.Pass, rule bool) {
	r := &s.red
	last := -1
	pi := r.stage - len(s.aggPasses())
	s.eachSpan(ci, r.step, sc, func(bi int, b layout.Block, sp *optim.Span[float32]) {
		t := &s.cfg.Layout.Tensors[b.Tensor]
		if bi != last {
			last = bi
			s.openBlock(pass, t, b)
		}
		sp.Sums = r.sums
		sp.Gathered = s.cutGather(len(sp.W))
		sp.Scratch = s.spanScratch(sp.At+t.Offset, len(sp.W))
		if rule {
			s.cfg.Rule.Apply(pi, &sc.k, sp)
			s.keepGathered(pass, b, sp.At+t.Offset, len(sp.W))
			return
		}
		s.cfg.Agg.Pass(r.stage, s.work.in, r.sums)
	})
}

// cutGather takes the first n elements of the gathered values' buffers.
func (s *Shard) cutGather(n int) [][]float32 {
	for i, g := range s.red.gather {
		if g != nil {
			s.red.gather[i] = g[:n]
		}
	}
	return s.red.gather
}

func (s *Shard) spanScratch(global, n int) [][]float32 {
	out := make([][]float32, len(s.red.scratch))
	for i, x := range s.red.scratch {
		out[i] = x[global-s.lo : global-s.lo+n]
	}
	return out
}

// openBlock makes room for one block's values at the end of the list.
func (s *Shard) openBlock(pass optim.Pass, t *layout.Tensor, b layout.Block) {
	r := &s.red
	r.sums, r.gather = r.sums[:0], r.gather[:0]
	total := 0
	for i := range pass.Reduce {
		total += pass.Reduce[i].PartialLen(t, b)
	}
	r.at = len(r.own)
	// Grown once per block; sums alias the new tail until the next block opens.
	r.own = append(slices.Grow(r.own, total), make([]float64, total)...)
	at := r.at
	for i := range pass.Reduce {
		rd := &pass.Reduce[i]
		n := rd.PartialLen(t, b)
		x := r.own[at : at+n : at+n]
		rd.Start(x)
		r.sums = append(r.sums, x)
		var g []float32
		if rd.Op == optim.Gather {
			g = make([]float32, optim.SpanLen)
		}
		r.gather = append(r.gather, g)
		at += n
	}
}

func (s *Shard) keepGathered(pass optim.Pass, b layout.Block, global, n int) {
	for i, rd := range pass.Reduce {
		if rd.Op == optim.Gather && len(s.red.sums[i]) > 0 {
			for j := range n {
				s.red.sums[i][global-b.Lo+j] = float64(s.red.gather[i][j])
			}
		}
	}
}

// partial takes another shard's list.
func (s *Shard) partial(m *wire.Message, now time.Duration) {
	defer m.Release()
	if m.Job != s.cfg.Job || m.Timeline != s.led.Timeline || s.phase != running || int(m.Shard) >= s.cfg.Shards || int(m.Shard) == s.cfg.ID {
		return
	}
	cur := s.chunks[0].version
	if m.Step < cur || m.Step > cur+1 || wire.Checksum(m.Tail) != m.CRC || int(m.Count)*8 != len(m.Tail) {
		return
	}
	if int(m.Shard) < len(s.led.Epochs) && m.Epoch != s.led.Epochs[m.Shard] {
		return
	}
	if s.red.lists == nil {
		s.red.lists = map[partKey][]float64{}
		for range s.scratchCount() {
			s.red.scratch = append(s.red.scratch, make([]float32, s.n))
		}
	}
	k := partKey{m.Step, int(m.Pass), int(m.Shard)}
	if _, _, ok := s.stagePass(k.step, k.stage); !ok || s.red.lists[k] != nil {
		return
	}
	if int(m.Count) != s.listLen(k) {
		return
	}
	list := make([]float64, m.Count)
	wire.CopyFloat64s(list, m.Tail)
	s.red.lists[k] = list
	s.advance(now)
}

// listLen is the length of the list that a shard sends in a stage of a step.
func (s *Shard) listLen(k partKey) int {
	pass, _, _ := s.stagePass(k.step, k.stage)
	n := 0
	s.eachBlock(k.shard, func(b layout.Block, t *layout.Tensor) {
		for i := range pass.Reduce {
			n += pass.Reduce[i].PartialLen(t, b)
		}
	})
	return n
}

// eachBlock calls f for the trained blocks of a shard in ascending order.
func (s *Shard) eachBlock(shard int, f func(layout.Block, *layout.Tensor)) {
	r := s.cfg.Layout.Shards(s.cfg.Shards)[shard]
	var blocks []layout.Block
	for c := r.Lo; c < r.Hi; c++ {
		blocks = s.cfg.Layout.Blocks(blocks[:0], c)
		for _, b := range blocks {
			if t := &s.cfg.Layout.Tensors[b.Tensor]; !t.Buffer {
				f(b, t)
			}
		}
	}
}

// advance goes to the next stage, or takes the step, once all lists are here.
func (s *Shard) advance(now time.Duration) {
	r := &s.red
	for r.active {
		for k := range s.cfg.Shards {
			if r.lists[partKey{r.step, r.stage, k}] == nil {
				return
			}
		}
		s.addLists()
		r.stage++
		if _, _, more := s.stagePass(r.step, r.stage); more {
			s.runStage(now)
			return
		}
		s.finishReduction(now)
	}
}

// addLists adds the lists of all shards in block order.
func (s *Shard) addLists() {
	r := &s.red
	pass, rule, _ := s.stagePass(r.step, r.stage)
	sc := s.scalars(r.step, &s.chunks[0])
	totals := optim.NewTotals(&pass, s.cfg.Layout, func(tensor int) bool { return s.tens[tensor].Info != nil })
	parts := make([][]float64, len(pass.Reduce))
	for shard := range s.cfg.Shards {
		list := r.lists[partKey{r.step, r.stage, shard}]
		s.eachBlock(shard, func(b layout.Block, t *layout.Tensor) {
			for i := range pass.Reduce {
				n := pass.Reduce[i].PartialLen(t, b)
				parts[i], list = list[:n], list[n:]
			}
			totals.Add(b, parts)
		})
	}
	if !rule {
		if len(pass.Reduce) > 0 {
			sc.weights = s.cfg.Agg.Weights(sc.weights[:0], sc.metas, [][][]float64{totals.Model()})
		}
		return
	}
	pi := r.stage - len(s.aggPasses())
	sc.k.Reduced[pi] = totals.Model()
	for i := range s.tens {
		if s.tens[i].Info != nil {
			s.tens[i].Reduced[pi] = totals.Tensor(i)
		}
	}
	sc.k.Coef = sc.k.Coef[:0]
	s.cfg.Rule.Prepare(pi+1, &sc.k)
}

// finishReduction runs the last pass on every chunk: the only one that changes
// parameters, slots and scalars.
func (s *Shard) finishReduction(now time.Duration) {
	r := &s.red
	t := r.step
	sc := s.scalars(t, &s.chunks[0])
	for i := range s.tens {
		for j, x := range s.tens[i].Slots {
			copy(s.tens[i].Next[j], x)
		}
	}
	last := s.lastPass(t)
	s.prepareTensors(last, sc)
	s.wild = -1
	for ci := range s.chunks {
		s.eachSpan(ci, t, sc, func(_ int, b layout.Block, sp *optim.Span[float32]) {
			sp.Scratch = s.spanScratch(sp.At+sp.Tensor.Info.Offset, len(sp.W))
			s.cfg.Rule.Apply(last, &sc.k, sp)
			s.checkSpan(sp)
		})
	}
	for i := range s.tens {
		s.tens[i].Slots, s.tens[i].Next = s.tens[i].Next, s.tens[i].Slots
	}
	r.active = false
	for ci := range s.chunks {
		if s.finishChunk(ci, now); s.broken != "" {
			return
		}
	}
	for k := range r.lists {
		if k.step+1 < t+1 { // a peer may still be closing step t: keep its lists
			delete(r.lists, k)
		}
	}
	s.startReduction(now)
}

// askAfter is how long a shard waits for another's list before it asks for it.
const askAfter = 100 * time.Millisecond

func (s *Shard) repeatPartials(now time.Duration) {
	r := &s.red
	if !r.active || now-r.since < askAfter {
		return
	}
	for k := range s.cfg.Shards {
		if r.lists[partKey{r.step, r.stage, k}] == nil {
			h := s.header(wire.AskPartial)
			h.Rank, h.Step, h.Pass = uint32(k), r.step, uint8(r.stage)
			s.outs = append(s.outs, Out{Kind: ToPeers, H: h})
		}
	}
}

// askedPartial sends this shard's list again to whoever missed it.
func (s *Shard) askedPartial(m *wire.Message) {
	if int(m.Rank) != s.cfg.ID || m.Timeline != s.led.Timeline || s.phase != running {
		return
	}
	if s.red.lists[partKey{m.Step, int(m.Pass), s.cfg.ID}] != nil {
		s.sendPartial(m.Step, int(m.Pass))
	}
}
