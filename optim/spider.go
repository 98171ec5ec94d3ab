package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "spider",
		Doc:   "variance reduction by differences of gradients between full ones",
		Paper: "Fang et al., NeurIPS 2018, arXiv:1807.01695; Wang et al., NeurIPS 2019, arXiv:1810.10690",
		Hypers: []Hyper{
			rate(0.01),
			number("period", 10, 1, maxPeriod, "steps from one gradient over all examples to the next"),
			flag("normalized", true, "steps of length lr; else steps of lr times the estimate (SpiderBoost)"),
		},
		New32: newSPIDER[float32],
		New64: newSPIDER[float64],
	})
}

// maxPeriod bounds periods, which are whole numbers of steps.
const maxPeriod = 1e9

// spider is SPIDER. With q the period it does, for every element,
//
//	v ← full gradient at w               when t−1 is a multiple of q
//	v ← v + (g_B(w) − g_B(w before))     at all other steps
//	w ← w − lr·v/‖v‖                     (normalized; v = 0 moves nothing)
//	w ← w − lr·v                         (otherwise: SpiderBoost)
//
// where both gradients of a difference are of the same batch B and the norm is
// that of the whole model. So what workers push depends on the step: the
// gradient over all examples, or two gradients ([Spec.Optional]). A normalised
// step takes two passes; pass 0 adds up ‖v‖².
//
// Out may be W; other overlaps are not allowed. A NaN in what is pushed reaches
// the same element of v and w and, through the norm, all parameters. It stays
// in v up to the next full gradient. Apply does not allocate.
//
// Fang, Li, Lin and Zhang, "SPIDER: Near-Optimal Non-Convex Optimization via
// Stochastic Path Integrated Differential Estimator", NeurIPS 2018, Algorithm
// 1, arXiv:1807.01695; SpiderBoost is Algorithm 1 of Wang et al.,
// arXiv:1810.10690.
type spider[T Float] struct {
	spec       Spec
	period     uint64
	normalized bool
}

var (
	spiderFull = []Role{FullGrad}
	spiderDiff = []Role{Grad, GradPrev}
)

func newSPIDER[T Float](v Values) (Rule[T], error) {
	q := v.Float("period")
	if q != math.Trunc(q) {
		return nil, &HyperError{"spider", "period", "spider: period: want a whole number of steps"}
	}
	r := &spider[T]{spec: elementWise("spider", Slot{Name: "v"}), period: uint64(q), normalized: v.Bool("normalized")}
	r.spec.Phases[0].Needs = nil
	r.spec.Optional = func(t uint64) []Role {
		if r.refresh(t) {
			return spiderFull
		}
		return spiderDiff
	}
	if r.normalized {
		r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "norm", Op: Sum, Over: Model}}}, {}}
	}
	return r, nil
}

// refresh says whether step t takes a full gradient.
func (r *spider[T]) refresh(t uint64) bool { return (t-1)%r.period == 0 }

// Spec implements [Rule].
func (r *spider[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *spider[T]) Prepare(pass int, k *Step) {
	step := k.LR
	if r.normalized && pass == 1 {
		step = perNorm(k.LR, math.Sqrt(k.Reduced[0][0][0]))
	}
	k.Coef = append(k.Coef[:0], step)
}

// Apply implements [Rule].
func (r *spider[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Slots[0]))
	last := pass == 1 || !r.normalized
	if last {
		checkLen(n, len(s.Out))
	}
	refresh := r.refresh(k.T)
	if refresh {
		checkLen(n, len(s.G[FullGrad]))
	} else {
		checkLen(n, len(s.G[Grad]), len(s.G[GradPrev]))
	}
	step := finite[T](k.Coef[0])
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		v := s.Slots[0][lo:hi]
		if refresh {
			full := s.G[FullGrad][lo:hi]
			if last {
				copy(v, full)
			} else {
				v = full
			}
		} else {
			x := buf[:hi-lo]
			vec.Sub(x, s.G[Grad][lo:hi], s.G[GradPrev][lo:hi])
			if last {
				vec.Add(v, v, x)
			} else {
				vec.Add(x, v, x)
				v = x
			}
		}
		if last {
			vec.SubScaled(s.Out[lo:hi], s.W[lo:hi], step, v)
		} else {
			s.Sums[0][0] += vec.Dot(v, v)
		}
	}
}
