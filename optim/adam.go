package optim

import "math"

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
	w := s.W
	n := len(w)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	out, g, m, v := s.Out[:n], s.G[Grad][:n], s.Slots[0][:n], s.Slots[1][:n]
	step, root := T(k.Coef[0]), T(k.Coef[1])
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	eps, wd := T(r.eps), T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	for i, wi := range w {
		gi := g[i] + T(wd*wi)
		mi := T(b1*m[i]) + T(a1*gi)
		vi := T(b2*v[i]) + T(T(a2*gi)*gi)
		m[i], v[i] = mi, vi
		d := T(T(math.Sqrt(float64(vi)))*root) + eps
		out[i] = wi - T(step*mi)/d
	}
}
