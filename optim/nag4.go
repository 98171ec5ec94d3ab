package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "nag4",
		Doc:   "Nesterov's flow solved semi-implicitly, with a constant gamma",
		Paper: "Leplat et al., arXiv:2209.14937; skolai/nag-gs nag_gs_pytorch.py (NAG4)",
		Hypers: []Hyper{
			rate(0.01),
			number("mu", 1, 0, inf, "strong convexity: pull of v towards w"),
			number("gamma", 1, 0, inf, "inertia of v; above 0"),
		},
		New32: newNAG4[float32],
		New64: newNAG4[float64],
	})
}

// nag4 is NAG4. With a = lr it does, for every element,
//
//	v ← (γ·v + a·μ·w − a·g) / (γ + a·μ)
//	w ← (w + a·v) / (1 + a)
//
// v starts as a copy of w. The quotients are computed once as factors. There is
// no weight decay.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w and v and no other. Apply does not allocate.
//
// Leplat, Merkulov, Katrutsa, Bershatsky, Tsymboi and Oseledets, "NAG-GS:
// Semi-Implicit, Accelerated and Robust Stochastic Optimizer",
// arXiv:2209.14937; as class NAG4 of nag_gs_pytorch.py.
type nag4[T Float] struct {
	spec      Spec
	mu, gamma float64
}

func newNAG4[T Float](v Values) (Rule[T], error) {
	r := &nag4[T]{elementWise("nag4", Slot{Name: "v", FromParams: true}), v.Float("mu"), v.Float("gamma")}
	if r.gamma == 0 {
		return nil, &HyperError{"nag4", "gamma", "nag4: gamma: want a number above 0, got 0"}
	}
	return r, nil
}

// Spec implements [Rule].
func (r *nag4[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *nag4[T]) Prepare(_ int, k *Step) {
	k.Coef = nagFactors(k.Coef[:0], k.LR, r.mu, r.gamma)
}

// nagFactors appends the factors of v, w and −g in the new v, and those of w and
// v in the new w, for a = lr.
func nagFactors(coef []float64, a, mu, gamma float64) []float64 {
	amu := float64(a * mu)
	return append(coef, gamma/(gamma+amu), amu/(gamma+amu), a/(gamma+amu), 1/(1+a), a/(1+a))
}

// Apply implements [Rule].
func (r *nag4[T]) Apply(_ int, k *Step, s *Span[T]) {
	nagApply(k.Coef, s)
}

// nagApply is one step with the factors of nagFactors.
func nagApply[T Float](coef []float64, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]), len(s.Slots[0]))
	vv, vw, vg, ww, wv := T(coef[0]), T(coef[1]), T(coef[2]), T(coef[3]), T(coef[4])
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, v := s.W[lo:hi], s.Slots[0][lo:hi]
		vec.Axpby(v, vv, v, vw, w)
		vec.SubScaled(v, v, vg, s.G[Grad][lo:hi])
		vec.Axpby(s.Out[lo:hi], ww, w, wv, v)
	}
}
