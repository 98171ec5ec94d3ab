package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "adagrad",
		Doc:   "steps that shrink with the sum of squared gradients, element by element; made for sparse data",
		Paper: "Duchi, Hazan and Singer, JMLR 12, 2011; pytorch/pytorch torch/optim/adagrad.py",
		Hypers: []Hyper{
			rate(0.01),
			number("lr_decay", 0, 0, inf, "the rate of update t is divided by 1 + (t−1)·lr_decay"),
			number("weight_decay", 0, 0, inf, "coupled (L2) decay, added to the gradient"),
			number("initial_accumulator_value", 0, 0, inf, "sum of squares to start from"),
			number("eps", 1e-10, 0, inf, "added to the root of the sum of squares"),
		},
		New32: newAdagrad[float32],
		New64: newAdagrad[float64],
	})
}

// adagrad is Adagrad. With decay λ and lr_decay δ it does, for every element,
//
//	g ← g + λ·w
//	s ← s + g²
//	w ← w − lr/(1 + (t−1)·δ) · g / (√s + ε)
//
// Epsilon is outside the root. It takes runs: elements that no run names keep
// w and s, while t counts all steps. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w and s and no other. Where g and s are 0, ε must be above 0.
// Apply does not allocate.
//
// Duchi, Hazan and Singer, "Adaptive Subgradient Methods", JMLR 12, 2011, as
// pytorch/pytorch torch/optim/adagrad.py.
type adagrad[T Float] struct {
	spec             Spec
	lrDecay, wd, eps float64
}

func newAdagrad[T Float](v Values) (Rule[T], error) {
	spec := elementWise("adagrad", Slot{Name: "s", Init: v.Float("initial_accumulator_value")})
	spec.Runs = true
	return &adagrad[T]{spec, v.Float("lr_decay"), v.Float("weight_decay"), v.Float("eps")}, nil
}

// Spec implements [Rule].
func (r *adagrad[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adagrad[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR/(1+float64(float64(k.T-1)*r.lrDecay)))
}

// Apply implements [Rule].
func (r *adagrad[T]) Apply(_ int, k *Step, s *Span[T]) {
	checkLen(len(s.W), len(s.Out), len(s.G[Grad]), len(s.Slots[0]))
	c := vec.AdagradCoef[T]{Step: T(k.Coef[0]), Decay: T(r.wd), Eps: T(r.eps)}
	if s.Tensor.Info.NoDecay {
		c.Decay = 0
	}
	vec.Adagrad(s.Out, s.W, s.G[Grad], s.Slots[0], &c)
}
