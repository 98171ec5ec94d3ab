package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "ftrl",
		Doc:   "follow the regularized leader, proximal: sparse linear models and tables, with L1 and L2 penalties",
		Paper: "McMahan et al., KDD 2013; kozistr/pytorch_optimizer ftrl.py",
		Hypers: []Hyper{
			rate(0.1),
			number("lr_power", -0.5, -1, 0, "minus the power of the sum of squares that the rate falls with"),
			number("beta", 1, 0, inf, "added to the root of the sum of squares"),
			number("l1", 0, 0, inf, "L1 penalty: parameters whose z is below it are 0"),
			number("l2", 0, 0, inf, "L2 penalty"),
		},
		New32: newFTRL[float32],
		New64: newFTRL[float64],
	})
}

// ftrl is FTRL-Proximal. With q = −lr_power it does, for every element,
//
//	z ← z + g − ((n + g²)^q − n^q)/lr · w
//	n ← n + g²
//	w ← 0 where |z| ≤ l1, else (sign(z)·l1 − z) / ((β + √n)/lr + l2)
//
// w follows from z and n alone, so tables start at 0: another start is lost at
// the first update. The divisor has √n whatever q is, as in the reference. Of
// a parameter that never had a gradient z and n are 0, so β and l2 must not
// both be 0. All parameters are in proportion to the present rate (if l2 is 0),
// so a schedule that ends near 0 ends with a model near 0: keep it constant. At
// a rate of 0, where a schedule begins or ends, a step changes nothing.
//
// It takes runs: elements that no run names keep w, z and n. Penalties do not
// apply to tensors marked NoDecay: there l1 = l2 = 0, and if β is 0, l2 stays.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, z and n and no other. Apply does not allocate; for q other
// than ½ it takes two powers per element, each of which costs as much as the
// step of some fifty elements for q = ½.
//
// McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013,
// Algorithm 1; as kozistr/pytorch_optimizer ftrl.py.
type ftrl[T Float] struct {
	spec            Spec
	q, beta, l1, l2 float64
}

func newFTRL[T Float](v Values) (Rule[T], error) {
	r := &ftrl[T]{elementWise("ftrl", Slot{Name: "z"}, Slot{Name: "n"}), -v.Float("lr_power"), v.Float("beta"), v.Float("l1"), v.Float("l2")}
	if r.beta == 0 && r.l2 == 0 {
		return nil, &HyperError{"ftrl", "beta", "ftrl: beta and l2 must not both be 0: a parameter without gradients would be 0/0"}
	}
	r.spec.Runs = true
	return r, nil
}

// Spec implements [Rule].
func (r *ftrl[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *ftrl[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR)
	if k.LR != 0 {
		k.Coef = append(k.Coef, 1/k.LR, r.beta/k.LR)
	}
}

// Apply implements [Rule].
func (r *ftrl[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if k.Coef[0] == 0 {
		copy(s.Out, s.W)
		return
	}
	l1, l2 := r.l1, r.l2
	if s.Tensor.Info.NoDecay {
		l1 = 0
		if r.beta != 0 {
			l2 = 0
		}
	}
	perLR, floor := T(k.Coef[1]), T(k.Coef[2]+l2)
	var buf [2][tile]T
	var zero [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, z, sq := s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		a, b := buf[0][:hi-lo], buf[1][:hi-lo]
		if r.q == 0.5 {
			vec.Sqrt(a, sq)
			vec.MulAdd(sq, sq, g, g)
			vec.Sqrt(b, sq)
			vec.Sub(a, b, a)
		} else {
			copy(b, sq)
			vec.MulAdd(sq, sq, g, g)
			powerDifference(a, sq, b, r.q)
			vec.Sqrt(b, sq)
		}
		vec.Mul(a, a, s.W[lo:hi])
		vec.Add(z, z, g)
		vec.SubScaled(z, z, perLR, a)
		vec.SoftThreshold(a, z, T(l1))
		vec.ScaleAddConst(b, perLR, b, floor)
		vec.SubQuotient(s.Out[lo:hi], zero[:hi-lo], 1, a, b)
	}
}

// powerDifference is dst = x^q − y^q, rounded once.
func powerDifference[T Float](dst, x, y []T, q float64) {
	for i := range dst {
		dst[i] = T(powReal(float64(x[i]), q) - powReal(float64(y[i]), q))
	}
}
