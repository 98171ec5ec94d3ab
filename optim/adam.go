package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:   "adam",
		Doc:    "adaptive moments, with coupled (L2) weight decay",
		Paper:  "Kingma and Ba, ICLR 2015, arXiv:1412.6980; pytorch/pytorch torch/optim/adam.py",
		Hypers: adamHypers(1e-3, 1e-8, 0, "coupled (L2) decay, added to the gradient"),
		New32:  newAdam[float32],
		New64:  newAdam[float64],
	})
}

// adam is Adam. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it does, for every
// element,
//
//	g ← g + λ·w
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	w ← w − (lr/c₁) · m / (√v/√c₂ + ε)
//
// Epsilon is added after the correction of v (Algorithm 1 of the paper; its
// remark on efficiency puts it before). The quotient √v/√c₂ is a product with
// 1/√c₂, which differs from PyTorch in the last bit. Tensors marked NoDecay
// have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other. Where g and m are 0 and ε > 0, w
// stays. Apply does not allocate.
//
// Kingma and Ba, "Adam", ICLR 2015, Algorithm 1, arXiv:1412.6980.
type adam[T Float] struct {
	adamHyper
	spec Spec
}

func newAdam[T Float](v Values) (Rule[T], error) {
	return &adam[T]{adamValues(v), elementWise("adam", moments()...)}, nil
}

// Spec implements [Rule].
func (r *adam[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adam[T]) Prepare(_ int, k *Step) {
	step := k.LR / biasCorrection(r.b1, k.T)
	root := 1 / math.Sqrt(biasCorrection(r.b2, k.T))
	k.Coef = append(k.Coef[:0], step, root)
}

// Apply implements [Rule].
func (r *adam[T]) Apply(_ int, k *Step, s *Span[T]) {
	c := adamCoef[T](&r.adamHyper, k, T(r.wd))
	if s.Tensor.Info.NoDecay {
		c.Decay = 0
	}
	vec.Adam(s.Out, s.W, s.G[Grad], s.Slots[0], s.Slots[1], &c)
}

// adamCoef are the coefficients of a step of size k.Coef[0] with the root of v
// multiplied by k.Coef[1].
func adamCoef[T Float](h *adamHyper, k *Step, decay T) vec.AdamCoef[T] {
	return vec.AdamCoef[T]{
		B1: T(h.b1), A1: T(1 - h.b1), B2: T(h.b2), A2: T(1 - h.b2),
		Step: T(k.Coef[0]), Root: T(k.Coef[1]), Eps: T(h.eps), Decay: decay,
	}
}
