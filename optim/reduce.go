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

// lastDims are the lengths of t's last two dimensions; the last but one is 1
// for vectors.
func lastDims(t *layout.Tensor) (rows, cols int) {
	switch n := len(t.Shape); n {
	case 0:
		return 1, 1
	case 1:
		return 1, t.Shape[0]
	default:
		return t.Shape[n-2], t.Shape[n-1]
	}
}

// Values is how many values a slot or reduction of class c has in tensor t:
// 0 for Element and Model, which do not belong to tensors.
func (c Class) Values(t *layout.Tensor) int {
	switch c {
	case Row:
		return t.Len / t.RowLen()
	case Column:
		return t.RowLen()
	case LastRow:
		_, cols := lastDims(t)
		return t.Len / cols
	case LastColumn:
		rows, _ := lastDims(t)
		return t.Len / rows
	case Tensor:
		return 1
	}
	return 0
}

// span is the first index, and the one behind the last, of those values of
// class c that elements lo to hi−1 of tensor t count in.
func (c Class) span(t *layout.Tensor, lo, hi int) (first, end int) {
	switch c {
	case Row:
		return lo / t.RowLen(), (hi-1)/t.RowLen() + 1
	case LastRow:
		_, cols := lastDims(t)
		return lo / cols, (hi-1)/cols + 1
	case LastColumn:
		rows, cols := lastDims(t)
		return lo / (rows * cols) * cols, ((hi-1)/(rows*cols) + 1) * cols
	case Column:
		return 0, t.RowLen()
	}
	return 0, 1
}

// First is the index of the first row or column whose values block b of tensor
// t contributes to.
func (r *Reduction) First(t *layout.Tensor, b layout.Block) int {
	first, _ := r.Over.span(t, b.Lo-t.Offset, b.Hi-t.Offset)
	return first
}

// PartialLen is the number of partial values that block b of tensor t
// contributes to r: the length of its Span.Sums, or, for Gather, the number of
// elements it hands out.
func (r *Reduction) PartialLen(t *layout.Tensor, b layout.Block) int {
	if r.skips(t) {
		return 0
	}
	if r.Op == Gather {
		return b.Len()
	}
	first, end := r.Over.span(t, b.Lo-t.Offset, b.Hi-t.Offset)
	return (end - first) * r.width()
}

// TotalLen is the number of values of r after adding up, for tensor t (for a
// reduction over the model, t is not used).
func (r *Reduction) TotalLen(t *layout.Tensor) int {
	switch {
	case r.Over == Model:
		return r.width()
	case r.skips(t):
		return 0
	case r.Op == Gather:
		return t.Len
	}
	return r.Over.Values(t) * r.width()
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
	case r.skips(t):
		return
	case r.Op == Gather:
		total = total[b.Lo-t.Offset:]
	case r.Over != Tensor && r.Over != Model:
		total = total[r.First(t, b)*r.width():]
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
