package optim

func init() {
	Register(Def{
		Name:   "sania_adagrad_sqr",
		Doc:    "Polyak's step size in the metric of summed squares of gradients, free of scale",
		Paper:  "Abdukhakimov et al., 2023, arXiv:2312.17369; fxrshed/SANIA SANIA/sania_adagrad_sqr.py",
		Hypers: saniaHypers(),
		New32:  newSANIAAdaGrad[float32],
		New64:  newSANIAAdaGrad[float64],
	})
}

// newSANIAAdaGrad makes SANIA AdaGrad-SQR ([sania]).
//
// Abdukhakimov, Xiang, Kamzolov and Takáč, "SANIA: Polyak-type Optimization
// Framework Leads to Scale Invariant Stochastic Algorithms", 2023,
// arXiv:2312.17369; as fxrshed/SANIA SANIA/sania_adagrad_sqr.py.
func newSANIAAdaGrad[T Float](v Values) (Rule[T], error) {
	r := newSANIA[T]("sania_adagrad_sqr", v)
	r.adaGrad = true
	return r, nil
}
