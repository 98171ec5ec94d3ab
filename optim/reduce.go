package optim

import (
	"fmt"
	"math"

	"tributary/layout"
)

// width is the number of values per row, column, tensor or model.
func (r *Reduction) width() int { return max(1, r.Width) }

// FirstRow is the row of t that holds the first element of b.
func FirstRow(t *layout.Tensor, b layout.Block) int { return (b.Lo - t.Offset) / t.RowLen() }

// PartialLen is the number of partial values that block b of tensor t
// contributes to r: the length of its Span.Sums, or, for Gather, the number of
// elements it hands out.
func (r *Reduction) PartialLen(t *layout.Tensor, b layout.Block) int {
	if r.Op == Gather {
		return b.Len()
	}
	switch r.Over {
	case Row:
		last := (b.Hi - 1 - t.Offset) / t.RowLen()
		return (last - FirstRow(t, b) + 1) * r.width()
	case Column:
		return t.RowLen() * r.width()
	}
	return r.width()
}

// TotalLen is the number of values of r after adding up, for tensor t (for a
// reduction over the model, t is not used).
func (r *Reduction) TotalLen(t *layout.Tensor) int {
	if r.Op == Gather {
		return t.Len
	}
	switch r.Over {
	case Row:
		return t.Len / t.RowLen() * r.width()
	case Column:
		return t.RowLen() * r.width()
	}
	return r.width()
}

// Start sets partial or total values to where r begins: 0, or −Inf for Max.
func (r *Reduction) Start(x []float64) {
	z := 0.0
	if r.Op == Max {
		z = math.Inf(-1)
	}
	for i := range x {
		x[i] = z
	}
}

// fold takes the partial values of block b into the totals of tensor t.
func (r *Reduction) fold(total []float64, t *layout.Tensor, b layout.Block, part []float64) {
	switch {
	case r.Op == Gather:
		total = total[b.Lo-t.Offset:]
	case r.Over == Row:
		total = total[FirstRow(t, b)*r.width():]
	}
	total = total[:len(part)]
	switch r.Op {
	case Gather:
		copy(total, part)
	case Max:
		for i, p := range part {
			if p > total[i] || p != p { // a NaN must not hide
				total[i] = p
			}
		}
	default:
		for i, p := range part {
			total[i] += p
		}
	}
}

// Totals adds up the partial values that the blocks of a model contribute to
// the reductions of one pass. Blocks arrive in ascending order of (chunk,
// tensor), whichever shards they come from, because float64 addition is not
// associative (docs/consistency.md, C2). The zero value is not usable.
type Totals struct {
	l       *layout.Layout
	reduce  []Reduction
	tensors [][][]float64 // [tensor][reduction]; nil where the reduction is over the model
	model   [][]float64   // [reduction]; nil where it is not
	end     int           // first parameter not yet added
}

// NewTotals returns empty totals of pass p. Totals of tensors outside holds
// are dropped as they arrive, so that a shard keeps only those of the
// tensors it holds a part of; a nil holds keeps all.
func NewTotals(p *Pass, l *layout.Layout, holds func(tensor int) bool) *Totals {
	tt := &Totals{l: l, reduce: p.Reduce, tensors: make([][][]float64, len(l.Tensors)), model: make([][]float64, len(p.Reduce))}
	for ri := range p.Reduce {
		if r := &p.Reduce[ri]; r.Over == Model {
			tt.model[ri] = make([]float64, r.width())
			r.Start(tt.model[ri])
		}
	}
	for ti := range l.Tensors {
		t := &l.Tensors[ti]
		if t.Buffer || holds != nil && !holds(ti) {
			continue
		}
		x := make([][]float64, len(p.Reduce))
		for ri := range p.Reduce {
			if r := &p.Reduce[ri]; r.Over != Model {
				x[ri] = make([]float64, r.TotalLen(t))
				r.Start(x[ri])
			}
		}
		tt.tensors[ti] = x
	}
	return tt
}

// Add takes the partial values of the next block, [reduction][k] as in
// Span.Sums (for Gather the elements as float64). Blocks of buffers have none
// and are left out. Add panics if b is not behind all earlier blocks or if the
// number of values is wrong: values of a peer are checked before with
// [Totals.Check].
func (tt *Totals) Add(b layout.Block, part [][]float64) {
	if err := tt.Check(b, part); err != nil {
		panic("optim: " + err.Error())
	}
	if b.Lo < tt.end {
		panic(fmt.Sprintf("optim: partials of parameter %d arrived after those up to %d", b.Lo, tt.end))
	}
	tt.end = b.Hi
	t := &tt.l.Tensors[b.Tensor]
	for ri := range tt.reduce {
		r := &tt.reduce[ri]
		if r.Over == Model {
			r.fold(tt.model[ri], t, b, part[ri])
		} else if x := tt.tensors[b.Tensor]; x != nil {
			r.fold(x[ri], t, b, part[ri])
		}
	}
}

// Check says whether part has the shape of block b's partial values.
func (tt *Totals) Check(b layout.Block, part [][]float64) error {
	if len(part) != len(tt.reduce) {
		return fmt.Errorf("partials of %d reductions, want %d", len(part), len(tt.reduce))
	}
	for ri := range tt.reduce {
		if n, want := len(part[ri]), tt.reduce[ri].PartialLen(&tt.l.Tensors[b.Tensor], b); n != want {
			return fmt.Errorf("%d partial values of %q, want %d", n, tt.reduce[ri].Name, want)
		}
	}
	return nil
}

// Tensor returns the totals of a tensor, for TensorState.Reduced[pass]: one
// entry per reduction, nil for those over the model.
func (tt *Totals) Tensor(tensor int) [][]float64 { return tt.tensors[tensor] }

// Model returns the totals over the model, for Step.Reduced[pass]: one entry
// per reduction, nil for all others.
func (tt *Totals) Model() [][]float64 { return tt.model }
