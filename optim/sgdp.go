package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "sgdp",
		Doc:   "gradient descent with momentum that does not let parameters grow whose scale has no effect",
		Paper: "Heo et al., ICLR 2021, arXiv:2006.08217; clovaai/AdamP adamp/sgdp.py",
		Hypers: append([]Hyper{
			rate(0.01),
			number("momentum", 0, 0, Below1, "decay rate of the momentum buffer"),
			number("dampening", 0, 0, 1, "part of the gradient kept out of the buffer"),
			number("weight_decay", 0, 0, inf, "decoupled decay: w shrinks by lr·weight_decay/(1 − momentum)"),
			flag("nesterov", false, "step along g + momentum·m in place of m"),
			number("eps", 1e-8, 0, inf, "least norm of gradients and parameters"),
		}, projectionHypers()...),
		New32: newSGDP[float32],
		New64: newSGDP[float64],
	})
}

// sgdP is SGDP. With momentum μ, dampening δ and decay λ it does, for every
// tensor,
//
//	m ← μ·m + (1−δ)·g
//	u = m, or g + μ·m with nesterov
//	u, ratio ← projected ([projection]), or u, 1
//	w ← w·(1 − lr·λ·ratio/(1−μ)) − lr·u
//
// m starts at 0, so dampening acts at the first update too, unlike in [sgd].
// Without nesterov u is m, as in the authors' code: what is projected is the
// buffer itself. Pass 0 adds up the sums of the rows, pass 1 computes u again.
// Tensors marked NoDecay have λ = 0 and are projected like all others.
//
// Out may be W; other overlaps are not allowed. A NaN in g reaches the same
// element of w and m and keeps the tensor from being projected. Apply does not
// allocate.
//
// Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
// Scale-invariant Weights", ICLR 2021, Algorithm 1, arXiv:2006.08217.
type sgdP[T Float] struct {
	momentum, damp, wd float64
	nesterov           bool
	projection         projection
	spec               Spec
}

func newSGDP[T Float](v Values) (Rule[T], error) {
	r := &sgdP[T]{
		v.Float("momentum"), v.Float("dampening"), v.Float("weight_decay"), v.Bool("nesterov"),
		projectionValues(v), elementWise("sgdp", Slot{Name: "m"}),
	}
	r.spec.Phases[0].Passes = r.projection.passes()
	return r, nil
}

// Spec implements [Rule].
func (r *sgdP[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *sgdP[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR, float64(k.LR*r.wd)/(1-r.momentum))
}

// PrepareTensor implements [TensorPreparer].
func (r *sgdP[T]) PrepareTensor(pass int, _ *Step, ts *TensorState) {
	if pass == 1 {
		r.projection.decide(ts)
	}
}

// Apply implements [Rule].
func (r *sgdP[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]))
	if pass == 0 && !hasRows(s.Tensor.Info) {
		return
	}
	lr, mu, part, shrink := T(k.Coef[0]), T(r.momentum), T(1-r.damp), T(1)
	if pass == 1 {
		checkLen(n, len(s.Out))
		if !s.Tensor.Info.NoDecay {
			shrink = T(1 - float64(k.Coef[1]*s.Tensor.Coef[projRatio]))
		}
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, m := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi]
		newM := m
		if pass == 0 {
			newM = buf[:hi-lo]
		}
		vec.Axpby(newM, mu, m, part, g)
		u := newM
		if r.nesterov {
			u = buf[:hi-lo]
			vec.AddScaled(u, g, mu, newM)
		}
		if pass == 0 {
			addRows(s, s.At+lo, w, g, u)
			continue
		}
		project(s.Tensor, s.At+lo, u, w)
		vec.Axpby(s.Out[lo:hi], shrink, w, -lr, u)
	}
}
