package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "yogi",
		Doc:   "Adam with a second moment that changes by a bounded amount, and proximal L1 and L2 terms",
		Paper: "Zaheer et al., NeurIPS 2018; tensorflow/addons yogi.py",
		Hypers: []Hyper{
			rate(0.01),
			pair("betas", 0.9, 0.999, "decay rates of the two moments"),
			number("eps", 1e-3, 0, inf, "added to the root of the second moment"),
			number("initial_accumulator_value", 1e-6, 0, inf, "second moment to start from"),
			number("l1", 0, 0, inf, "L1 penalty, proximal: sets small parameters to 0"),
			number("l2", 0, 0, inf, "L2 penalty, proximal"),
		},
		New32: newYogi[float32],
		New64: newYogi[float64],
	})
}

// yogi is Yogi. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ it does, for every element,
//
//	m ← β₁·m + (1−β₁)·g
//	v ← v + (1−β₂)·sign(g² − v)·g²
//	a = lr·√c₂/c₁ / (√v + ε)
//	w ← w − a·m
//	w ← sign(w)·max(|w| − l1·a, 0) / (1 + l2·a)    (with l1 or l2 above 0)
//
// Epsilon is added before the correction of v. The start of v is a
// hyper-parameter, that of m is 0. Tensors marked NoDecay have l1 = l2 = 0.
// The paper has no correction of the moments; this follows tensorflow/addons.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other. Apply does not allocate.
//
// Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018,
// Algorithm 2.
type yogi[T Float] struct {
	spec                Spec
	b1, b2, eps, l1, l2 float64
}

func newYogi[T Float](v Values) (Rule[T], error) {
	r := &yogi[T]{eps: v.Float("eps"), l1: v.Float("l1"), l2: v.Float("l2")}
	r.b1, r.b2 = v.Pair("betas")
	r.spec = elementWise("yogi", Slot{Name: "m"}, Slot{Name: "v", Init: v.Float("initial_accumulator_value")})
	return r, nil
}

// Spec implements [Rule].
func (r *yogi[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *yogi[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], hatStep(k.LR, r.b1, r.b2, k.T))
}

// Apply implements [Rule].
func (r *yogi[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	c := vec.YogiCoef[T]{B1: T(r.b1), A1: T(1 - r.b1), A2: T(1 - r.b2), Step: T(k.Coef[0]), Eps: T(r.eps)}
	vec.Yogi(s.Out, s.W, s.G[Grad], s.Slots[0], s.Slots[1], &c)
	l1, l2 := T(r.l1), T(r.l2)
	if l1 == 0 && l2 == 0 || s.Tensor.Info.NoDecay {
		return
	}
	var buf [2][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		root, x := buf[0][:hi-lo], buf[1][:hi-lo]
		vec.RootScaled(root, s.Slots[1][lo:hi], 1, c.Eps)
		yogiProx(s.Out[lo:hi], c.Step, root, l1, l2, x)
	}
}

// yogiProx is w ← sign(w)·max(|w| − l1·a, 0) / (1 + l2·a) with a = step/root.
// It overwrites root and x.
func yogiProx[T Float](w []T, step T, root []T, l1, l2 T, x []T) {
	a := root
	for i := range x {
		x[i] = step
	}
	vec.Div(a, x, root)
	if l1 != 0 {
		vec.Abs(x, w)
		vec.SubScaled(x, x, l1, a)
		vec.MaxConst(x, x, 0)
		vec.Sign(w, w)
		vec.Mul(w, w, x)
	}
	if l2 != 0 {
		vec.Scale(x, l2, a)
		vec.AddConst(x, x, 1)
		vec.Div(w, w, x)
	}
}
