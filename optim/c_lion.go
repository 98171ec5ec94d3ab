package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "c_lion",
		Doc:   "Lion that moves only where its direction and the present gradient agree in sign",
		Paper: "Liang et al., 2024, arXiv:2411.16085; kyleliang919/C-Optim c_lion.py",
		Hypers: []Hyper{
			rate(1e-4),
			pair("betas", 0.95, 0.98, "weights of the average in the direction, and in the average that is kept"),
			number("weight_decay", 0, 0, inf, "decoupled decay: w shrinks by lr·weight_decay"),
		},
		New32: newCautiousLion[float32],
		New64: newCautiousLion[float64],
	})
}

// cautiousLion is C-Lion. With decay λ and K of a tensor's n elements where
// u·g > 0 it does, for every element,
//
//	u = sign(β₁·m + (1−β₁)·g)
//	w ← w·(1 − lr·λ) − lr·n/(K+1)·u    (the second term only where u·g > 0)
//	m ← β₂·m + (1−β₂)·g
//
// Pass 0 counts K. The direction uses m from before the step; sign(0) = 0.
// Tensors marked NoDecay have λ = 0. As in the authors' file the share of moved
// elements is (K+1)/n, where C-AdamW bounds K/n from below.
//
// Out may be W; other overlaps are not allowed. A NaN in g reaches the same
// element of w and m and no other. Apply does not allocate.
//
// Liang et al., "Cautious Optimizers: Improving Training with One Line of
// Code", 2024, arXiv:2411.16085.
type cautiousLion[T Float] struct {
	spec       Spec
	b1, b2, wd float64
}

func newCautiousLion[T Float](v Values) (Rule[T], error) {
	r := &cautiousLion[T]{spec: cautious("c_lion", Slot{Name: "m"}), wd: v.Float("weight_decay")}
	r.b1, r.b2 = v.Pair("betas")
	return r, nil
}

// Spec implements [Rule].
func (r *cautiousLion[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *cautiousLion[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *cautiousLion[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]))
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	shrink, step := T(k.Coef[1]), T(0)
	if pass == 1 {
		checkLen(n, len(s.Out))
		step = T(float64(k.Coef[0]*float64(s.Tensor.Info.Len)) / (s.Tensor.Reduced[0][0][0] + 1))
	}
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	var buf [2][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, m, u := s.G[Grad][lo:hi], s.Slots[0][lo:hi], buf[0][:hi-lo]
		vec.Axpby(u, b1, m, a1, g)
		vec.Sign(u, u)
		if pass == 0 {
			s.Sums[0][0] += float64(vec.CountPositive(u, g))
			continue
		}
		// u where u·g > 0, else 0, and a NaN stays one.
		x := buf[1][:hi-lo]
		vec.Mul(x, u, g)
		vec.MaxConst(x, x, 0)
		vec.Select(u, x, u, x)
		vec.Axpby(m, b2, m, a2, g)
		vec.Axpby(s.Out[lo:hi], shrink, s.W[lo:hi], -step, u)
	}
}
