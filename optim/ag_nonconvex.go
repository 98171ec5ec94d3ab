package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "ag_nonconvex",
		Doc:   "accelerated gradient for sparse models with the penalties SCAD and MCP, which are not convex",
		Paper: "Yang et al., arXiv:2009.10629; Kaiyangshi-Ito/nonconvexAG LM_SCAD_MCP_np_MODULE.ipynb",
		Hypers: []Hyper{
			rate(0.01),
			word("penalty", "scad", []string{"scad", "mcp"}, "the penalty"),
			number("lambda", 0.1, 0, inf, "slope of the penalty at 0, per element; tensors without decay have none"),
			number("a", 3.7, 1, inf, "SCAD is flat beyond a·lambda; above 1"),
			number("gamma", 2, 0, inf, "MCP is flat beyond gamma·lambda; above 0"),
		},
		New32: newAGNonconvex[float32],
		New64: newAGNonconvex[float64],
	})
}

// agNonconvex is the accelerated gradient method for a convex, smooth loss with
// the penalty SCAD or MCP. Its parameters are y (w_md of the authors), where
// workers take the gradient g of the loss alone; w and x (w_ag) are slots. All
// three begin at the same point. With b = lr, l = b/α and q the gradient of the
// penalty's concave part:
//
//	s = g + q(y)
//	w ← soft(w − l·s, l·λ),  x ← soft(y − b·s, b·λ)
//	α ← 1, r ← t+1           if the step of y before the last was longer than
//	                         the last, and t+1−r ≥ 3 (a restart)
//	α ← 2/(1 + √(1 + 4/α²))  otherwise
//	y ← (1−α)·x + α·w
//
//	soft(z, c) = sign(z)·max(|z| − c, 0)
//	SCAD: q(z) = −sign(z)·min(max(|z| − λ, 0)/(a−1), λ)
//	MCP:  q(z) = −sign(z)·min(|z|/γ, λ)
//
// The authors choose α and y before a gradient is taken; here that happens at the
// end of the step before, whose outcome they depend on. That takes the length of
// y's step, so pass 0 adds up its square over the model and pass 1 computes all
// of it again. They take b = 0.99/L with L the largest of the loss's smoothness
// and 1/(a−1) or 1/γ. Their estimate is the last y, which is what is evaluated.
// Tensors marked NoDecay have no penalty.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of y, w and x, and no restart comes after it. Apply does not
// allocate.
//
// Yang, Asgharian, Bhatnagar, "Accelerated Gradient Methods for Sparse
// Statistical Learning with Nonconvex Penalties", arXiv:2009.10629.
type agNonconvex[T Float] struct {
	lambda float64
	scad   bool
	slope  float64 // 1/(a−1) or 1/γ
	spec   Spec
}

// Indices of the slots of the model.
const (
	agAlpha   = iota // α of the coming step
	agMoved          // length of y's last step
	agBefore         // and of the one before
	agRestart        // r, the step of the last restart
)

func newAGNonconvex[T Float](v Values) (Rule[T], error) {
	a, gamma := v.Float("a"), v.Float("gamma")
	if a == 1 {
		return nil, &HyperError{"ag_nonconvex", "a", "ag_nonconvex: a: want a number above 1, got 1"}
	}
	if gamma == 0 {
		return nil, &HyperError{"ag_nonconvex", "gamma", "ag_nonconvex: gamma: want a number above 0, got 0"}
	}
	r := &agNonconvex[T]{lambda: v.Float("lambda"), scad: v.String("penalty") == "scad", slope: 1 / gamma}
	if r.scad {
		r.slope = 1 / (a - 1)
	}
	r.spec = elementWise("ag_nonconvex", Slot{Name: "w", FromParams: true}, Slot{Name: "w_ag", FromParams: true},
		// The first y is the start itself: a step of length 0, after one that
		// the authors take to be 1.
		Slot{Name: "al", Class: Model, Init: nextAlpha(1)}, Slot{Name: "sp", Class: Model},
		Slot{Name: "sp_old", Class: Model, Init: 1}, Slot{Name: "rk", Class: Model})
	r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "moved", Op: Sum, Over: Model}}}, {}}
	return r, nil
}

// nextAlpha is the α that follows another without a restart.
func nextAlpha(alpha float64) float64 {
	return 2 / (1 + math.Sqrt(1+4/float64(alpha*alpha)))
}

// Spec implements [Rule].
func (r *agNonconvex[T]) Spec() *Spec { return &r.spec }

// Indices of the scalars of a step.
const (
	agLong  = iota // l
	agShort        // b
	agNext         // α of the next step
)

// Prepare implements [Rule].
func (r *agNonconvex[T]) Prepare(pass int, k *Step) {
	next, restart := nextAlpha(k.Model[agAlpha]), k.Model[agRestart]
	if t := float64(k.T + 1); k.Model[agBefore] > k.Model[agMoved] && t-restart >= 3 {
		next, restart = 1, t
	}
	k.Coef = append(k.Coef[:0], k.LR/k.Model[agAlpha], k.LR, next)
	if pass == 1 {
		k.Next[agAlpha], k.Next[agRestart] = next, restart
		k.Next[agBefore], k.Next[agMoved] = k.Model[agMoved], math.Sqrt(k.Reduced[0][0][0])
	}
}

// Apply implements [Rule].
func (r *agNonconvex[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if pass == 1 {
		checkLen(n, len(s.Out))
	}
	lambda := r.lambda
	if s.Tensor.Info.NoDecay {
		lambda = 0
	}
	long, short, next := k.Coef[agLong], k.Coef[agShort], k.Coef[agNext]
	var buf [3][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		y, grad, w, x := s.W[lo:hi], buf[0][:hi-lo], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		newW, newX := w, x
		if pass == 0 {
			newW, newX = buf[1][:hi-lo], buf[2][:hi-lo]
		}
		r.gradient(grad, y, s.G[Grad][lo:hi], T(lambda))
		vec.SubScaled(newW, w, T(long), grad)
		vec.SoftThreshold(newW, newW, T(float64(long*lambda)))
		vec.SubScaled(newX, y, T(short), grad)
		vec.SoftThreshold(newX, newX, T(float64(short*lambda)))
		if pass == 1 {
			vec.Axpby(s.Out[lo:hi], T(1-next), newX, T(next), newW)
			continue
		}
		step := newX
		vec.Axpby(step, T(1-next), newX, T(next), newW)
		vec.Sub(step, step, y)
		s.Sums[0][0] += vec.Dot(step, step)
	}
}

// gradient is dst = g + q(y).
func (r *agNonconvex[T]) gradient(dst, y, g []T, lambda T) {
	if r.scad {
		vec.SoftThreshold(dst, y, lambda)
		y = dst
	}
	vec.Scale(dst, T(r.slope), y)
	vec.Clamp(dst, dst, -lambda, lambda)
	vec.Sub(dst, g, dst)
}
