package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "momo_adam",
		Doc:   "Adam with a step size that a model of the loss chooses, up to the learning rate",
		Paper: "Schaipp et al., ICML 2024, arXiv:2305.07583; fabian-sp/MoMo momo/momo_adam.py",
		Hypers: []Hyper{
			rate(0.01),
			pair("betas", 0.9, 0.999, "decay rates of the averages and of the second moment"),
			number("eps", 1e-8, 0, inf, "added to the root of the second moment"),
			number("weight_decay", 0, 0, inf, "decay, in the way that divide says"),
			number("lb", 0, -inf, inf, "lower bound of the loss"),
			flag("divide", true, "proximal decay, a division by 1 + lr·weight_decay; else w shrinks by lr·weight_decay"),
			flag("use_fstar", false, "estimate a better lower bound on the way"),
		},
		New32: newMoMoAdam[float32],
		New64: newMoMoAdam[float64],
	})
}

// moMoAdam is MoMo-Adam: the scalars of MoMo with bias correction ([moMo]) in
// Adam's metric. With D = √(v/c₂) + ε, c₂ = 1 − β₂ᵗ, decay λ and c = 1 + lr·λ
// it does
//
//	d ← β₁·d + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	N = Σ d²/D, and f, γ, lb and τ from it as in MoMo
//	w ← (w − τ·d/D)/c               (divide)
//	w ← w·(1 − lr·λ) − τ·d/D        (otherwise; τ as before)
//
// where sums run over the whole model. Tensors marked NoDecay have λ = 0.
// Pass 0 adds up the inner products.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g makes NaN of
// all parameters. Apply does not allocate.
//
// Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for
// Adaptive Learning Rates", ICML 2024, Algorithms 2 and 4, arXiv:2305.07583.
type moMoAdam[T Float] struct {
	momoHyper
	b2, eps float64
	divide  bool
	sp      Spec
}

func newMoMoAdam[T Float](v Values) (Rule[T], error) {
	b1, b2 := v.Pair("betas")
	r := &moMoAdam[T]{momoHyper: momoHyper{b1, v.Float("weight_decay"), v.Float("lb"), true, v.Bool("use_fstar")}}
	r.b2, r.eps, r.divide = b2, v.Float("eps"), v.Bool("divide")
	r.sp = r.spec("momo_adam", Slot{Name: "d"}, Slot{Name: "v"})
	return r, nil
}

// Spec implements [Rule].
func (r *moMoAdam[T]) Spec() *Spec { return &r.sp }

// Prepare implements [Rule].
func (r *moMoAdam[T]) Prepare(pass int, k *Step) {
	tau := 0.0
	if pass == 1 {
		tau = r.step(k)
	}
	decay := float64(k.LR * r.wd)
	shrink, step := 1-decay, tau
	if r.divide {
		shrink, step = 1/(1+decay), tau/(1+decay)
	}
	k.Coef = append(k.Coef[:0], tau, 1/biasCorrection(r.b2, k.T), shrink, step)
}

// Apply implements [Rule].
func (r *moMoAdam[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if pass == 1 {
		checkLen(n, len(s.Out))
	}
	b1, a1, b2, a2 := T(r.beta), T(1-r.beta), T(r.b2), T(1-r.b2)
	h2, eps := T(k.Coef[1]), T(r.eps)
	shrink, step := T(1), T(k.Coef[0])
	wd, dd := momoWDFree, momoDDFree
	if !s.Tensor.Info.NoDecay {
		shrink, step = T(k.Coef[2]), T(k.Coef[3])
		wd, dd = momoWD, momoDD
	}
	var buf [2][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, d, v, x := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi], buf[0][:hi-lo]
		if pass == 1 {
			out := s.Out[lo:hi]
			vec.Axpby(d, b1, d, a1, g)
			vec.AxpbySquare(v, b2, v, a2, g)
			vec.RootOfScaled(x, v, h2, eps)
			vec.Scale(out, shrink, w)
			vec.SubQuotient(out, out, step, d, x)
			continue
		}
		y := buf[1][:hi-lo]
		vec.AxpbySquare(x, b2, v, a2, g)
		vec.RootOfScaled(x, x, h2, eps)
		vec.Axpby(y, b1, d, a1, g)
		s.Sums[0][momoWG] += vec.Dot(w, g)
		s.Sums[0][wd] += vec.Dot(w, y)
		vec.Div(x, y, x)
		s.Sums[0][dd] += vec.Dot(x, y)
	}
}
