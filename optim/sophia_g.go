package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "sophia_g",
		Doc:   "momentum divided by a Gauss-Newton estimate of the Hessian's diagonal, and clipped",
		Paper: "Liu et al., ICLR 2024, arXiv:2305.14342; Liuhong99/Sophia sophia.py",
		Hypers: []Hyper{
			rate(1e-4),
			pair("betas", 0.965, 0.99, "decay rates of the momentum and of the Hessian's estimate"),
			number("rho", 0.04, 0, inf, "below how many times the estimate momentum is not clipped"),
			number("weight_decay", 0.1, 0, inf, "decoupled decay: w shrinks by lr·weight_decay"),
			number("batch_tokens", 480, 0, inf, "size of the batch in tokens, which scales the estimate"),
			number("hessian_interval", 10, 1, 1e9, "steps from one gradient with sampled labels to the next; a whole number"),
		},
		New32: newSophiaG[float32],
		New64: newSophiaG[float64],
	})
}

// sophiaG is Sophia-G. With decay λ and batch size B it does, for every element,
//
//	m ← β₁·m + (1−β₁)·g
//	w ← w·(1 − lr·λ) − lr·clip(m/(ρ·B·h + 1e-15), −1, 1)
//	h ← β₂·h + (1−β₂)·q²          (when a push carries q)
//
// q is the gradient with labels sampled from the model; steps 1, 1+k, 1+2k, …
// carry it, with k = hessian_interval. As in the reference and unlike the paper,
// h is brought up to date after the step, so that at the first step, where h
// is 0, every element with a gradient moves by lr. Tensors marked NoDecay have
// λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN in g reaches the same
// element of w and m and no other, one in q reaches h and, at the next step, w.
// Apply does not allocate.
//
// Liu, Li, Hall, Liang and Ma, "Sophia: A Scalable Stochastic Second-order
// Optimizer for Language Model Pre-training", ICLR 2024, Algorithm 3,
// arXiv:2305.14342; as Liuhong99/Sophia sophia.py.
type sophiaG[T Float] struct {
	spec              Spec
	b1, b2, scale, wd float64
}

// sophiaFloor keeps the divisor above 0, as in the reference.
const sophiaFloor = 1e-15

func newSophiaG[T Float](v Values) (Rule[T], error) {
	interval := v.Float("hessian_interval")
	if interval != math.Trunc(interval) {
		return nil, &HyperError{"sophia_g", "hessian_interval", "sophia_g: hessian_interval: want a whole number of steps"}
	}
	r := &sophiaG[T]{elementWise("sophia_g", Slot{Name: "m"}, Slot{Name: "h"}), 0, 0, float64(v.Float("rho") * v.Float("batch_tokens")), v.Float("weight_decay")}
	r.b1, r.b2 = v.Pair("betas")
	refresh := []Role{HessGrad}
	r.spec.Optional = func(t uint64) []Role {
		if (t-1)%uint64(interval) == 0 {
			return refresh
		}
		return nil
	}
	return r, nil
}

// Spec implements [Rule].
func (r *sophiaG[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *sophiaG[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *sophiaG[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	q := s.G[HessGrad]
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if q != nil {
		checkLen(n, len(q))
	}
	lr, shrink := T(k.Coef[0]), T(k.Coef[1])
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		m, h, d := s.Slots[0][lo:hi], s.Slots[1][lo:hi], buf[:hi-lo]
		vec.Axpby(m, T(r.b1), m, T(1-r.b1), s.G[Grad][lo:hi])
		vec.ScaleAddConst(d, T(r.scale), h, sophiaFloor)
		vec.Div(d, m, d)
		vec.Clamp(d, d, -1, 1)
		vec.Axpby(s.Out[lo:hi], shrink, s.W[lo:hi], -lr, d)
		if q != nil {
			vec.AxpbySquare(h, T(r.b2), h, T(1-r.b2), q[lo:hi])
		}
	}
}
