package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:   "amsgrad",
		Doc:    "Adam with a second moment that never falls",
		Paper:  "Reddi, Kale and Kumar, ICLR 2018, arXiv:1904.09237; pytorch/pytorch torch/optim/adam.py",
		Hypers: adamHypers(1e-3, 1e-8, 0, "coupled (L2) decay, added to the gradient"),
		New32:  newAMSGrad[float32],
		New64:  newAMSGrad[float64],
	})
}

// amsgradFlag is the hyper-parameter that turns a rule into its AMSGrad form.
func amsgradFlag() Hyper {
	return flag("amsgrad", false, "divide by the largest second moment so far, in a third slot")
}

// amsgrad is AMSGrad: Adam, or AdamW if decoupled. With c₁ = 1 − β₁ᵗ,
// c₂ = 1 − β₂ᵗ and decay λ it does, for every element,
//
//	g ← g + λ·w                  (decoupled: w ← w·(1 − lr·λ))
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	v̂ ← max(v̂, v)
//	w ← w − (lr/c₁) · m / (√v̂/√c₂ + ε)
//
// The maximum is taken of v before its correction, as in PyTorch; the paper has
// no correction. The quotient √v̂/√c₂ is a product with 1/√c₂. Tensors marked
// NoDecay have λ = 0. v̂ is the slot vm.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w and of the slots and no other. Apply does not allocate.
//
// Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", ICLR 2018,
// Algorithm 2, arXiv:1904.09237.
type amsgrad[T Float] struct {
	adamHyper
	spec      Spec
	decoupled bool
}

func newAMSGrad[T Float](v Values) (Rule[T], error) {
	return &amsgrad[T]{adamValues(v), elementWise("amsgrad", amsgradSlots()...), false}, nil
}

// newAMSGradW is AdamW with its flag amsgrad.
func newAMSGradW[T Float](v Values) (Rule[T], error) {
	return &amsgrad[T]{adamValues(v), elementWise("adamw", amsgradSlots()...), true}, nil
}

func amsgradSlots() []Slot { return append(moments(), Slot{Name: "vm"}) }

// Spec implements [Rule].
func (r *amsgrad[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *amsgrad[T]) Prepare(_ int, k *Step) {
	step := k.LR / biasCorrection(r.b1, k.T)
	root := 1 / math.Sqrt(biasCorrection(r.b2, k.T))
	k.Coef = append(k.Coef[:0], step, root, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *amsgrad[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]), len(s.Slots[2]))
	step, root := T(k.Coef[0]), T(k.Coef[1])
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	wd, shrink := T(r.wd), T(k.Coef[2])
	if s.Tensor.Info.NoDecay {
		wd, shrink = 0, 1
	}
	var buf [2][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, out := s.W[lo:hi], s.G[Grad][lo:hi], s.Out[lo:hi]
		m, v, vm, d := s.Slots[0][lo:hi], s.Slots[1][lo:hi], s.Slots[2][lo:hi], buf[1][:hi-lo]
		if !r.decoupled {
			g = buf[0][:hi-lo]
			vec.AddScaled(g, s.G[Grad][lo:hi], wd, w)
		}
		vec.Axpby(m, b1, m, a1, g)
		vec.AxpbySquare(v, b2, v, a2, g)
		vec.Max(vm, vm, v)
		vec.RootScaled(d, vm, root, T(r.eps))
		if r.decoupled {
			vec.Scale(out, shrink, w)
			w = out
		}
		vec.SubQuotient(out, w, step, m, d)
	}
}
