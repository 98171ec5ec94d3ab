package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:   "lamb",
		Doc:    "Adam with a trust ratio per tensor, for large batches",
		Paper:  "You et al., ICLR 2020, arXiv:1904.00962; tensorflow/addons lamb.py",
		Hypers: adamHypers(1e-3, 1e-6, 0, "decoupled decay, part of the step whose norm is taken"),
		New32:  newLAMB[float32],
		New64:  newLAMB[float64],
	})
}

// lamb is LAMB. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it does, for every
// tensor,
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	u = (m/c₁) / (√(v/c₂) + ε) + λ·w
//	r = ‖w‖/‖u‖ where both norms are above 0, else 1
//	w ← w − lr·r·u
//
// The norms run over the whole tensor, wherever its parts live: pass 0 adds up
// the squares of w and u in float64, pass 1 computes u again and takes the
// step. Nothing is stored in between, because recomputing u is cheaper than
// writing and reading it. ‖w‖ is not clamped (φ is the identity). Quotients by
// c₁ and c₂ are products with their reciprocals. Tensors marked NoDecay have
// λ = 0; the trust ratio applies to them as well.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and, through the norm, all of w's tensor. Apply
// does not allocate.
//
// You et al., "Large Batch Optimization for Deep Learning", ICLR 2020,
// Algorithm 2 of the last version, arXiv:1904.00962; as tensorflow/addons.
type lamb[T Float] struct {
	adamHyper
	spec Spec
}

// Indices of lamb's sums.
const (
	lambWW = iota
	lambUU
)

func newLAMB[T Float](v Values) (Rule[T], error) {
	spec := elementWise("lamb", moments()...)
	spec.Phases[0].Passes = []Pass{
		{Reduce: []Reduction{{Name: "norms", Op: Sum, Over: Tensor, Width: 2}}},
		{},
	}
	return &lamb[T]{adamValues(v), spec}, nil
}

// Spec implements [Rule].
func (r *lamb[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule]. Both passes use the same scalars.
func (r *lamb[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR, 1/biasCorrection(r.b1, k.T), 1/biasCorrection(r.b2, k.T))
}

// Apply implements [Rule].
func (r *lamb[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	h1, h2 := T(k.Coef[1]), T(k.Coef[2])
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	eps, wd := T(r.eps), T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	var step T
	if pass == 1 {
		checkLen(n, len(s.Out))
		step = finite[T](float64(k.Coef[0] * trustRatio(s.Tensor.Reduced[0][0])))
	}
	var buf [3][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, m, v := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		u, newM, newV := buf[0][:hi-lo], m, v
		if pass == 0 {
			newM, newV = buf[1][:hi-lo], buf[2][:hi-lo]
		}
		vec.Axpby(newM, b1, m, a1, g)
		vec.AxpbySquare(newV, b2, v, a2, g)
		root := buf[2][:hi-lo]
		vec.RootOfScaled(root, newV, h2, eps)
		vec.Scale(u, h1, newM)
		vec.Div(u, u, root)
		vec.AddScaled(u, u, wd, w)
		if pass == 0 {
			s.Sums[0][lambWW] += vec.Dot(w, w)
			s.Sums[0][lambUU] += vec.Dot(u, u)
		} else {
			vec.SubScaled(s.Out[lo:hi], w, step, u)
		}
	}
}

// trustRatio is ‖w‖/‖u‖, or 1 where either is 0, from the sums of squares. A
// NaN stays one, so that it is found before anything is published.
func trustRatio(sums []float64) float64 {
	if sums[lambWW] == 0 || sums[lambUU] == 0 {
		return 1
	}
	return math.Sqrt(sums[lambWW]) / math.Sqrt(sums[lambUU])
}
