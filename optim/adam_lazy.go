package optim

func init() {
	Register(Def{
		Name:  "adam_lazy",
		Doc:   "Adam for tables: rows that no push names keep parameters and moments",
		Paper: "Kingma and Ba, ICLR 2015, arXiv:1412.6980; pytorch/pytorch torch/optim/sparse_adam.py",
		Hypers: []Hyper{
			rate(1e-3),
			pair("betas", 0.9, 0.999, "decay rates of the two moments"),
			number("eps", 1e-8, 0, inf, "added to the root of the second moment"),
		},
		New32: newAdamLazy[float32],
		New64: newAdamLazy[float64],
	})
}

// adamLazy is Adam for row-sparse gradients. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ it
// does, for every element that a push names,
//
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	w ← w − (lr·√c₂/c₁) · m / (√v + ε)
//
// All other elements keep w, m and v: their moments do not decay. t counts the
// updates of the job and not those of an element. Epsilon is added before the
// correction of v. There is no weight decay. An element that is named with a
// zero gradient counts as any other.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w, m and v and no other. Apply does not allocate.
//
// Kingma and Ba, "Adam", ICLR 2015, section 2, arXiv:1412.6980; as
// pytorch/pytorch torch/optim/sparse_adam.py.
type adamLazy[T Float] struct {
	adamHyper
	spec Spec
}

func newAdamLazy[T Float](v Values) (Rule[T], error) {
	r := &adamLazy[T]{spec: elementWise("adam_lazy", moments()...)}
	r.b1, r.b2 = v.Pair("betas")
	r.eps = v.Float("eps")
	r.spec.Runs = true
	return r, nil
}

// Spec implements [Rule].
func (r *adamLazy[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adamLazy[T]) Prepare(_ int, k *Step) {
	k.Coef = append(k.Coef[:0], hatStep(k.LR, r.b1, r.b2, k.T))
}

// Apply implements [Rule].
func (r *adamLazy[T]) Apply(_ int, k *Step, s *Span[T]) {
	hatApply(&r.adamHyper, T(k.Coef[0]), 1, s)
}
