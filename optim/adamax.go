package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:   "adamax",
		Doc:    "Adam with a decaying maximum of gradients in place of the second moment",
		Paper:  "Kingma and Ba, ICLR 2015, arXiv:1412.6980; pytorch/pytorch torch/optim/adamax.py",
		Hypers: adamHypers(2e-3, 1e-8, 0, "coupled (L2) decay, added to the gradient"),
		New32:  newAdaMax[float32],
		New64:  newAdaMax[float64],
	})
}

// adaMax is AdaMax. With decay λ it does, for every element,
//
//	g ← g + λ·w
//	m ← β₁·m + (1−β₁)·g
//	u ← max(β₂·u, |g| + ε)
//	w ← w − lr/(1 − β₁ᵗ) · m/u
//
// Epsilon stands inside the maximum. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and u and no other. Apply does not allocate.
//
// Kingma and Ba, "Adam", ICLR 2015, Algorithm 2, arXiv:1412.6980, which has no
// epsilon; as pytorch/pytorch torch/optim/adamax.py.
type adaMax[T Float] struct {
	adamHyper
	spec Spec
}

func newAdaMax[T Float](v Values) (Rule[T], error) {
	return &adaMax[T]{adamValues(v), elementWise("adamax", Slot{Name: "m"}, Slot{Name: "u"})}, nil
}

// Spec implements [Rule].
func (r *adaMax[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adaMax[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR/biasCorrection(r.b1, k.T))
}

// Apply implements [Rule].
func (r *adaMax[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	step, wd := T(k.Coef[0]), T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, m, u, g := s.W[lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi], buf[:hi-lo]
		vec.AddScaled(g, s.G[Grad][lo:hi], wd, w)
		vec.Axpby(m, T(r.b1), m, T(1-r.b1), g)
		vec.Abs(g, g)
		vec.AddConst(g, g, T(r.eps))
		vec.Scale(u, T(r.b2), u)
		vec.Max(u, u, g)
		vec.SubQuotient(s.Out[lo:hi], w, step, m, u)
	}
}
