package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "momo",
		Doc:   "momentum with a step size that a model of the loss chooses, up to the learning rate",
		Paper: "Schaipp et al., ICML 2024, arXiv:2305.07583; fabian-sp/MoMo momo/momo.py",
		Hypers: []Hyper{
			rate(1),
			number("beta", 0.9, 0, Below1, "decay rate of the averages"),
			number("weight_decay", 0, 0, inf, "proximal decay: w is divided by 1 + lr·weight_decay"),
			number("lb", 0, -inf, inf, "lower bound of the loss"),
			flag("bias_correction", false, "start the averages at 0 and correct them, in place of at the first value"),
			flag("use_fstar", false, "estimate a better lower bound on the way"),
		},
		New32: newMoMo[float32],
		New64: newMoMo[float64],
	})
}

// moMo is MoMo. With L the loss that belongs to g, N = ‖d‖², decay λ,
// c = 1 + lr·λ and ρ = 1 − βᵗ with bias correction, else 1, it does
//
//	f ← β·f + (1−β)·L,  d ← β·d + (1−β)·g,  γ ← β·γ + (1−β)·⟨w, g⟩
//	τ = min(lr/ρ, max(c·(f − ρ·lb) + ⟨w, d⟩ − c·γ, 0)/N)
//	w ← (w − τ·d)/c
//
// where inner products run over the whole model. Without bias correction the
// averages start at the first values. With useFstar the bound lb, of which
// lb₀ is the start, changes before and after τ is taken:
//
//	lb ← max(h/(2·c·ρ), lb₀)   if h = c·f + ⟨w, d⟩ − c·γ < c·ρ·lb
//	lb ← max((f + ⟨w, d⟩ − γ − τ·N/2)/ρ, lb₀)
//
// N = 0 gives τ = 0. Tensors marked NoDecay have λ = 0, for which τ accounts
// ([momoHyper.step]). Pass 0 adds up the inner products.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g makes NaN of
// all parameters. Apply does not allocate.
//
// Schaipp, Ohana, Eickenberg, Defazio and Gower, "MoMo: Momentum Models for
// Adaptive Learning Rates", ICML 2024, Algorithms 1 and 3, arXiv:2305.07583.
type moMo[T Float] struct {
	momoHyper
	sp Spec
}

func newMoMo[T Float](v Values) (Rule[T], error) {
	r := &moMo[T]{momoHyper: momoHyper{v.Float("beta"), v.Float("weight_decay"), v.Float("lb"), v.Bool("bias_correction"), v.Bool("use_fstar")}}
	r.sp = r.spec("momo", Slot{Name: "d"})
	return r, nil
}

// Spec implements [Rule].
func (r *moMo[T]) Spec() *Spec { return &r.sp }

// Prepare implements [Rule].
func (r *moMo[T]) Prepare(pass int, k *Step) {
	tau := 0.0
	if pass == 1 {
		tau = r.step(k)
	}
	k.Coef = append(k.Coef[:0], r.smoothing(k.T), tau, 1+float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *moMo[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]))
	beta, alpha := T(k.Coef[0]), T(1-k.Coef[0])
	shrink, step := T(1), T(k.Coef[1])
	wd, dd := momoWDFree, momoDDFree
	if !s.Tensor.Info.NoDecay {
		shrink, step = T(1/k.Coef[2]), T(k.Coef[1]/k.Coef[2])
		wd, dd = momoWD, momoDD
	}
	if pass == 1 {
		checkLen(n, len(s.Out))
		vec.Axpby(s.Slots[0], beta, s.Slots[0], alpha, s.G[Grad])
		vec.Axpby(s.Out, shrink, s.W, -step, s.Slots[0])
		return
	}
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, d := s.W[lo:hi], s.G[Grad][lo:hi], buf[:hi-lo]
		vec.Axpby(d, beta, s.Slots[0][lo:hi], alpha, g)
		s.Sums[0][momoWG] += vec.Dot(w, g)
		s.Sums[0][wd] += vec.Dot(w, d)
		s.Sums[0][dd] += vec.Dot(d, d)
	}
}
