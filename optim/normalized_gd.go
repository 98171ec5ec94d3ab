package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "normalized_gd",
		Doc:   "gradient descent with a step of bounded length: normalised or clipped by the norm over the model",
		Paper: "Cutkosky and Mehta, ICML 2020, arXiv:2002.03305; Zhang et al., ICLR 2020, arXiv:1905.11881",
		Hypers: []Hyper{
			rate(0.01),
			number("momentum", 0, 0, Below1, "decay rate of an average of gradients, whose norm then counts; 0 means none"),
			number("clip", 0, 0, inf, "norm up to which the step is lr times the gradient; 0 means to normalise always"),
			number("gamma", 0, 0, inf, "added to the norm that the gradient is divided by; excludes clip"),
		},
		New32: newNormalizedGD[float32],
		New64: newNormalizedGD[float64],
	})
}

// normalizedGD is normalised gradient descent. With d = g, or with momentum μ
// the average m, and the norm taken over the whole model it does
//
//	m ← μ·m + (1−μ)·g              (at the first update m ← g)
//	w ← w − lr·d/‖d‖               (normalised)
//	w ← w − min(lr, lr·clip/‖d‖)·d (clip above 0)
//	w ← w − lr/(γ + ‖d‖)·d         (gamma above 0)
//
// d = 0 moves nothing. There is no decay: it would not be a step of bounded
// length. The slot m exists only with momentum. Pass 0 adds up ‖d‖².
//
// Out may be W; other overlaps are not allowed. A NaN in g makes NaN of all
// parameters. Apply does not allocate.
//
// Cutkosky and Mehta, "Momentum Improves Normalized SGD", ICML 2020, Algorithm
// 1, arXiv:2002.03305; Zhang, He, Sra and Jadbabaie, "Why Gradient Clipping
// Accelerates Training", ICLR 2020, equations 3 to 6, arXiv:1905.11881.
type normalizedGD[T Float] struct {
	momentum, clip, gamma float64
	spec                  Spec
}

func newNormalizedGD[T Float](v Values) (Rule[T], error) {
	r := &normalizedGD[T]{momentum: v.Float("momentum"), clip: v.Float("clip"), gamma: v.Float("gamma")}
	if r.clip != 0 && r.gamma != 0 {
		return nil, &HyperError{"normalized_gd", "gamma", "normalized_gd: clip and gamma are two ways to bound the step: one of them must be 0"}
	}
	var slots []Slot
	if r.momentum != 0 {
		slots = []Slot{{Name: "m"}}
	}
	r.spec = elementWise("normalized_gd", slots...)
	r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "norm", Op: Sum, Over: Model}}}, {}}
	return r, nil
}

// Spec implements [Rule].
func (r *normalizedGD[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *normalizedGD[T]) Prepare(pass int, k *Step) {
	mu, step := r.momentum, 0.0
	if k.T == 1 {
		mu = 0
	}
	if pass == 1 {
		switch norm := math.Sqrt(k.Reduced[0][0][0]); {
		case r.clip != 0 && norm <= r.clip:
			step = k.LR
		case r.clip != 0:
			step = float64(k.LR * (r.clip / norm))
		default:
			step = perNorm(k.LR, r.gamma+norm)
		}
	}
	k.Coef = append(k.Coef[:0], mu, step)
}

// perNorm is lr/norm, or 0 where there is nothing to normalise.
func perNorm(lr, norm float64) float64 {
	if norm == 0 {
		return 0
	}
	return lr / norm
}

// finite is x as a T, cut to what a float32 holds: the inverse of a norm of
// denormals may be more, and would make NaN of the zeros it multiplies.
func finite[T Float](x float64) T {
	if y := T(x); !math.IsInf(float64(y), 0) {
		return y
	}
	return T(math.MaxFloat32)
}

// Apply implements [Rule].
func (r *normalizedGD[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]))
	if pass == 1 {
		checkLen(n, len(s.Out))
	}
	mu, step := T(k.Coef[0]), finite[T](k.Coef[1])
	if r.momentum == 0 {
		if pass == 0 {
			s.Sums[0][0] += vec.Dot(s.G[Grad], s.G[Grad])
		} else {
			vec.SubScaled(s.Out, s.W, step, s.G[Grad])
		}
		return
	}
	checkLen(n, len(s.Slots[0]))
	if pass == 1 {
		m := s.Slots[0]
		vec.Axpby(m, mu, m, 1-mu, s.G[Grad])
		vec.SubScaled(s.Out, s.W, step, m)
		return
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		d := buf[:hi-lo]
		vec.Axpby(d, mu, s.Slots[0][lo:hi], 1-mu, s.G[Grad][lo:hi])
		s.Sums[0][0] += vec.Dot(d, d)
	}
}
