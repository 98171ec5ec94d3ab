package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "swats",
		Doc:   "Adam that turns into gradient descent with momentum, at a rate it finds itself",
		Paper: "Keskar and Socher, 2017, arXiv:1712.07628",
		Hypers: append(adamHypers(1e-3, 1e-9, 0, "coupled decay: weight_decay·w is added to the gradient"),
			number("switch_eps", 1e-9, 0, inf, "the switch needs the estimated rate this close to its average"),
			number("switch_rel", 0, 0, inf, "and this share of the estimate is added to switch_eps")),
		New32: newSWATS[float32],
		New64: newSWATS[float64],
	})
}

// swats is SWATS. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it begins as Adam,
// with ε inside the correction:
//
//	g ← g + λ·w
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	p = −(lr·√c₂/c₁) · m/(√v + ε),  w ← w + p
//
// and projects its steps on the gradient, over the whole model: unless ⟨p, g⟩
// is 0,
//
//	γ = ⟨p, p⟩/−⟨p, g⟩,  Λ ← β₂·Λ + (1−β₂)·γ,  L = Λ/c₂
//
// At the first t > 1 with L > 0 and |L − γ| < switch_eps + switch_rel·|γ| it
// becomes, from the next step on, gradient descent with momentum from u = 0:
//
//	g ← g + λ·w,  u ← β₁·u + g,  w ← w − (1−β₁)·L·u
//
// The switch is that of the paper, one for the model, where other programs ask
// tensor by tensor and turn all of a group with its first. L was found at the
// schedule's value of that step; where the schedule goes on, so does the rate,
// in proportion. The buffer u lives in m, and v is then no longer used. Tensors
// marked NoDecay have λ = 0.
//
// Pass 0 adds up the inner products, pass 1 computes m and v again.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v; while Adam runs it makes NaN of Λ too, so that the
// switch never comes. Apply does not allocate.
//
// Keskar and Socher, "Improving Generalization Performance by Switching from
// Adam to SGD", 2017, Algorithm 1, arXiv:1712.07628.
type swats[T Float] struct {
	adamHyper
	switchEps, switchRel float64
	spec                 Spec
}

// Indices of the slots of the model.
const (
	swatsAverage = iota // Λ
	swatsRate           // L
	swatsPhase          // 0 while Adam runs, then 1
	swatsLR             // the schedule's value at the switch
)

// Indices of the sums over the model, with q = m/(√v + ε).
const (
	swatsQQ = iota
	swatsQG
	swatsSums
)

// Indices of the scalars of a step.
const (
	swatsStep   = iota // of Adam, or (1−β₁)·L
	swatsSwitch        // 1 where this is the last step of Adam
)

func newSWATS[T Float](v Values) (Rule[T], error) {
	r := &swats[T]{adamValues(v), v.Float("switch_eps"), v.Float("switch_rel"), elementWise("swats", moments()...)}
	for _, name := range []string{"lam", "L", "phase", "lr"} {
		r.spec.Slots = append(r.spec.Slots, Slot{Name: name, Class: Model})
	}
	r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "model", Op: Sum, Over: Model, Width: swatsSums}}}, {}}
	return r, nil
}

// Spec implements [Rule].
func (r *swats[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *swats[T]) Prepare(pass int, k *Step) {
	if k.Model[swatsPhase] != 0 {
		rate := float64(k.Model[swatsRate] * (k.LR / k.Model[swatsLR]))
		k.Coef = append(k.Coef[:0], float64((1-r.b1)*rate), 0)
		return
	}
	step := hatStep(k.LR, r.b1, r.b2, k.T)
	k.Coef = append(k.Coef[:0], step, 0)
	if pass == 1 && r.estimate(step, k) {
		k.Coef[swatsSwitch] = 1
		k.Next[swatsPhase], k.Next[swatsLR] = 1, k.LR
	}
}

// estimate fills the slots of the average and the rate after a step of Adam, and
// says whether it is time to switch.
func (r *swats[T]) estimate(step float64, k *Step) bool {
	sums := k.Reduced[0][0]
	if step == 0 || sums[swatsQG] == 0 {
		return false
	}
	// p = −step·q, so one factor of it remains in γ.
	gamma := float64(step * (sums[swatsQQ] / sums[swatsQG]))
	average := float64(r.b2*k.Model[swatsAverage]) + float64((1-r.b2)*gamma)
	rate := average / biasCorrection(r.b2, k.T)
	k.Next[swatsAverage], k.Next[swatsRate] = average, rate
	return k.T > 1 && rate > 0 && math.Abs(rate-gamma) < r.switchEps+float64(r.switchRel*math.Abs(gamma))
}

// Apply implements [Rule].
func (r *swats[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if pass == 1 {
		checkLen(n, len(s.Out))
	}
	descent := k.Model[swatsPhase] != 0
	if descent && pass == 0 {
		return
	}
	step, wd := T(k.Coef[swatsStep]), T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	b1, a1, b2, a2, eps := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2), T(r.eps)
	var buf [4][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, m, v := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		if wd != 0 {
			decayed := buf[0][:hi-lo]
			vec.AddScaled(decayed, g, wd, w)
			g = decayed
		}
		if descent {
			vec.Axpby(m, b1, m, 1, g)
			vec.SubScaled(s.Out[lo:hi], w, step, m)
			continue
		}
		newM, newV, root := m, v, buf[1][:hi-lo]
		if pass == 0 {
			newM, newV = buf[2][:hi-lo], buf[3][:hi-lo]
		}
		vec.Axpby(newM, b1, m, a1, g)
		vec.AxpbySquare(newV, b2, v, a2, g)
		vec.RootScaled(root, newV, 1, eps)
		if pass == 0 {
			q := root
			vec.Div(q, newM, root)
			s.Sums[0][swatsQQ] += vec.Dot(q, q)
			s.Sums[0][swatsQG] += vec.Dot(q, g)
			continue
		}
		vec.SubQuotient(s.Out[lo:hi], w, step, newM, root)
		if k.Coef[swatsSwitch] != 0 {
			clear(m)
		}
	}
}
