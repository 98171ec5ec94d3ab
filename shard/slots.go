package shard

import (
	"slices"

	"tributary/layout"
	"tributary/optim"
)

// elements is one slot of the rule with a value per parameter. A slot that only
// some tensors have takes memory for those alone: at[tensor] is then where the
// tensor's part begins in data, or −1; a nil at means that every parameter of
// the shard has a value, in order. The zero value is a slot without elements.
type elements struct {
	data []float32
	at   []int
}

// makeSlots allocates the slots of the rule.
func (s *Shard) makeSlots() {
	s.slots = make([]elements, len(s.spec.Slots))
	for i := range s.slots {
		sl, e := &s.spec.Slots[i], &s.slots[i]
		switch {
		case !sl.Elements():
		case sl.By == nil:
			e.data = make([]float32, s.n)
		default:
			n := 0
			for ti := range s.cfg.Layout.Tensors {
				t := &s.cfg.Layout.Tensors[ti]
				lo, hi := s.part(t)
				e.at = append(e.at, -1)
				if in := sl.In(t); lo < hi && !t.Buffer && in != nil && in.Class == optim.Element {
					e.at[ti] = n
					n += hi - lo
				}
			}
			e.data = make([]float32, n)
		}
	}
}

// part is the range of t's parameters in this shard, empty if there are none.
func (s *Shard) part(t *layout.Tensor) (lo, hi int) {
	return max(t.Offset, s.lo), min(t.Offset+t.Len, s.lo+s.n)
}

// span are the values of slot i for parameters lo to hi−1 of a tensor; nil if
// the tensor has none.
func (s *Shard) span(i, tensor, lo, hi int) []float32 {
	e := &s.slots[i]
	switch {
	case e.data == nil:
		return nil
	case e.at == nil:
		return e.data[lo-s.lo : hi-s.lo]
	case e.at[tensor] < 0:
		return nil
	}
	first, _ := s.part(&s.cfg.Layout.Tensors[tensor])
	at := e.at[tensor] + lo - first
	return e.data[at : at+hi-lo]
}

// copySlots appends copies of all slots of chunk ci, for a cut.
func (s *Shard) copySlots(parts []layout.Section, ci int) []layout.Section {
	chunk := s.cfg.Chunks.Lo + ci
	r := s.cfg.Layout.Chunk(chunk)
	for i := range s.slots {
		e, name := &s.slots[i], "slot/"+s.spec.Slots[i].Name
		if e.at == nil && e.data != nil {
			parts = append(parts, layout.Section{Name: name, Range: r, F32: slices.Clone(e.data[r.Lo-s.lo : r.Hi-s.lo])})
			continue
		}
		for _, b := range s.cfg.Layout.Blocks(nil, chunk) {
			if x := s.span(i, b.Tensor, b.Lo, b.Hi); x != nil {
				parts = append(parts, layout.Section{Name: name, Range: b.Range, F32: slices.Clone(x)})
			}
		}
	}
	return parts
}

// fillSlot copies the part of p that slot i has here and returns its length.
func (s *Shard) fillSlot(i int, p layout.Section) (n int) {
	e := &s.slots[i]
	if e.at == nil {
		return s.fill(e.data, p)
	}
	for ti, at := range e.at {
		if lo, hi := s.part(&s.cfg.Layout.Tensors[ti]); at >= 0 && len(p.F32) == p.Len() {
			if lo, hi = max(lo, p.Lo), min(hi, p.Hi); lo < hi {
				n += copy(s.span(i, ti, lo, hi), p.F32[lo-p.Lo:])
			}
		}
	}
	return n
}

// evalPoint appends the point of evaluation of chunk ci, whose newest version
// is v: a slot, but for buffers, which have none.
func (s *Shard) evalPoint(dst []float32, ci int, v uint64) []float32 {
	for _, b := range s.cfg.Layout.Blocks(nil, s.cfg.Chunks.Lo+ci) {
		x := s.span(s.eval, b.Tensor, b.Lo, b.Hi)
		if x == nil || s.cfg.Layout.Tensors[b.Tensor].Buffer {
			x = s.bufs[v%s.keep()][b.Lo-s.lo : b.Hi-s.lo]
		}
		dst = append(dst, x...)
	}
	return dst
}
