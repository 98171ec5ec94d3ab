package shard

import (
	"slices"
	"time"

	"tributary/aggregate"
	"tributary/comm/wire"
	"tributary/layout"
	"tributary/optim"
)

// stepScalars are the scalars of one step: computed once, logged, and the same
// on every shard because every shard computes them from the same headers.
type stepScalars struct {
	step    uint64 // index of the step; k.T is step+1
	ready   bool
	k       optim.Step
	weights []float64
	metas   []aggregate.Meta
}

type scratch struct {
	blocks []layout.Block
	in     [][]float32
	half   [][]uint16
	parts  parts
	g      [optim.NumRoles][]float32
	slots  [][]float32
}

type tensorState = optim.TensorState

func (s *Shard) initTensors() {
	s.tens = make([]tensorState, len(s.cfg.Layout.Tensors))
	for i := range s.tens {
		t := &s.cfg.Layout.Tensors[i]
		if t.Offset+t.Len <= s.lo || t.Offset >= s.lo+s.n {
			continue
		}
		st := tensorState{Info: t}
		for j := range s.spec.Slots {
			var x []float64
			if in := s.spec.Slots[j].In(t); in != nil && in.Class.Values(t) > 0 {
				x = make([]float64, in.Class.Values(t))
			}
			st.Slots = append(st.Slots, x)
			st.Next = append(st.Next, append([]float64(nil), x...))
		}
		s.tens[i] = st
	}
	for r := range s.work.g {
		// The combined gradient of a span stays in the first-level cache, so that
		// decoding, combining and updating are one pass over memory.
		s.work.g[r] = make([]float32, optim.SpanLen)
	}
}

// closeReady closes chunk ci as long as it holds every rank of the next step.
func (s *Shard) closeReady(ci int, now time.Duration) {
	for s.mayClose(ci) {
		s.closeChunk(ci, now)
	}
}

// mayClose says whether chunk ci can take its next step: every rank of the set
// is staged in all its roles (a set of ranks, never a number of messages), and
// nothing holds the step back.
func (s *Shard) mayClose(ci int) bool {
	c := &s.chunks[ci]
	t := c.version
	if s.phase != running || s.broken != "" || t >= s.limit() {
		return false
	}
	if countMessages && c.counted >= s.cfg.Ranks*len(s.roles) {
		return true
	}
	some := false // without anybody there is no step, and no end of such steps
	for rank := range s.cfg.Ranks {
		in := s.led.In(rank)
		if some = some || in; in && !s.has(c, t, rank) {
			return false
		}
	}
	return some && s.statesReady(t+1)
}

// limit is the first step that must not close.
func (s *Shard) limit() uint64 {
	lim := s.cfg.Steps
	if s.held {
		lim = min(lim, s.heldAt)
	}
	if s.led.Stopped {
		lim = min(lim, s.led.StopAt)
	}
	if s.led.Halted || s.led.Finished {
		lim = 0
	}
	return lim
}

// phaseOf is which phase of its update step t is, updateOf the number of that.
func (s *Shard) phaseOf(t uint64) int     { return int(t % s.phases) }
func (s *Shard) updateOf(t uint64) uint64 { return t/s.phases + 1 }

// wants says whether a contribution to step t carries role number ro.
func (s *Shard) wants(t uint64, ro int) bool {
	role := s.roles[ro]
	return slices.Contains(s.spec.Phases[s.phaseOf(t)].Needs, role) ||
		s.spec.Optional != nil && slices.Contains(s.spec.Optional(s.updateOf(t)), role)
}

// head is rank's contribution to step t of chunk c in the first role that the
// step wants; all roles of a contribution have the same weight and loss.
func (s *Shard) head(c *chunk, t uint64, rank int) *entry {
	for ro := range s.roles {
		if s.wants(t, ro) {
			return s.entry(c, t, rank, ro)
		}
	}
	return s.entry(c, t, rank, 0)
}

// has says whether rank's contribution to chunk c at step t is staged.
func (s *Shard) has(c *chunk, t uint64, rank int) bool {
	for ro := range s.roles {
		if !s.wants(t, ro) {
			continue
		}
		e := s.entry(c, t, rank, ro)
		if e.msg == nil || e.step != t {
			return false
		}
	}
	return true
}

// closeChunk takes one step on one chunk: combine in rank order, update,
// acknowledge, publish.
func (s *Shard) closeChunk(ci int, now time.Duration) {
	c := &s.chunks[ci]
	t := c.version
	sc := s.scalars(t, c)
	if clock := s.cfg.Clock; clock != nil {
		t0 := clock()
		s.apply(ci, t, sc)
		s.stats.UpdateNanos += uint64(clock() - t0)
	} else {
		s.apply(ci, t, sc)
	}
	s.finishChunk(ci, now)
}

// finishChunk makes version t+1 of chunk ci public after its update ran.
func (s *Shard) finishChunk(ci int, now time.Duration) {
	c := &s.chunks[ci]
	t := c.version
	if s.wild >= 0 {
		s.halt(s.wild, t)
		return
	}
	if s.cfg.ID == 0 && ci == 0 && s.phaseOf(t) == 0 {
		s.noteLoss(t/s.phases, s.scal[t%uint64(len(s.scal))].k.Loss)
	}
	s.logClose(ci, t)
	c.version++
	s.stats.SkewNanos += uint64(max(0, now-c.first))
	c.counted, c.first = 0, 0
	s.stats.Applied++
	s.lastAdv, s.dirty = now, true
	for rank := range s.cfg.Ranks {
		for ro := range s.roles {
			e := s.entry(c, t, rank, ro)
			if e.msg == nil || e.step != t {
				continue
			}
			if s.cfg.Mode == Streaming {
				s.ack(e.member.Worker, &e.msg.Header, wire.LevelApplied)
			}
			e.drop()
		}
	}
	s.keepEval(ci)
	s.captureChunk(ci)
	s.publish(ci)
}

// scalars returns the scalars of step t. They come from the headers of the
// contributions to chunk c; all chunks of a contribution carry the same.
func (s *Shard) scalars(t uint64, c *chunk) *stepScalars {
	if s.scal == nil {
		s.scal = make([]stepScalars, s.depth()+1)
	}
	sc := &s.scal[t%uint64(len(s.scal))]
	if sc.ready && sc.step == t {
		return sc
	}
	prev := s.model
	if before := &s.scal[(t+uint64(len(s.scal))-1)%uint64(len(s.scal))]; before != sc && before.ready && before.step+1 == t {
		prev = before.k.Next
	}
	sc.step, sc.ready = t, true
	sc.metas = sc.metas[:0]
	for rank := range s.cfg.Ranks {
		m := aggregate.Meta{Rank: rank, Null: true}
		if e := s.head(c, t, rank); e.msg != nil && e.step == t && s.led.In(rank) {
			m = aggregate.Meta{Rank: rank, Examples: e.msg.Examples, Loss: e.msg.Loss,
				Staleness: t - min(t, e.msg.Pulled), Null: e.msg.Encoding == wire.Null}
		}
		sc.metas = append(sc.metas, m)
	}
	s.computeScalars(sc, s.updateOf(t), s.phaseOf(t), prev)
	return sc
}

// computeScalars fills the weights and the rule's scalars for a phase of update
// number n.
func (s *Shard) computeScalars(sc *stepScalars, n uint64, phase int, model []float64) {
	sc.weights = s.cfg.Agg.Weights(sc.weights[:0], sc.metas, nil)
	k := &sc.k
	k.T, k.Phase, k.LR = n, phase, s.cfg.LR(n)
	k.Loss, k.Examples = 0, 0
	for i, m := range sc.metas {
		if !m.Null {
			k.Loss += float64(sc.weights[i] * m.Loss)
			k.Examples += m.Examples
		}
	}
	k.Model = append(k.Model[:0], model...)
	k.Next = append(k.Next[:0], model...)
	k.Coef = k.Coef[:0]
	k.Reduced = nil
	s.cfg.Rule.Prepare(0, k)
}

// apply runs the last (for most rules the only) pass of the rule over chunk
// ci, from version t to t+1.
func (s *Shard) apply(ci int, t uint64, sc *stepScalars) {
	last := s.lastPass(t)
	s.wild = -1
	s.eachSpan(ci, t, sc, func(_ int, _ layout.Block, sp *optim.Span[float32]) {
		s.cfg.Rule.Apply(last, &sc.k, sp)
		s.checkSpan(sp)
	})
}

// checkSpan remembers the first parameter that an update made non-finite, while
// the span is still in the cache.
func (s *Shard) checkSpan(sp *optim.Span[float32]) {
	if s.wild >= 0 {
		return
	}
	if i := wire.FirstNonFinite(sp.Out); i >= 0 {
		s.wild = sp.Tensor.Info.Offset + sp.At + i
	}
}

func (s *Shard) passes(t uint64) []optim.Pass { return s.spec.Phases[s.phaseOf(t)].Passes }

func (s *Shard) lastPass(t uint64) int { return len(s.passes(t)) - 1 }

// eachSpan combines the contributions to chunk ci span by span and calls f.
func (s *Shard) eachSpan(ci int, t uint64, sc *stepScalars, f func(bi int, b layout.Block, sp *optim.Span[float32])) {
	w := &s.work
	w.blocks = s.cfg.Layout.Blocks(w.blocks[:0], s.cfg.Chunks.Lo+ci)
	src, dst := s.bufs[(t-uint64(s.phaseOf(t)))%s.keep()], s.bufs[(t+1)%s.keep()]
	parts := s.parts(ci, t)
	var sp optim.Span[float32]
	for bi, b := range w.blocks {
		ts := &s.tens[b.Tensor]
		if ts.Info.Buffer {
			copy(dst[b.Lo-s.lo:b.Hi-s.lo], src[b.Lo-s.lo:b.Hi-s.lo])
			continue
		}
		if parts != nil { // what nobody names stays as it is
			copy(dst[b.Lo-s.lo:b.Hi-s.lo], src[b.Lo-s.lo:b.Hi-s.lo])
		}
		for lo := b.Lo; lo < b.Hi; {
			hi := min(lo+optim.SpanLen, b.Hi)
			if parts != nil {
				if lo, hi = parts.next(lo, b.Hi); lo >= b.Hi {
					break
				}
			}
			for ro, role := range s.roles {
				if sp.G[role] = nil; s.wants(t, ro) {
					sp.G[role] = w.g[role][:hi-lo]
					s.combine(sp.G[role], ci, t, ro, lo, hi, sc.weights)
				}
			}
			sp.Tensor, sp.At, sp.Block, sp.FirstRow = ts, lo-ts.Info.Offset, b, optim.FirstRow(ts.Info, b)
			sp.W, sp.Out = src[lo-s.lo:hi-s.lo], dst[lo-s.lo:hi-s.lo]
			w.slots = w.slots[:0]
			for i := range s.slots {
				w.slots = append(w.slots, s.span(i, b.Tensor, lo, hi))
			}
			sp.Slots = w.slots
			f(bi, b, &sp)
			lo = hi
		}
	}
}

// combine overwrites g with the combination of what all ranks pushed in role
// number ro for parameters lo to hi−1 of chunk ci.
func (s *Shard) combine(g []float32, ci int, t uint64, ro, lo, hi int, weights []float64) {
	c, at := &s.chunks[ci], s.cfg.Layout.Chunk(s.cfg.Chunks.Lo+ci).Lo
	w := &s.work
	if s.cfg.Half {
		w.half = w.half[:0]
		for rank := range s.cfg.Ranks {
			var v []uint16
			if e := s.entry(c, t, rank, ro); s.counts(e, rank, t) {
				v = e.half[lo-at : hi-at]
			}
			w.half = append(w.half, v)
		}
		s.cfg.Agg.CombineHalf(g, w.half, weights)
		return
	}
	w.in = w.in[:0]
	for rank := range s.cfg.Ranks {
		var v []float32
		if e := s.entry(c, t, rank, ro); s.counts(e, rank, t) {
			v = e.values(lo-at, hi-at)
		}
		w.in = append(w.in, v)
	}
	s.cfg.Agg.Combine(g, w.in, weights)
}

// counts says whether e is part of the update being made: rank's numbers for
// step t, or, in an asynchronous job, the one contribution being applied.
func (s *Shard) counts(e *entry, rank int, t uint64) bool {
	if e.msg == nil || e.msg.Encoding == wire.Null {
		return false
	}
	if s.cfg.Mode == Async {
		return rank == s.only && e.step == s.applied[rank]
	}
	return e.step == t
}

// publish hands out chunk ci at its newest version: to everyone when the job
// broadcasts, else to those who asked.
func (s *Shard) publish(ci int) {
	c := &s.chunks[ci]
	if s.cfg.Broadcast {
		h, tail := s.params(ci, c.version)
		s.outs = append(s.outs, Out{Kind: ToWorkers, H: h, Tail: tail})
		s.stats.BytesOut += uint64(len(tail))
		c.parked = c.parked[:0]
		return
	}
	rest := c.parked[:0]
	for _, p := range c.parked {
		if p.version > c.version {
			rest = append(rest, p)
			continue
		}
		if p.version+s.keep() > c.version {
			h, tail := s.params(ci, p.version)
			h.Seq = p.seq
			s.toWorker(p.worker, h, tail)
		}
	}
	c.parked = rest
}

// params is the message that carries version v of chunk ci.
func (s *Shard) params(ci int, v uint64) (wire.Header, []byte) {
	r := s.cfg.Layout.Chunk(s.cfg.Chunks.Lo + ci)
	return s.numbers(ci, v, s.bufs[v%s.keep()][r.Lo-s.lo:r.Hi-s.lo])
}

// numbers is the message that carries x as version v of chunk ci.
func (s *Shard) numbers(ci int, v uint64, x []float32) (wire.Header, []byte) {
	tail := wire.Bytes32(x)
	h := s.header(wire.Params)
	h.Chunk, h.Step, h.Count, h.CRC = uint32(s.cfg.Chunks.Lo+ci), v, uint32(len(x)), wire.Checksum(tail)
	h.Chunks = uint32(s.cfg.Layout.Chunks())
	return h, tail
}

func (s *Shard) noteLoss(step uint64, loss float64) {
	if len(s.losses) == 0 || s.lossLo+uint64(len(s.losses)) != step {
		s.losses, s.lossLo = s.losses[:0], step
	}
	s.losses = append(s.losses, loss)
	if len(s.losses) > maxLosses {
		n := copy(s.losses, s.losses[len(s.losses)-maxLosses/2:])
		s.lossLo += uint64(len(s.losses) - n)
		s.losses = s.losses[:n]
	}
}
