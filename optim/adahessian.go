package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "adahessian",
		Doc:   "Adam with the Hessian's diagonal, as Hutchinson estimates it, in place of the gradient in the second moment",
		Paper: "Yao et al., AAAI 2021, arXiv:2006.00719; amirgholami/adahessian optim_adahessian.py",
		Hypers: append(adamHypers(0.15, 1e-4, 0, "decoupled decay: w shrinks by lr·weight_decay"),
			number("hessian_power", 1, 0, 1, "power of the root of the second moment: 1 is Newton-like, 0 gradient descent")),
		New32: newAdaHessian[float32],
		New64: newAdaHessian[float64],
	})
}

// adaHessian is AdaHessian. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ, decay λ, power p and
// d = |H·z| for random signs z it does, for every element,
//
//	m ← β₁·m + (1−β₁)·g,  h ← β₂·h + (1−β₂)·d²
//	w ← w·(1 − lr·λ) − (lr/c₁) · m / ((√h/√c₂)^p + ε)
//
// d comes with every push, averaged over the last two dimensions of tensors of
// four; no sign of it matters. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN in g or d reaches the
// same element of w and of its moment and no other. Apply does not allocate;
// for p below 1 it takes a power per element, which costs as much as the step of
// some hundred elements for p = 1.
//
// Yao, Gholami, Shen, Mustafa, Keutzer and Mahoney, "ADAHESSIAN: An Adaptive
// Second Order Optimizer for Machine Learning", AAAI 2021, Algorithm 2,
// arXiv:2006.00719; as amirgholami/adahessian optim_adahessian.py.
type adaHessian[T Float] struct {
	adamHyper
	power float64
	spec  Spec
}

func newAdaHessian[T Float](v Values) (Rule[T], error) {
	spec := elementWise("adahessian", Slot{Name: "m"}, Slot{Name: "h"})
	spec.Phases[0].Needs = []Role{Grad, HessDiag}
	spec.AbsHessian = true
	return &adaHessian[T]{adamValues(v), v.Float("hessian_power"), spec}, nil
}

// Spec implements [Rule].
func (r *adaHessian[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adaHessian[T]) Prepare(_ int, k *Step) {
	root := powReal(biasCorrection(r.b2, k.T), -r.power/2)
	k.Coef = append(k.Coef[:0], k.LR/biasCorrection(r.b1, k.T), root, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *adaHessian[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.G[HessDiag]), len(s.Slots[0]), len(s.Slots[1]))
	step, root, shrink := T(k.Coef[0]), T(k.Coef[1]), T(k.Coef[2])
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		m, h, d, out := s.Slots[0][lo:hi], s.Slots[1][lo:hi], buf[:hi-lo], s.Out[lo:hi]
		vec.Axpby(m, T(r.b1), m, T(1-r.b1), s.G[Grad][lo:hi])
		vec.AxpbySquare(h, T(r.b2), h, T(1-r.b2), s.G[HessDiag][lo:hi])
		if r.power == 1 {
			vec.RootScaled(d, h, root, T(r.eps))
		} else {
			powers(d, h, r.power/2)
			vec.ScaleAddConst(d, root, d, T(r.eps))
		}
		vec.Scale(out, shrink, s.W[lo:hi])
		vec.SubQuotient(out, out, step, m, d)
	}
}

// powers is dst = x^p; a NaN stays one, also with p = 0.
func powers[T Float](dst, x []T, p float64) {
	for i, v := range x {
		if v == v {
			v = T(powReal(float64(v), p))
		}
		dst[i] = v
	}
}
