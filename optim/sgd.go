package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "sgd",
		Doc:   "gradient descent, with momentum or Nesterov's momentum",
		Paper: "pytorch/pytorch torch/optim/sgd.py; Sutskever et al., ICML 2013",
		Hypers: []Hyper{
			rate(0.01),
			number("momentum", 0, 0, Below1, "decay rate of the momentum buffer"),
			number("dampening", 0, 0, 1, "part of the gradient kept out of the buffer, except at the first update"),
			number("weight_decay", 0, 0, inf, "coupled (L2) decay, added to the gradient"),
			flag("nesterov", false, "step along g + momentum·u in place of u; needs momentum and no dampening"),
			flag("maximize", false, "climb instead of descend"),
		},
		New32: newSGD[float32],
		New64: newSGD[float64],
	})
}

// sgd is gradient descent. With momentum μ, dampening δ and decay λ it does,
// for every element,
//
//	g ← ±g + λ·w                   (− to maximize)
//	u ← μ·u + (1−δ)·g              (at the first update u ← g)
//	g ← g + μ·u (nesterov), or u   (g itself without momentum)
//	w ← w − lr·g
//
// The learning rate multiplies the buffer, so that a new rate acts on the
// whole history, as in PyTorch and unlike Sutskever et al. The slot u exists
// only with momentum. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w and u and no other. Apply does not allocate.
type sgd[T Float] struct {
	spec                  Spec
	momentum, damp, wd    float64
	hasMomentum, nesterov bool
	sign                  float64
}

func newSGD[T Float](v Values) (Rule[T], error) {
	r := &sgd[T]{momentum: v.Float("momentum"), damp: v.Float("dampening"), wd: v.Float("weight_decay"), nesterov: v.Bool("nesterov"), sign: 1}
	r.hasMomentum = r.momentum != 0
	if r.nesterov && (!r.hasMomentum || r.damp != 0) {
		return nil, &HyperError{"sgd", "nesterov", "sgd: nesterov needs a momentum above 0 and dampening 0"}
	}
	if v.Bool("maximize") {
		r.sign = -1
	}
	r.spec = elementWise("sgd")
	r.spec.Runs = !r.hasMomentum
	if r.hasMomentum {
		r.spec.Slots = []Slot{{Name: "u"}}
	}
	return r, nil
}

// Spec implements [Rule].
func (r *sgd[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule]. At the first update u is zero, so μ = 0 and
// δ = 0 make u ← g.
func (r *sgd[T]) Prepare(_ int, k *Step) {
	mu, keep := r.momentum, 1-r.damp
	if k.T == 1 {
		mu, keep = 0, 1
	}
	k.Coef = append(k.Coef[:0], k.LR, mu, keep)
}

// Apply implements [Rule].
func (r *sgd[T]) Apply(_ int, k *Step, s *Span[T]) {
	checkLen(len(s.W), len(s.Out), len(s.G[Grad]))
	c := vec.SGDCoef[T]{Sign: T(r.sign), Decay: T(r.wd), LR: T(k.Coef[0]), Mu: T(k.Coef[1]), Keep: T(k.Coef[2]),
		Ahead: T(r.momentum)} // also at the first update
	if s.Tensor.Info.NoDecay {
		c.Decay = 0
	}
	switch {
	case !r.hasMomentum:
		vec.SGD(s.Out, s.W, s.G[Grad], &c)
	case r.nesterov:
		vec.SGDNesterov(s.Out, s.W, s.G[Grad], s.Slots[0], &c)
	default:
		vec.SGDMomentum(s.Out, s.W, s.G[Grad], s.Slots[0], &c)
	}
}
