package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "schedule_free_adamw",
		Doc:   "AdamW on an average of iterates in place of a schedule",
		Paper: "Defazio et al., NeurIPS 2024, arXiv:2405.15682; facebookresearch/schedule_free adamw_schedulefree_reference.py",
		Hypers: append([]Hyper{
			rate(0.0025),
			pair("betas", 0.9, 0.999, "weight of the average where gradients are taken, and decay rate of the second moment"),
			number("eps", 1e-8, 0, inf, "added to the root of the second moment"),
			flag("decay_at_z", false, "decay towards 0 of z in place of y"),
			number("inner_momentum", 0, 0, Below1, "decay rate of a first moment in place of the gradient; 0 means none"),
		}, scheduleFreeHypers("decoupled decay: z moves by −lr·weight_decay·y")...),
		New32: newScheduleFreeAdamW[float32],
		New64: newScheduleFreeAdamW[float64],
	})
}

// scheduleFreeAdamW is Schedule-Free AdamW. With c₂ = 1 − β₂ᵗ, decay λ, and lrₜ,
// x and y as in scheduleFree, it does, for every element,
//
//	z ← z − lrₜ·λ·y                    (decay_at_z: ·z)
//	v ← β₂·v + (1−β₂)·g²
//	z ← z − lrₜ·g / (√(v/c₂) + ε)
//
// and then averages with β = β₁. With inner momentum i, m ← i·m + (1−i)·g, and
// m/(1−iᵗ) takes the place of g; the slot m exists only then. Workers take
// gradients at y; x is evaluated and served. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of all slots and of y and no other. Apply does not allocate.
//
// Defazio et al., "The Road Less Scheduled", NeurIPS 2024, Algorithm 1,
// arXiv:2405.15682; as the reference file of facebookresearch/schedule_free.
type scheduleFreeAdamW[T Float] struct {
	scheduleFree
	b2, eps, inner float64
	decayAtZ       bool
}

func newScheduleFreeAdamW[T Float](v Values) (Rule[T], error) {
	b1, b2 := v.Pair("betas")
	slots := []Slot{{Name: "v"}}
	inner := v.Float("inner_momentum")
	if inner != 0 {
		slots = append(slots, Slot{Name: "m"})
	}
	return &scheduleFreeAdamW[T]{newScheduleFree("schedule_free_adamw", v, b1, slots...), b2, v.Float("eps"), inner, v.Bool("decay_at_z")}, nil
}

// Prepare implements [Rule].
func (r *scheduleFreeAdamW[T]) Prepare(_ int, k *Step) {
	lr, c := r.prepare(k)
	k.Coef = append(k.Coef[:0], lr/biasCorrection(r.inner, k.T), 1/biasCorrection(r.b2, k.T), c, float64(lr*r.wd))
}

// Apply implements [Rule].
func (r *scheduleFreeAdamW[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]), len(s.Slots[2]))
	if r.inner != 0 {
		checkLen(n, len(s.Slots[3]))
	}
	step, h2, decay := T(k.Coef[0]), T(k.Coef[1]), T(k.Coef[3])
	if s.Tensor.Info.NoDecay {
		decay = 0
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		y, g, d := s.W[lo:hi], s.G[Grad][lo:hi], buf[:hi-lo]
		z, x, v := s.Slots[0][lo:hi], s.Slots[1][lo:hi], s.Slots[2][lo:hi]
		switch {
		case decay == 0:
		case r.decayAtZ:
			vec.Scale(z, 1-decay, z)
		default:
			vec.SubScaled(z, z, decay, y)
		}
		vec.AxpbySquare(v, T(r.b2), v, T(1-r.b2), g)
		vec.RootOfScaled(d, v, h2, T(r.eps))
		if r.inner != 0 {
			m := s.Slots[3][lo:hi]
			vec.Axpby(m, T(r.inner), m, T(1-r.inner), g)
			g = m
		}
		vec.SubQuotient(z, z, step, g, d)
		scheduleFreeAverage(s.Out[lo:hi], x, z, k.Coef[2], r.beta)
	}
}
