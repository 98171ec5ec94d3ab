package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "oasis",
		Doc:   "steps scaled by an average of the Hessian's diagonal, at a rate that follows the local curvature",
		Paper: "Jahani et al., ICLR 2022, arXiv:2109.05198",
		Hypers: []Hyper{
			rate(0.1),
			number("beta2", 0.999, 0, Below1, "decay rate of the average of the Hessian's diagonal"),
			number("alpha", 1e-2, 0x1p-126, inf, "the scaled diagonal is at least this"),
			flag("adaptive", true, "lr is the first rate and the rule finds the others; else lr is the rate"),
		},
		New32: newOASIS[float32],
		New64: newOASIS[float64],
	})
}

// oasis is OASIS. With h = z·(H·z), signed, and g′ the gradient of the same
// batch at the parameters w′ before the last step it does
//
//	D ← h at t = 1, else β₂·D + (1−β₂)·h,  D̂ = max(|D|, α)
//	η₁ = lr,  θ₁ = +∞
//	ηₜ = min(√(1 + θₜ₋₁)·ηₜ₋₁, √(Σ D̂·(w − w′)²) / (2·√(Σ (g − g′)²/D̂))),  θₜ = ηₜ/ηₜ₋₁
//	w ← w − (lrₜ/lr)·ηₜ·g/D̂
//
// with sums over the whole model. lrₜ is the schedule's value, which only stands
// beside the rate, so that a warm-up from 0 does not hold η at 0. Where g = g′
// the second bound is +∞ and the first alone acts; where w = w′ nothing can be
// learned, and where neither bound is finite neither: η and θ stay. η does not
// grow beyond what a float32 holds. The slot theta is 0 for +∞.
//
// If not adaptive, ηₜ is lrₜ; then workers compute no g′, and a step is one pass.
// Otherwise pass 0 adds up the two sums and pass 1 computes D again.
//
// Out may be W; other overlaps are not allowed. A NaN in g or h reaches the same
// element of w (and D), and, if adaptive, all parameters: at once from t = 2 on,
// one in the first step with the second. Apply does not allocate.
//
// Jahani, Rusakov, Shi, Richtárik, Mahoney and Takáč, "Doubly Adaptive Scaled
// Algorithm for Machine Learning Using Second-Order Information", ICLR 2022,
// Algorithm 1 and its fixed rate, arXiv:2109.05198.
type oasis[T Float] struct {
	lr, b2, alpha float64
	adaptive      bool
	spec          Spec
}

// Indices of the slots of the model.
const (
	oasisEta = iota
	oasisTheta
)

// Indices of the sums over the model.
const (
	oasisMoved  = iota // Σ D̂·(w − w′)²
	oasisTurned        // Σ (g − g′)²/D̂
	oasisSums
)

var oasisPrev = []Role{GradPrev}

func newOASIS[T Float](v Values) (Rule[T], error) {
	r := &oasis[T]{v.Float("lr"), v.Float("beta2"), v.Float("alpha"), v.Bool("adaptive"), elementWise("oasis", Slot{Name: "D"})}
	r.spec.Phases[0].Needs = []Role{Grad, HessDiag}
	if r.adaptive {
		r.spec.Slots = append(r.spec.Slots, Slot{Name: "w_prev", FromParams: true},
			Slot{Name: "eta", Class: Model, Init: r.lr}, Slot{Name: "theta", Class: Model})
		r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "curvature", Op: Sum, Over: Model, Width: oasisSums}}}, {}}
		r.spec.Optional = func(t uint64) []Role {
			if t > 1 {
				return oasisPrev
			}
			return nil
		}
	}
	return r, nil
}

// Spec implements [Rule].
func (r *oasis[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *oasis[T]) Prepare(pass int, k *Step) {
	keep, step := r.b2, k.LR
	if k.T == 1 {
		keep = 0
	}
	if r.adaptive && pass == 1 {
		step = float64(r.curvature(k) * multiplier(k.LR, r.lr))
	}
	k.Coef = append(k.Coef[:0], keep, step)
}

// curvature is the rate η of the step; it fills k.Next.
func (r *oasis[T]) curvature(k *Step) float64 {
	eta, theta := k.Model[oasisEta], k.Model[oasisTheta]
	moved, turned := k.Reduced[0][0][oasisMoved], k.Reduced[0][0][oasisTurned]
	if k.T == 1 || moved == 0 || turned == 0 && theta == 0 {
		return eta
	}
	next := math.Inf(1)
	if theta != 0 {
		next = float64(math.Sqrt(1+theta) * eta)
	}
	if turned != 0 {
		next = min(next, math.Sqrt(moved)/float64(2*math.Sqrt(turned)))
	}
	next = min(next, math.MaxFloat32)
	if eta != 0 {
		k.Next[oasisTheta] = next / eta
	}
	k.Next[oasisEta] = next
	return next
}

// Apply implements [Rule].
func (r *oasis[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.G[HessDiag]), len(s.Slots[0]))
	last := pass == 1 || !r.adaptive
	if last {
		checkLen(n, len(s.Out))
	}
	if r.adaptive {
		checkLen(n, len(s.Slots[1]))
		if k.T > 1 {
			checkLen(n, len(s.G[GradPrev]))
		} else if !last {
			return
		}
	}
	keep, take, step, alpha := T(k.Coef[0]), T(1-k.Coef[0]), finite[T](k.Coef[1]), T(r.alpha)
	var buf [3][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, d := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi]
		scale, newD := buf[0][:hi-lo], d
		if !last {
			newD = scale
		}
		vec.Axpby(newD, keep, d, take, s.G[HessDiag][lo:hi])
		vec.Abs(scale, newD)
		vec.MaxConst(scale, scale, alpha)
		if !last {
			diff, scaled := buf[1][:hi-lo], buf[2][:hi-lo]
			vec.Sub(diff, w, s.Slots[1][lo:hi])
			vec.Mul(scaled, scale, diff)
			s.Sums[0][oasisMoved] += vec.Dot(diff, scaled)
			vec.Sub(diff, g, s.G[GradPrev][lo:hi])
			vec.Div(scaled, diff, scale)
			s.Sums[0][oasisTurned] += vec.Dot(diff, scaled)
			continue
		}
		if r.adaptive {
			copy(s.Slots[1][lo:hi], w)
		}
		vec.SubQuotient(s.Out[lo:hi], w, step, g, scale)
	}
}
