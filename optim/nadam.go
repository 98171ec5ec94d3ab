package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "nadam",
		Doc:   "Adam with Nesterov's momentum, on a schedule of its own",
		Paper: "Dozat, ICLR 2016 workshop; pytorch/pytorch torch/optim/nadam.py, 2.0 and later",
		Hypers: append(adamHypers(2e-3, 1e-8, 0, "coupled (L2) decay, added to the gradient"),
			number("momentum_decay", 4e-3, 0, inf, "how fast the momentum rises from β₁/2 to β₁")),
		New32: newNAdam[float32],
		New64: newNAdam[float64],
	})
}

// nadam is NAdam. With c₂ = 1 − β₂ᵗ, decay λ, momentum_decay ψ,
// μₖ = β₁·(1 − ½·0.96^(k·ψ)) and the scalar Π = μ₁·…·μₜ of the model it does,
// for every element,
//
//	g ← g + λ·w
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	w ← w − lr · ((1−μₜ)/(1−Π)·g + μₜ₊₁/(1−Π·μₜ₊₁)·m) / (√(v/c₂) + ε)
//
// Π is the slot pi before the step times μₜ. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other. Apply does not allocate.
//
// Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop; as
// PyTorch since 2.0, whose earlier versions have a wrong factor.
type nadam[T Float] struct {
	adamHyper
	psi  float64
	spec Spec
}

func newNAdam[T Float](v Values) (Rule[T], error) {
	spec := elementWise("nadam", append(moments(), Slot{Name: "pi", Class: Model, Init: 1})...)
	return &nadam[T]{adamValues(v), v.Float("momentum_decay"), spec}, nil
}

// Spec implements [Rule].
func (r *nadam[T]) Spec() *Spec { return &r.spec }

// mu is the momentum of update t.
func (r *nadam[T]) mu(t uint64) float64 {
	return float64(r.b1 * (1 - float64(0.5*powReal(0.96, float64(float64(t)*r.psi)))))
}

// Prepare implements [Rule].
func (r *nadam[T]) Prepare(_ int, k *Step) {
	now, next := r.mu(k.T), r.mu(k.T+1)
	pi := float64(k.Model[0] * now)
	k.Next[0] = pi
	ofGrad := float64(k.LR*(1-now)) / (1 - pi)
	ofMoment := float64(k.LR*next) / (1 - float64(pi*next))
	k.Coef = append(k.Coef[:0], ofGrad, ofMoment, 1/biasCorrection(r.b2, k.T))
}

// Apply implements [Rule].
func (r *nadam[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	ofGrad, ofMoment, h2 := T(k.Coef[0]), T(k.Coef[1]), T(k.Coef[2])
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	eps, wd := T(r.eps), T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	var buf [2][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, m, v := s.W[lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		g, d := buf[0][:hi-lo], buf[1][:hi-lo]
		vec.AddScaled(g, s.G[Grad][lo:hi], wd, w)
		vec.Axpby(m, b1, m, a1, g)
		vec.AxpbySquare(v, b2, v, a2, g)
		vec.RootOfScaled(d, v, h2, eps)
		vec.Axpby(g, ofGrad, g, ofMoment, m)
		vec.SubQuotient(s.Out[lo:hi], w, 1, g, d)
	}
}
