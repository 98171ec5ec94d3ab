package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:   "adamw_paper",
		Doc:    "AdamW as in its paper: the decay follows the schedule and not the learning rate",
		Paper:  "Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101; loshchil/AdamW-and-SGDW adam.lua",
		Hypers: adamHypers(1e-3, 1e-8, 0, "decoupled decay: w shrinks by weight_decay times the schedule's multiplier, whatever lr is"),
		New32:  newAdamWPaper[float32],
		New64:  newAdamWPaper[float64],
	})
}

// adamWPaper is AdamW with the decay of its authors. With c₁ = 1 − β₁ᵗ,
// c₂ = 1 − β₂ᵗ, decay λ and the schedule's multiplier η = lrₜ/lr it does, for
// every element,
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	w ← w·(1 − η·λ) − (lrₜ·√c₂/c₁) · m / (√v + ε)
//
// Epsilon is added before the correction of v. Tensors marked NoDecay have
// λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other. Apply does not allocate.
//
// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
// Algorithm 2, arXiv:1711.05101; as adam.lua.
type adamWPaper[T Float] struct {
	adamHyper
	lr   float64
	spec Spec
}

func newAdamWPaper[T Float](v Values) (Rule[T], error) {
	return &adamWPaper[T]{adamValues(v), v.Float("lr"), elementWise("adamw_paper", moments()...)}, nil
}

// Spec implements [Rule].
func (r *adamWPaper[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adamWPaper[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], hatStep(k.LR, r.b1, r.b2, k.T), 1-float64(multiplier(k.LR, r.lr)*r.wd))
}

// hatStep is lr·√c₂/c₁: the step of an Adam whose epsilon is added before the
// correction of the second moment.
func hatStep(lr, b1, b2 float64, t uint64) float64 {
	return float64(lr*math.Sqrt(biasCorrection(b2, t))) / biasCorrection(b1, t)
}

// Apply implements [Rule].
func (r *adamWPaper[T]) Apply(_ int, k *Step, s *Span[T]) {
	shrink := T(k.Coef[1])
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	hatApply(&r.adamHyper, T(k.Coef[0]), shrink, s)
}

// hatApply is the Adam step with epsilon before the correction, from w·shrink.
func hatApply[T Float](h *adamHyper, step, shrink T, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	b1, a1, b2, a2 := T(h.b1), T(1-h.b1), T(h.b2), T(1-h.b2)
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, out := s.W[lo:hi], s.G[Grad][lo:hi], s.Out[lo:hi]
		m, v, d := s.Slots[0][lo:hi], s.Slots[1][lo:hi], buf[:hi-lo]
		vec.Axpby(m, b1, m, a1, g)
		vec.AxpbySquare(v, b2, v, a2, g)
		vec.RootScaled(d, v, 1, T(h.eps))
		if shrink != 1 {
			vec.Scale(out, shrink, w)
			w = out
		}
		vec.SubQuotient(out, w, step, m, d)
	}
}
