package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "adamp",
		Doc:   "Adam that does not let parameters grow whose scale has no effect",
		Paper: "Heo et al., ICLR 2021, arXiv:2006.08217; clovaai/AdamP adamp/adamp.py",
		Hypers: append(append(adamHypers(1e-3, 1e-8, 0, "decoupled decay: w shrinks by lr·weight_decay"), projectionHypers()...),
			flag("nesterov", false, "step along β₁·m + (1−β₁)·g in place of m")),
		New32: newAdamP[float32],
		New64: newAdamP[float64],
	})
}

// adamP is AdamP. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it does, for
// every tensor,
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	u = m / (√v/√c₂ + ε), or (β₁·m + (1−β₁)·g) / (√v/√c₂ + ε) with nesterov
//	u, ratio ← projected ([projection]), or u, 1
//	w ← w·(1 − lr·λ·ratio) − (lr/c₁)·u
//
// Pass 0 adds up the sums of the rows, pass 1 computes u again. Tensors marked
// NoDecay have λ = 0 and are projected like all others.
//
// Out may be W; other overlaps are not allowed. A NaN in g reaches the same
// element of w, m and v and keeps the tensor from being projected. Apply does
// not allocate.
//
// Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
// Scale-invariant Weights", ICLR 2021, Algorithm 2, arXiv:2006.08217.
type adamP[T Float] struct {
	adamHyper
	projection projection
	nesterov   bool
	spec       Spec
}

func newAdamP[T Float](v Values) (Rule[T], error) {
	r := &adamP[T]{adamValues(v), projectionValues(v), v.Bool("nesterov"), elementWise("adamp", moments()...)}
	r.spec.Phases[0].Passes = r.projection.passes()
	return r, nil
}

// Spec implements [Rule].
func (r *adamP[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adamP[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR/biasCorrection(r.b1, k.T), 1/math.Sqrt(biasCorrection(r.b2, k.T)), float64(k.LR*r.wd))
}

// PrepareTensor implements [TensorPreparer].
func (r *adamP[T]) PrepareTensor(pass int, _ *Step, ts *TensorState) {
	if pass == 1 {
		r.projection.decide(ts)
	}
}

// Apply implements [Rule].
func (r *adamP[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if pass == 0 && !hasRows(s.Tensor.Info) {
		return
	}
	step, root, shrink := T(k.Coef[0]), T(k.Coef[1]), T(1)
	b1, a1, b2, a2, eps := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2), T(r.eps)
	if pass == 1 {
		checkLen(n, len(s.Out))
		if !s.Tensor.Info.NoDecay {
			shrink = T(1 - float64(k.Coef[2]*s.Tensor.Coef[projRatio]))
		}
	}
	var buf [3][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, m, v := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		u, newM, newV := buf[0][:hi-lo], m, v
		if pass == 0 {
			newM, newV = buf[1][:hi-lo], buf[2][:hi-lo]
		}
		vec.Axpby(newM, b1, m, a1, g)
		vec.AxpbySquare(newV, b2, v, a2, g)
		vec.RootScaled(u, newV, root, eps)
		if r.nesterov {
			x := buf[1][:hi-lo]
			vec.Axpby(x, b1, newM, a1, g)
			vec.Div(u, x, u)
		} else {
			vec.Div(u, newM, u)
		}
		if pass == 0 {
			addRows(s, s.At+lo, w, g, u)
			continue
		}
		project(s.Tensor, s.At+lo, u, w)
		vec.Axpby(s.Out[lo:hi], shrink, w, -step, u)
	}
}
