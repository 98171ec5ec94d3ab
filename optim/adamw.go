package optim

import "math"

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
	w := s.W
	n := len(w)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	out, g, m, v := s.Out[:n], s.G[Grad][:n], s.Slots[0][:n], s.Slots[1][:n]
	step, root, shrink := T(k.Coef[0]), T(k.Coef[1]), T(k.Coef[2])
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	eps := T(r.eps)
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	for i, wi := range w {
		gi := g[i]
		mi := T(b1*m[i]) + T(a1*gi)
		vi := T(b2*v[i]) + T(T(a2*gi)*gi)
		m[i], v[i] = mi, vi
		d := T(T(math.Sqrt(float64(vi)))*root) + eps
		out[i] = T(wi*shrink) - T(step*mi)/d
	}
}
