package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "dot",
		Doc:   "gradient descent for distillation, with a slow buffer for the task and a fast one for the teacher",
		Paper: "Zhao, Cui, Song, Qiu and Liang, ICCV 2023, arXiv:2307.08436; megvii-research/mdistiller dot.py",
		Hypers: []Hyper{
			rate(0.05),
			number("momentum", 0.9, 0, Below1, "mean decay rate of the two buffers"),
			number("delta", 0.075, 0, 1, "taken off the decay rate of the task's buffer, added to the distillation's"),
			number("dampening", 0, 0, 1, "part of a gradient kept out of its buffer, except at the first update"),
			number("weight_decay", 5e-4, 0, inf, "coupled (L2) decay, added to the gradient of the task"),
		},
		New32: newDOT[float32],
		New64: newDOT[float64],
	})
}

// dot is DOT, the distillation-oriented trainer. With the gradient g of the
// task, gₖ of the distillation loss, momentum μ, difference Δ, dampening δ and
// decay λ it does, for every element,
//
//	u ← (μ−Δ)·u + (1−δ)·(g + λ·w)    (at the first update u ← g + λ·w)
//	k ← (μ+Δ)·k + (1−δ)·gₖ           (at the first update k ← gₖ)
//	w ← w − lr·u − lr·k
//
// A span that has only one of the two gradients takes its step with that
// buffer alone, at the mean rate μ and with the decay; the other buffer rests.
// Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g or gₖ reaches
// the same element of w and of its buffer and no other. Apply does not allocate.
//
// Zhao et al., "DOT: A Distillation-Oriented Trainer", ICCV 2023, equation 5,
// arXiv:2307.08436; as megvii-research/mdistiller mdistiller/engine/dot.py.
type dot[T Float] struct {
	spec                      Spec
	momentum, delta, damp, wd float64
}

func newDOT[T Float](v Values) (Rule[T], error) {
	r := &dot[T]{momentum: v.Float("momentum"), delta: v.Float("delta"), damp: v.Float("dampening"), wd: v.Float("weight_decay")}
	if r.momentum < r.delta || r.momentum+r.delta >= 1 {
		return nil, &HyperError{"dot", "delta", "dot: momentum − delta must be 0 or more and momentum + delta below 1"}
	}
	r.spec = elementWise("dot", Slot{Name: "u"}, Slot{Name: "k"})
	r.spec.Phases[0].Needs = []Role{Grad, GradKD}
	return r, nil
}

// Spec implements [Rule].
func (r *dot[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule]. At the first update the buffers are zero, so
// rates and dampening of 0 make them the gradients.
func (r *dot[T]) Prepare(_ int, k *Step) {
	task, kd, one, keep := r.momentum-r.delta, r.momentum+r.delta, r.momentum, 1-r.damp
	if k.T == 1 {
		task, kd, one, keep = 0, 0, 0, 1
	}
	k.Coef = append(k.Coef[:0], k.LR, task, kd, one, keep)
}

// Apply implements [Rule].
func (r *dot[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.Slots[0]), len(s.Slots[1]))
	lr, task, kd, keep := T(k.Coef[0]), T(k.Coef[1]), T(k.Coef[2]), T(k.Coef[4])
	wd := T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	g, gk := s.G[Grad], s.G[GradKD]
	switch {
	case g == nil && gk == nil:
		copy(s.Out, s.W)
	case gk == nil:
		dotStep(s.Out, s.W, lr, T(k.Coef[3]), keep, wd, g, s.Slots[0])
	case g == nil:
		dotStep(s.Out, s.W, lr, T(k.Coef[3]), keep, wd, gk, s.Slots[1])
	default:
		dotStep(s.Out, s.W, lr, task, keep, wd, g, s.Slots[0])
		dotStep(s.Out, s.Out, lr, kd, keep, 0, gk, s.Slots[1])
	}
}

// dotStep is u ← μ·u + keep·(g + λ·w), out = w − lr·u for one buffer u.
func dotStep[T Float](out, w []T, lr, mu, keep, wd T, g, u []T) {
	n := len(w)
	checkLen(n, len(g))
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		d := g[lo:hi]
		if wd != 0 {
			d = buf[:hi-lo]
			vec.AddScaled(d, g[lo:hi], wd, w[lo:hi])
		}
		vec.Axpby(u[lo:hi], mu, u[lo:hi], keep, d)
		vec.SubScaled(out[lo:hi], w[lo:hi], lr, u[lo:hi])
	}
}
