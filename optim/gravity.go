package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "gravity",
		Doc:   "momentum over gradients that are damped where they are large for their tensor",
		Paper: "Bahrami and Pouriyan Zadeh, 2021, arXiv:2101.09192; dariush-bahrami/gravity.optimizer gravity_optimizer_pytorch.py",
		Hypers: []Hyper{
			rate(0.1),
			number("alpha", 0.01, 0, inf, "the velocity starts as normal noise of deviation alpha/lr"),
			number("beta", 0.9, 0, 1, "decay rate of the velocity in the long run"),
		},
		New32: newGravity[float32],
		New64: newGravity[float64],
	})
}

// gravity is Gravity. With M the greatest |g| of the tensor it does, for every
// element,
//
//	ζ = g / (1 + (g·M)²)
//	β̂ = (β·t + 1)/(t + 2)
//	v ← β̂·v + (1−β̂)·ζ
//	w ← w − lr·v
//
// v starts as normal noise of deviation α/lr, or at 0 if lr is 0. The paper
// divides g by 1/M; the product makes ζ = 0 of a gradient that is zero
// everywhere. t counts from 1, as in the authors' PyTorch version; their Keras
// version counts from 0. Pass 0 finds M.
//
// Out may be W; other overlaps are not allowed. A NaN in g makes NaN of all of
// the tensor's w and v. An Inf does so where g is 0 or not finite; for all other
// elements ζ is then 0. Apply does not allocate.
//
// Bahrami and Pouriyan Zadeh, "Gravity Optimizer: a Kinematic Approach on
// Optimization in Deep Learning", 2021, Algorithm 1, arXiv:2101.09192.
type gravity[T Float] struct {
	spec Spec
	beta float64
}

func newGravity[T Float](v Values) (Rule[T], error) {
	noise := 0.0
	if lr := v.Float("lr"); lr > 0 {
		noise = v.Float("alpha") / lr
	}
	spec := elementWise("gravity", Slot{Name: "v", Noise: noise})
	spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "max", Op: Max, Over: Tensor}}}, {}}
	return &gravity[T]{spec, v.Float("beta")}, nil
}

// Spec implements [Rule].
func (r *gravity[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *gravity[T]) Prepare(_ int, k *Step) {
	t := float64(k.T)
	k.Coef = append(k.Coef[:0], k.LR, (float64(r.beta*t)+1)/(t+2))
}

// Apply implements [Rule].
func (r *gravity[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]))
	if pass == 0 {
		if top := vec.MaxAbs(s.G[Grad]); top > s.Sums[0][0] || top != top {
			s.Sums[0][0] = top
		}
		return
	}
	checkLen(n, len(s.Out), len(s.Slots[0]))
	lr, beta, alpha := T(k.Coef[0]), T(k.Coef[1]), T(1-k.Coef[1])
	top := T(s.Tensor.Reduced[0][0][0])
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, v, x := s.G[Grad][lo:hi], s.Slots[0][lo:hi], buf[:hi-lo]
		vec.Scale(x, top, g)
		vec.Mul(x, x, x)
		vec.AddConst(x, x, 1)
		vec.Div(x, g, x)
		vec.Axpby(v, beta, v, alpha, x)
		vec.SubScaled(s.Out[lo:hi], s.W[lo:hi], lr, v)
	}
}
