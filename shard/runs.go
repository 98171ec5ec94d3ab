package shard

import (
	"slices"
	"unsafe"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/optim"
)

// run is a run of parameters of a chunk that a row-sparse contribution names;
// at is the index of its first value. It is small because runs stay while their
// contribution is staged.
type run struct{ lo, hi, at uint32 }

// RowsBytes is the most memory that a parameter takes in a staged row-sparse
// contribution: every second one is a run of its own, with 4 bytes of number and
// 8 of run in the tail and a [run] beside it.
const RowsBytes = (4 + 8 + int64(unsafe.Sizeof(run{}))) / 2

// viewRuns reads the tail of a row-sparse push to a chunk of n parameters.
func viewRuns(m *wire.Message, n int) ([]run, []float32, error) {
	rs, values, err := wire.DecodeRuns(m.Tail, m.Count, n)
	if err != nil {
		return nil, nil, err
	}
	runs, at := make([]run, len(rs)), uint32(0)
	for i, r := range rs {
		runs[i] = run{uint32(r.Lo), uint32(r.Hi), at}
		at += uint32(r.Hi - r.Lo)
	}
	return runs, viewFloat32(values), nil
}

// values are the entry's for parameters lo to hi−1 of the chunk, which are all
// in one of its runs or in none: nil then.
func (e *entry) values(lo, hi int) []float32 {
	if e.msg.Encoding != wire.Rows {
		return e.vals[lo:hi]
	}
	i, _ := slices.BinarySearchFunc(e.runs, lo, func(r run, lo int) int { return int(r.hi) - lo - 1 })
	if i == len(e.runs) || int(e.runs[i].lo) > lo {
		return nil
	}
	first := int(e.runs[i].lo) - int(e.runs[i].at)
	return e.vals[lo-first : hi-first]
}

// parts are the stretches, in global parameters, into which the borders of all
// ranks' runs cut a chunk, without those that no rank names. Of each stretch a
// rank names all or nothing.
type parts struct {
	list []layout.Range
	cuts []int
}

// parts cuts chunk ci for step t; nil means that every rank names all of it.
func (s *Shard) parts(ci int, t uint64) *parts {
	if !s.spec.Runs {
		return nil
	}
	c, cr := &s.chunks[ci], s.cfg.Layout.Chunk(s.cfg.Chunks.Lo+ci)
	p := &s.work.parts
	p.list, p.cuts = p.list[:0], p.cuts[:0]
	dense := false
	for rank := range s.cfg.Ranks {
		e := s.head(c, t, rank)
		if !s.counts(e, rank, t) {
			continue
		}
		if e.msg.Encoding != wire.Rows {
			dense = true
			continue
		}
		for _, r := range e.runs {
			p.cuts = append(p.cuts, int(r.lo), int(r.hi))
		}
	}
	if len(p.cuts) == 0 && (dense || !s.anyRuns(c, t)) {
		return nil
	}
	if dense {
		p.cuts = append(p.cuts, 0, cr.Len())
	}
	slices.Sort(p.cuts)
	p.cuts = slices.Compact(p.cuts)
	for i := 1; i < len(p.cuts); i++ {
		if lo, hi := p.cuts[i-1], p.cuts[i]; dense || s.named(c, t, lo, hi) {
			p.list = append(p.list, layout.Range{Lo: cr.Lo + lo, Hi: cr.Lo + hi})
		}
	}
	return p
}

// anyRuns says whether some rank pushed runs, if only none.
func (s *Shard) anyRuns(c *chunk, t uint64) bool {
	for rank := range s.cfg.Ranks {
		if e := s.head(c, t, rank); s.counts(e, rank, t) && e.msg.Encoding == wire.Rows {
			return true
		}
	}
	return false
}

// named says whether a rank names parameters lo to hi−1 of chunk c.
func (s *Shard) named(c *chunk, t uint64, lo, hi int) bool {
	for rank := range s.cfg.Ranks {
		if e := s.head(c, t, rank); s.counts(e, rank, t) && e.values(lo, hi) != nil {
			return true
		}
	}
	return false
}

// next is the first stretch from lo on, cut to at most a span: empty and behind
// end if there is none before it.
func (p *parts) next(lo, end int) (int, int) {
	i, _ := slices.BinarySearchFunc(p.list, lo, func(r layout.Range, lo int) int { return r.Hi - lo - 1 })
	if i == len(p.list) {
		return end, end
	}
	r := p.list[i]
	lo = max(lo, r.Lo)
	return lo, min(lo+optim.SpanLen, r.Hi, end)
}
