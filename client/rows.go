package client

import (
	"fmt"
	"slices"

	"tributary/layout"
)

// Rows collects the gradient of a batch that touches few rows of large tables,
// for a row-sparse [Contribution]: rows that are named twice are added up, as
// the rules want, and rows that are named with a zero gradient count as
// touched. It is reused from step to step, once the contribution made of it is
// applied; it is not safe for concurrent use.
type Rows struct {
	l    *layout.Layout
	grad []float32
	runs []layout.Range
}

// NewRows returns an empty gradient for a model.
func NewRows(l *layout.Layout) *Rows { return &Rows{l: l, grad: make([]float32, l.P)} }

// Add adds g to the gradient of one row of a tensor: one index of its first
// dimension, so of a vector row 0 is all of it. g is copied.
func (r *Rows) Add(tensor string, row int, g []float32) error {
	i := slices.IndexFunc(r.l.Tensors, func(t layout.Tensor) bool { return t.Name == tensor })
	if i < 0 {
		return fmt.Errorf("rows: the model has no tensor %q", tensor)
	}
	t := &r.l.Tensors[i]
	n := t.RowLen()
	if row < 0 || row >= t.Len/n {
		return fmt.Errorf("rows: row %d of tensor %q, which has %d", row, tensor, t.Len/n)
	}
	if len(g) != n {
		return fmt.Errorf("rows: %d numbers for a row of %d of tensor %q", len(g), n, tensor)
	}
	lo := t.Offset + row*n
	for j, x := range g {
		r.grad[lo+j] += x
	}
	r.runs = append(r.runs, layout.Range{Lo: lo, Hi: lo + n})
	return nil
}

// Gradient returns the numbers and the runs of parameters that were named, for
// Contribution.Grad and Runs. Both belong to r.
func (r *Rows) Gradient() (grad []float32, runs []layout.Range) {
	slices.SortFunc(r.runs, func(a, b layout.Range) int { return a.Lo - b.Lo })
	merged := r.runs[:0]
	for _, x := range r.runs {
		if n := len(merged); n > 0 && x.Lo <= merged[n-1].Hi {
			merged[n-1].Hi = max(merged[n-1].Hi, x.Hi)
			continue
		}
		merged = append(merged, x)
	}
	if r.runs = merged; merged == nil {
		return r.grad, []layout.Range{} // nothing, not everything
	}
	return r.grad, merged
}

// Reset empties r, in time proportional to what it held.
func (r *Rows) Reset() {
	for _, x := range r.runs {
		clear(r.grad[x.Lo:x.Hi])
	}
	r.runs = r.runs[:0]
}
