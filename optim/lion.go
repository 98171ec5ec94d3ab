package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "lion",
		Doc:   "steps of equal size along the sign of an average of gradients, with decoupled weight decay",
		Paper: "Chen et al., NeurIPS 2023, arXiv:2302.06675; google/automl lion/lion_pytorch.py",
		Hypers: []Hyper{
			rate(1e-4),
			pair("betas", 0.9, 0.99, "weights of the average in the direction, and in the average that is kept"),
			number("weight_decay", 0, 0, inf, "decoupled decay: w shrinks by lr·weight_decay"),
		},
		New32: newLion[float32],
		New64: newLion[float64],
	})
}

// lion is Lion. With decay λ it does, for every element,
//
//	w ← w·(1 − lr·λ) − lr·sign(β₁·m + (1−β₁)·g)
//	m ← β₂·m + (1−β₂)·g
//
// The direction uses m from before the step; sign(0) = 0. Tensors marked
// NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN in g reaches the same
// element of w and m and no other; an Inf reaches m alone. Apply does not
// allocate.
//
// Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023,
// Program 1, arXiv:2302.06675; as google/automl lion/lion_pytorch.py.
type lion[T Float] struct {
	spec       Spec
	b1, b2, wd float64
}

func newLion[T Float](v Values) (Rule[T], error) {
	r := &lion[T]{spec: elementWise("lion", Slot{Name: "m"}), wd: v.Float("weight_decay")}
	r.b1, r.b2 = v.Pair("betas")
	return r, nil
}

// Spec implements [Rule].
func (r *lion[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *lion[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *lion[T]) Apply(_ int, k *Step, s *Span[T]) {
	checkLen(len(s.W), len(s.Out), len(s.G[Grad]), len(s.Slots[0]))
	c := vec.LionCoef[T]{
		B1: T(r.b1), A1: T(1 - r.b1), B2: T(r.b2), A2: T(1 - r.b2), Step: -T(k.Coef[0]), Decay: T(k.Coef[1]),
	}
	if s.Tensor.Info.NoDecay {
		c.Decay = 1
	}
	vec.Lion(s.Out, s.W, s.G[Grad], s.Slots[0], &c)
}
