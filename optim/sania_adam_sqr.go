package optim

func init() {
	Register(Def{
		Name:   "sania_adam_sqr",
		Doc:    "Polyak's step size in the metric of averaged squares of gradients, free of scale",
		Paper:  "Abdukhakimov et al., 2023, arXiv:2312.17369; fxrshed/SANIA SANIA/sania_adam_sqr.py",
		Hypers: saniaHypers(pair("betas", 0.9, 0.999, "the second is the decay rate of the average of squares; the first has no effect")),
		New32:  newSANIAAdam[float32],
		New64:  newSANIAAdam[float64],
	})
}

// newSANIAAdam makes SANIA Adam-SQR ([sania]). Its reference averages no
// gradients, though it takes a β₁.
//
// Abdukhakimov, Xiang, Kamzolov and Takáč, "SANIA: Polyak-type Optimization
// Framework Leads to Scale Invariant Stochastic Algorithms", 2023,
// arXiv:2312.17369; as fxrshed/SANIA SANIA/sania_adam_sqr.py.
func newSANIAAdam[T Float](v Values) (Rule[T], error) {
	r := newSANIA[T]("sania_adam_sqr", v)
	_, r.b2 = v.Pair("betas")
	return r, nil
}
