package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:   "exadam",
		Doc:    "Adam whose corrections of the two moments depend on each other, with the gradient beside the first",
		Paper:  "Adly, arXiv:2412.20302; AhmedMostafa16/EXAdam exadam.py",
		Hypers: adamHypers(1e-3, 1e-8, 0, "decoupled decay: w shrinks by lr·weight_decay"),
		New32:  newEXAdam[float32],
		New64:  newEXAdam[float64],
	})
}

// exadam is EXAdam. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it does, for
// every element,
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	d₁ = 1 + β₂ᵗ · v/(v+ε),  d₂ = 1 + β₁ᵗ · m²/(m²+ε)
//	w ← w·(1 − lr·λ) − (lr/c₁) · (m + g)·d₁ / (√((v/c₂)·d₂) + ε)
//
// The factor √2 of an earlier text of the paper, which the reference still
// defines, is not applied, as there. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other, and so does a gradient whose square
// overflows. ε must be above 0 where g, m and v are 0. Apply does not allocate.
//
// Adly, "EXAdam: The Power of Adaptive Cross-Moments", arXiv:2412.20302.
type exadam[T Float] struct {
	adamHyper
	spec Spec
}

func newEXAdam[T Float](v Values) (Rule[T], error) {
	return &exadam[T]{adamValues(v), elementWise("exadam", moments()...)}, nil
}

// Spec implements [Rule].
func (r *exadam[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *exadam[T]) Prepare(_ int, k *Step) {
	p1, p2 := powInt(r.b1, k.T), powInt(r.b2, k.T)
	k.Coef = append(k.Coef[:0], k.LR/(1-p1), 1/(1-p2), p1, p2, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *exadam[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	c := vec.EXAdamCoef[T]{
		B1: T(r.b1), A1: T(1 - r.b1), B2: T(r.b2), A2: T(1 - r.b2), P1: T(k.Coef[2]), P2: T(k.Coef[3]),
		Step: T(k.Coef[0]), Root: T(k.Coef[1]), Eps: T(r.eps), Decay: T(k.Coef[4]),
	}
	if s.Tensor.Info.NoDecay {
		c.Decay = 1
	}
	vec.EXAdam(s.Out, s.W, s.G[Grad], s.Slots[0], s.Slots[1], &c)
}
