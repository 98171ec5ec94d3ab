package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:   "adamw",
		Doc:    "Adam with decoupled weight decay",
		Paper:  "Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101; pytorch/pytorch torch/optim/adamw.py",
		Hypers: append(adamHypers(1e-3, 1e-8, 0.01, "decoupled decay: w shrinks by lr·weight_decay"), amsgradFlag()),
		New32:  newAdamW[float32],
		New64:  newAdamW[float64],
	})
}

// adamW is AdamW. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it does, for
// every element,
//
//	w ← w·(1 − lr·λ)
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	w ← w − (lr/c₁) · m / (√v/√c₂ + ε)
//
// As in PyTorch, and unlike the paper, the decay is scaled by the learning
// rate and not by the schedule's multiplier alone. Tensors marked NoDecay have
// λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other. Apply does not allocate.
//
// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
// Algorithm 2, arXiv:1711.05101.
type adamW[T Float] struct {
	adamHyper
	spec Spec
}

func newAdamW[T Float](v Values) (Rule[T], error) {
	if v.Bool("amsgrad") {
		return newAMSGradW[T](v)
	}
	return &adamW[T]{adamValues(v), elementWise("adamw", moments()...)}, nil
}

// Spec implements [Rule].
func (r *adamW[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adamW[T]) Prepare(_ int, k *Step) {
	step := k.LR / biasCorrection(r.b1, k.T)
	root := 1 / math.Sqrt(biasCorrection(r.b2, k.T))
	k.Coef = append(k.Coef[:0], step, root, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *adamW[T]) Apply(_ int, k *Step, s *Span[T]) {
	c := adamCoef[T](&r.adamHyper, k, T(k.Coef[2]))
	if s.Tensor.Info.NoDecay {
		c.Decay = 1
	}
	vec.AdamW(s.Out, s.W, s.G[Grad], s.Slots[0], s.Slots[1], &c)
}
