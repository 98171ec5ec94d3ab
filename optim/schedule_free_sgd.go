package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "schedule_free_sgd",
		Doc:   "gradient descent on an average of iterates in place of a schedule",
		Paper: "Defazio et al., NeurIPS 2024, arXiv:2405.15682; facebookresearch/schedule_free sgd_schedulefree_reference.py",
		Hypers: append([]Hyper{
			rate(1),
			number("momentum", 0.9, 0, Below1, "weight of the average where gradients are taken"),
		}, scheduleFreeHypers("coupled (L2) decay, added to the gradient")...),
		New32: newScheduleFreeSGD[float32],
		New64: newScheduleFreeSGD[float64],
	})
}

// scheduleFreeSGD is Schedule-Free SGD. With decay λ, and lrₜ, x and y as in
// scheduleFree, it does, for every element,
//
//	z ← z − lrₜ·(g + λ·y)
//
// and then averages with β = momentum. Workers take gradients at y; x is
// evaluated and served. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of both slots and of y and no other. Apply does not allocate.
//
// Defazio et al., "The Road Less Scheduled", NeurIPS 2024, equations 3 to 5,
// arXiv:2405.15682; as the reference file of facebookresearch/schedule_free.
type scheduleFreeSGD[T Float] struct{ scheduleFree }

func newScheduleFreeSGD[T Float](v Values) (Rule[T], error) {
	return &scheduleFreeSGD[T]{newScheduleFree("schedule_free_sgd", v, v.Float("momentum"))}, nil
}

// Prepare implements [Rule].
func (r *scheduleFreeSGD[T]) Prepare(_ int, k *Step) {
	lr, c := r.prepare(k)
	k.Coef = append(k.Coef[:0], lr, c, float64(lr*r.wd))
}

// Apply implements [Rule].
func (r *scheduleFreeSGD[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	lr, decay := T(k.Coef[0]), T(k.Coef[2])
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		z, x := s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		vec.SubScaled(z, z, lr, s.G[Grad][lo:hi])
		if decay != 0 && !s.Tensor.Info.NoDecay {
			vec.SubScaled(z, z, decay, s.W[lo:hi])
		}
		scheduleFreeAverage(s.Out[lo:hi], x, z, k.Coef[1], r.beta)
	}
}
