package aggregate

import (
	"tributary/internal/vec"
	"tributary/optim"
)

// mean is the weighted mean
//
//	out = Σᵢ wᵢ·inᵢ   with wᵢ = 1/m (uniform) or nᵢ/Σn (examples)
//
// over the contributions that are not null, added in rank order. Weights are
// float64 and rounded to T before the product; one contribution of weight 1
// passes through bit for bit.
//
// A contribution weighed by its examples that stands for none is a null one:
// weight 0, and left out by the caller's in[i] == nil or multiplied by 0. If
// no contribution stands for any example, all weights are 0.
//
// out may not overlap any of in. A NaN or Inf reaches the same element of out
// and no other. Combine does not allocate.
type mean[T optim.Float] struct {
	byExamples bool
}

var meanSpec = Spec{Name: "mean", Coordinate: true}

// Spec implements [Rule].
func (*mean[T]) Spec(int) *Spec { return &meanSpec }

// Weights implements [Rule].
func (r *mean[T]) Weights(dst []float64, ms []Meta, _ [][][]float64) []float64 {
	total := 0.0
	for i := range ms {
		total += r.mass(&ms[i])
	}
	dst = dst[:0]
	for i := range ms {
		w := 0.0
		if total > 0 {
			w = r.mass(&ms[i]) / total
		}
		dst = append(dst, w)
	}
	return dst
}

// mass is a contribution's weight before division by the total.
func (r *mean[T]) mass(m *Meta) float64 {
	switch {
	case m.Null:
		return 0
	case !r.byExamples:
		return 1
	case m.Examples > 0: // false for NaN
		return m.Examples
	}
	return 0
}

// Pass implements [Rule]; a mean has no passes.
func (*mean[T]) Pass(int, [][]T, [][]float64) { panic("aggregate: mean has no passes") }

// Combine implements [Rule].
func (*mean[T]) Combine(out []T, in [][]T, w []float64) {
	vec.Combine(out, in, w)
}

// CombineHalf implements [Rule].
func (*mean[T]) CombineHalf(out []T, in [][]uint16, w []float64) {
	vec.CombineHalf(out, in, w)
}
