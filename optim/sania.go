package optim

import (
	"math"

	"tributary/internal/vec"
)

// sania is SANIA with a diagonal preconditioner from squared gradients. With L
// the loss that belongs to g, the least loss taken as 0, it does
//
//	s ← b·s + a·g²
//	B = max(s/c, ε), or its root (isSqrt)
//	z = g/B,  N = ⟨z, g⟩ over the whole model
//	λ = 1 − √(1 − 2·L/N) if 2·L ≤ N and the root is above 0, else 1
//	w ← w − η·λ·z
//
// AdaGrad-SQR has b = a = c = 1, Adam-SQR b = β₂, a = 1 − β₂, c = 1 − β₂ᵗ. η is
// what the schedule makes of the learning rate 1: SANIA needs none, and lr
// itself has no effect. ε is a floor and not a term. 1/c is taken out of B and
// into the scalars. Pass 0 adds up N.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g makes NaN
// of the same element of w; of all others it moves by λ = 1. Apply does not
// allocate.
type sania[T Float] struct {
	spec            Spec
	lr, b2, floor   float64
	adaGrad, isSqrt bool
}

// saniaHypers are the hyper-parameters of both rules.
func saniaHypers(more ...Hyper) []Hyper {
	return append([]Hyper{
		{Name: "lr", Default: 1.0, Max: inf, Doc: "no effect but through its schedule, which scales the step relative to lr"},
		// The floor must not vanish in float32: a zero gradient would be divided by it.
		number("eps", 0.1, 1e-30, inf, "floor of the preconditioner"),
		flag("is_sqrt", false, "precondition by the root"),
	}, more...)
}

func newSANIA[T Float](name string, v Values) *sania[T] {
	spec := elementWise(name, Slot{Name: "s"})
	spec.NeedsLoss = true
	spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "norm", Op: Sum, Over: Model}}}, {}}
	return &sania[T]{spec: spec, lr: v.Float("lr"), floor: v.Float("eps"), isSqrt: v.Bool("is_sqrt")}
}

// Spec implements [Rule].
func (r *sania[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *sania[T]) Prepare(pass int, k *Step) {
	c := 1.0
	if !r.adaGrad {
		c = biasCorrection(r.b2, k.T)
	}
	q := c // B is q times what is divided by
	if r.isSqrt {
		q = math.Sqrt(c)
	}
	step := 0.0
	if pass == 1 {
		eta := 1.0
		if r.lr != 0 {
			eta = k.LR / r.lr
		}
		norm := float64(q * k.Reduced[0][0][0])
		step = float64(float64(eta*polyak(k.Loss, norm)) * q)
	}
	k.Coef = append(k.Coef[:0], float64(r.floor*c), step)
}

// polyak is the share of the preconditioned gradient, of squared norm n, that
// leads to loss 0 in a quadratic model of the loss.
func polyak(loss, n float64) float64 {
	if rest := 1 - float64(2*loss)/n; float64(2*loss) <= n && rest > 0 {
		return 1 - math.Sqrt(rest)
	}
	return 1
}

// Apply implements [Rule].
func (r *sania[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]))
	if pass == 1 {
		checkLen(n, len(s.Out))
	}
	b2, a2, floor, step := T(r.b2), T(1-r.b2), T(k.Coef[0]), T(k.Coef[1])
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, sq, x := s.G[Grad][lo:hi], s.Slots[0][lo:hi], buf[:hi-lo]
		sum := x
		if pass == 1 {
			sum = sq
		}
		if r.adaGrad {
			vec.MulAdd(sum, sq, g, g)
		} else {
			vec.AxpbySquare(sum, b2, sq, a2, g)
		}
		vec.MaxConst(x, sum, floor)
		if r.isSqrt {
			vec.Sqrt(x, x)
		}
		if pass == 0 {
			vec.Div(x, g, x)
			s.Sums[0][0] += vec.Dot(x, g)
		} else {
			vec.SubQuotient(s.Out[lo:hi], s.W[lo:hi], step, g, x)
		}
	}
}
