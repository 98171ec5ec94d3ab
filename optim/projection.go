package optim

import (
	"math"

	"tributary/internal/vec"
	"tributary/layout"
)

// projection is what AdamP and SGDP add to their base rules: where the gradient
// of a tensor is nearly orthogonal to its parameters, as it is where their scale
// has no effect on the loss, the part of the update along the parameters is
// taken out, because it would only make them grow.
//
// Tensors of two dimensions and more are looked at in two views: first the rows,
// then the whole as one row. With D the length of a view's rows, u the update:
//
//	cos_r = |⟨g_r, w_r⟩| / (max(‖g_r‖, ε)·max(‖w_r‖, ε))
//	the first view with cos_r < δ/√D for all r is projected:
//	u_r ← u_r − q_r·⟨q_r, u_r⟩,  q_r = w_r/(‖w_r‖ + ε)
//
// and the decay of the tensor is then multiplied by wdRatio. The test takes the
// raw gradient. Four sums per row serve both views.
//
// Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
// Scale-invariant Weights", ICLR 2021, Algorithms 1 and 2, arXiv:2006.08217.
type projection struct{ eps, delta, wdRatio float64 }

// projectionHypers are the hyper-parameters of projection beside eps.
func projectionHypers() []Hyper {
	return []Hyper{
		number("delta", 0.1, 0, inf, "a cosine below delta/√D between gradient and parameters counts as orthogonal"),
		number("wd_ratio", 0.1, 0, inf, "factor of the decay of projected tensors"),
	}
}

func projectionValues(v Values) projection {
	return projection{v.Float("eps"), v.Float("delta"), v.Float("wd_ratio")}
}

// Indices of the sums of a row.
const (
	rowGW = iota
	rowGG
	rowWW
	rowWU
	rowSums
)

// passes are those of a rule with projection.
func (p projection) passes() []Pass {
	return []Pass{{Reduce: []Reduction{{Name: "rows", Op: Sum, Over: Row, Width: rowSums, Only: hasRows}}}, {}}
}

// hasRows says whether projection looks at tensor t at all.
func hasRows(t *layout.Tensor) bool { return len(t.Shape) >= 2 }

// Tensor scalars that decide fills: the factor of the decay, the elements per
// factor (0 for no projection), and the factors ⟨w, u⟩/(‖w‖ + ε)², of which a
// multiple of w is taken from u, per row or for the whole.
const (
	projRatio = iota
	projStride
	projFactors
)

// decide fills ts.Coef from the sums of the rows.
func (p projection) decide(ts *TensorState) {
	t := ts.Info
	ts.Coef = append(ts.Coef[:0], 1, 0)
	if !hasRows(t) {
		return
	}
	rows := ts.Reduced[0][0]
	if p.orthogonal(rows, t.RowLen()) {
		ts.Coef[projRatio], ts.Coef[projStride] = p.wdRatio, float64(t.RowLen())
		for lo := 0; lo < len(rows); lo += rowSums {
			ts.Coef = append(ts.Coef, p.factor(rows[lo:lo+rowSums]))
		}
		return
	}
	var whole [rowSums]float64
	for i, x := range rows {
		whole[i%rowSums] += x
	}
	if p.orthogonal(whole[:], t.Len) {
		ts.Coef[projRatio], ts.Coef[projStride] = p.wdRatio, float64(t.Len)
		ts.Coef = append(ts.Coef, p.factor(whole[:]))
	}
}

// orthogonal is the test over all rows of a view, which have n elements each.
// No sum that is NaN passes.
func (p projection) orthogonal(sums []float64, n int) bool {
	bound := p.delta / math.Sqrt(float64(n))
	for lo := 0; lo < len(sums); lo += rowSums {
		s := sums[lo : lo+rowSums]
		norms := float64(max(math.Sqrt(s[rowGG]), p.eps) * max(math.Sqrt(s[rowWW]), p.eps))
		// Without ε a zero gradient has no cosine; it is orthogonal all the same.
		zero := s[rowGG] == 0 && bound > 0
		if !zero && !(math.Abs(s[rowGW]) < float64(bound*norms)) {
			return false
		}
	}
	return true
}

// factor is ⟨w, u⟩/(‖w‖ + ε)² of a row; 0 where w is.
func (p projection) factor(s []float64) float64 {
	d := math.Sqrt(s[rowWW]) + p.eps
	if d == 0 {
		return 0
	}
	return s[rowWU] / d / d
}

// addRows adds the sums of w's elements, which start at index at of the tensor,
// to the rows of the span.
func addRows[T Float](s *Span[T], at int, w, g, u []T) {
	rowLen := s.Tensor.Info.RowLen()
	for lo := 0; lo < len(w); {
		row := (at + lo) / rowLen
		hi := min((row+1)*rowLen-at, len(w))
		sums := s.Sums[0][(row-s.FirstRow)*rowSums:][:rowSums]
		sums[rowGW] += vec.Dot(g[lo:hi], w[lo:hi])
		sums[rowGG] += vec.Dot(g[lo:hi], g[lo:hi])
		sums[rowWW] += vec.Dot(w[lo:hi], w[lo:hi])
		sums[rowWU] += vec.Dot(w[lo:hi], u[lo:hi])
		lo = hi
	}
}

// project takes from u, whose elements start at index at of the tensor, what
// [projection.decide] found to lie along w.
func project[T Float](ts *TensorState, at int, u, w []T) {
	stride := int(ts.Coef[projStride])
	if stride == 0 {
		return
	}
	for lo := 0; lo < len(u); {
		i := (at + lo) / stride
		hi := min((i+1)*stride-at, len(u))
		vec.SubScaled(u[lo:hi], u[lo:hi], T(ts.Coef[projFactors+i]), w[lo:hi])
		lo = hi
	}
}
