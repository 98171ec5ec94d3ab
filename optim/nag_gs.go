package optim

func init() {
	Register(Def{
		Name:  "nag_gs",
		Doc:   "Nesterov's flow solved semi-implicitly, one Gauss-Seidel sweep over w, gamma and v",
		Paper: "Leplat et al., arXiv:2209.14937; skolai/nag-gs nag_gs_jax.py",
		Hypers: []Hyper{
			rate(0.05),
			number("mu", 1, 0, inf, "strong convexity: pull of v towards w, and where gamma tends to"),
			number("gamma", 1.5, 0, inf, "inertia of v at the start; above 0"),
		},
		New32: newNAGGS[float32],
		New64: newNAGGS[float64],
	})
}

// nagGS is NAG-GS. With a = lr and the scalar γ of the model it does, for every
// element,
//
//	v ← (γ·v + a·μ·w − a·g) / (γ + a·μ)    (from the second update on)
//	w ← (w + a·v) / (1 + a)
//
// and then γ ← (γ + a·μ) / (1 + a), so that v of an update uses γ of the one
// before. A sweep of the method begins with w and ends with v, which needs the
// gradient at the new w and hence belongs to the next update; so the first
// gradient is not used, and as v starts as a copy of w, w does not move then.
// There is no weight decay. The factors are as in nag4.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w and v and no other, but not at the first update. Apply does
// not allocate.
//
// Leplat et al., arXiv:2209.14937, as nag_gs_jax.py; the PyTorch class of that
// name loses its γ.
type nagGS[T Float] struct {
	spec Spec
	mu   float64
}

func newNAGGS[T Float](v Values) (Rule[T], error) {
	gamma := v.Float("gamma")
	if gamma == 0 {
		return nil, &HyperError{"nag_gs", "gamma", "nag_gs: gamma: want a number above 0, got 0"}
	}
	spec := elementWise("nag_gs", Slot{Name: "v", FromParams: true}, Slot{Name: "gamma", Class: Model, Init: gamma})
	return &nagGS[T]{spec, v.Float("mu")}, nil
}

// Spec implements [Rule].
func (r *nagGS[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *nagGS[T]) Prepare(_ int, k *Step) {
	gamma := k.Model[0]
	k.Coef = nagFactors(k.Coef[:0], k.LR, r.mu, gamma)
	k.Next[0] = (gamma + float64(k.LR*r.mu)) / (1 + k.LR)
}

// Apply implements [Rule].
func (r *nagGS[T]) Apply(_ int, k *Step, s *Span[T]) {
	if k.T == 1 {
		checkLen(len(s.W), len(s.Out), len(s.G[Grad]), len(s.Slots[0]))
		copy(s.Out, s.W)
		return
	}
	nagApply(k.Coef, s)
}
