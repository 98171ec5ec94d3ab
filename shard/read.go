package shard

import (
	"math"

	"tributary/comm/wire"
	"tributary/optim"
)

// Latest as the version of a pull asks for whatever a chunk is at.
const Latest = math.MaxUint64

// pull answers with a chunk's parameters at one version, now or when they are
// there. With Hi set it also says at once whom the chunk waits for, which is
// how a worker finds out that its own push was lost.
func (s *Shard) pull(m *wire.Message) {
	s.stats.Pulls++
	ci := int(m.Chunk) - s.cfg.Chunks.Lo
	code := s.current(&m.Header)
	if code == wire.OK && (ci < 0 || ci >= len(s.chunks)) {
		code = wire.ErrBadShape
	}
	if code == wire.OK && s.broken != "" {
		// The failed update has overwritten the oldest version, or, in an
		// asynchronous job, the only one.
		code = wire.ErrHalted
	}
	if code != wire.OK {
		s.refuse(m, code, s.broken)
		return
	}
	c := &s.chunks[ci]
	v := m.Step
	cur := c.version
	if s.cfg.Mode == Async {
		cur = s.updates
	}
	if v == Latest {
		v = cur
	}
	if m.Point == optim.Eval && s.eval >= 0 {
		s.pullEval(m, ci, v, cur)
		return
	}
	switch {
	case v > cur:
		s.park(c, parked{m.Worker, v, m.Seq})
		if m.Hi != 0 {
			s.sayWaiting(m, ci)
		}
	case v+s.keep() <= cur || v < s.floor && s.cfg.Mode != Async:
		s.refuse(m, wire.ErrGone, "")
	default:
		h, tail := s.params(ci, v)
		h.Seq = m.Seq
		s.toWorker(m.Worker, h, tail)
	}
}

// park remembers a pull; a worker has at most one per chunk.
func (s *Shard) park(c *chunk, p parked) {
	for i := range c.parked {
		if c.parked[i].worker == p.worker {
			c.parked[i] = p
			return
		}
	}
	if len(c.parked) < maxParked {
		c.parked = append(c.parked, p)
	}
}

// maxParked bounds the pulls parked on one chunk; who does not fit asks again.
const maxParked = 1 << 12

// sayWaiting tells who asked which ranks chunk ci still lacks.
func (s *Shard) sayWaiting(m *wire.Message, ci int) {
	c := &s.chunks[ci]
	h := s.header(wire.Waiting)
	h.Chunk, h.Step, h.Seq = m.Chunk, c.version, m.Seq
	h.Count = uint32(s.cfg.Ranks)
	s.toWorker(m.Worker, h, s.missing(c))
}

// missing is the bitmap of ranks that chunk c lacks for its next step.
func (s *Shard) missing(c *chunk) []byte {
	bits := make([]byte, (s.cfg.Ranks+7)/8)
	for rank := range s.cfg.Ranks {
		if s.led.In(rank) && !s.has(c, c.version, rank) {
			bits[rank/8] |= 1 << (rank % 8)
		}
	}
	return bits
}

// where answers which step of a rank this shard needs next, so that a worker
// that took the rank over knows where to go on.
func (s *Shard) where(m *wire.Message) {
	if code := s.current(&m.Header); code != wire.OK {
		s.refuse(m, code, "")
		return
	}
	if m.Rank >= uint32(s.cfg.Ranks) {
		s.refuse(m, wire.ErrBadShape, "")
		return
	}
	if m.View > s.led.View {
		// With the next view the shard may drop what it holds of the rank.
		s.refuse(m, wire.ErrAhead, "")
		return
	}
	h := s.header(wire.Here)
	h.Rank, h.Seq = m.Rank, m.Seq
	h.Lo, h.Hi = s.Versions()
	h.Step = s.needs(int(m.Rank))
	s.toWorker(m.Worker, h, nil)
}

// needs is the first step for which some chunk lacks rank's contribution, or
// this shard the state that the rank has after it: whoever has died with the
// only copy of a state cannot be asked for it, so the step is computed again.
func (s *Shard) needs(rank int) uint64 {
	if s.cfg.Mode == Async {
		return s.applied[rank]
	}
	first := uint64(math.MaxUint64)
	for i := range s.chunks {
		c := &s.chunks[i]
		t := c.version
		for t < c.version+uint64(s.depth()) && s.has(c, t, rank) && s.hasState(rank, t+1) {
			t++
		}
		first = min(first, t)
	}
	return first
}
