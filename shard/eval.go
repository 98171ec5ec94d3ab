package shard

import (
	"slices"

	"tributary/comm/wire"
	"tributary/optim"
)

// evalCopy is the point of evaluation of one chunk at one version.
type evalCopy struct {
	version uint64
	data    []float32
}

// keepEval copies the point of evaluation of chunk ci at the versions where
// workers evaluate: slots hold their newest value only, while training goes on.
func (s *Shard) keepEval(ci int) {
	v := s.chunks[ci].version
	if s.eval < 0 || s.cfg.Mode == Async || s.cfg.EvalEvery == 0 || v%s.cfg.EvalEvery != 0 {
		return
	}
	c := &s.chunks[ci]
	if c.evals == nil {
		c.evals = make([]evalCopy, EvalCopies(s.cfg.Staleness, s.cfg.EvalEvery))
	}
	e := &c.evals[v/s.cfg.EvalEvery%uint64(len(c.evals))]
	e.version, e.data = v, s.evalPoint(e.data[:0], ci, v)
}

// EvalCopies is how many copies of the point of evaluation a shard keeps. Whoever
// evaluates version v owes a contribution to step v + staleness at most, but it may
// be one that is computed again: see [Versions] for how far others can be.
func EvalCopies(staleness int, every uint64) int {
	return int((2*uint64(max(staleness, 0))+1)/every) + 1
}

// pullEval answers with the point of evaluation of chunk ci at version v, which
// is the newest or one of those that were kept.
func (s *Shard) pullEval(m *wire.Message, ci int, v, newest uint64) {
	var x []float32
	switch {
	case v > newest:
		s.refuse(m, wire.ErrAhead, "")
		return
	case v == newest:
		x = s.evalPoint(nil, ci, v)
	default:
		c := &s.chunks[ci]
		i := slices.IndexFunc(c.evals, func(e evalCopy) bool { return e.version == v && len(e.data) > 0 })
		if i < 0 {
			s.refuse(m, wire.ErrGone, "")
			return
		}
		x = c.evals[i].data
	}
	h, tail := s.numbers(ci, v, x)
	h.Seq, h.Point = m.Seq, optim.Eval
	s.toWorker(m.Worker, h, tail)
}
