package optim

import "tributary/internal/vec"

func init() {
	Register(Def{
		Name:  "sgdw",
		Doc:   "gradient descent with momentum and decoupled weight decay",
		Paper: "Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101; loshchil/AdamW-and-SGDW sgd.lua",
		Hypers: []Hyper{
			rate(0.01),
			number("momentum", 0, 0, Below1, "decay rate of the momentum buffer"),
			number("dampening", 0, 0, 1, "part of the gradient kept out of the buffer, except at the first update"),
			number("weight_decay", 0, 0, inf, "decoupled decay: w shrinks by weight_decay times the schedule's multiplier, whatever lr is"),
			flag("nesterov", false, "step along g + momentum·u in place of u; needs momentum and no dampening"),
		},
		New32: newSGDW[float32],
		New64: newSGDW[float64],
	})
}

// sgdw is SGDW. With momentum μ, dampening δ, decay λ and the schedule's
// multiplier η = lrₜ/lr it does, for every element,
//
//	u ← μ·u + (1−δ)·g              (at the first update u ← g)
//	d = g + μ·u (nesterov), or u   (g itself without momentum)
//	w ← w·(1 − η·λ) − lrₜ·d
//
// The decay follows the schedule and is not multiplied by lr. The normalized
// decay of the paper is λ·√(batch/(samples·epochs)), for the caller to insert.
// The slot u exists only with momentum. Tensors marked NoDecay have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches the
// same element of w and u and no other. Apply does not allocate.
//
// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019,
// Algorithm 1, arXiv:1711.05101; as sgd.lua, but for its default of dampening.
type sgdw[T Float] struct {
	spec                  Spec
	lr, momentum, damp    float64
	wd                    float64
	hasMomentum, nesterov bool
}

func newSGDW[T Float](v Values) (Rule[T], error) {
	r := &sgdw[T]{lr: v.Float("lr"), momentum: v.Float("momentum"), damp: v.Float("dampening"), wd: v.Float("weight_decay"), nesterov: v.Bool("nesterov")}
	r.hasMomentum = r.momentum != 0
	if r.nesterov && (!r.hasMomentum || r.damp != 0) {
		return nil, &HyperError{"sgdw", "nesterov", "sgdw: nesterov needs a momentum above 0 and dampening 0"}
	}
	r.spec = elementWise("sgdw")
	if r.hasMomentum {
		r.spec.Slots = []Slot{{Name: "u"}}
	}
	return r, nil
}

// Spec implements [Rule].
func (r *sgdw[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule]. At the first update u is zero, so μ = 0 and
// δ = 0 make u ← g.
func (r *sgdw[T]) Prepare(_ int, k *Step) {
	mu, keep := r.momentum, 1-r.damp
	if k.T == 1 {
		mu, keep = 0, 1
	}
	k.Coef = append(k.Coef[:0], k.LR, mu, keep, 1-float64(multiplier(k.LR, r.lr)*r.wd))
}

// Apply implements [Rule].
func (r *sgdw[T]) Apply(_ int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.Out), len(s.G[Grad]))
	lr, mu, keep, shrink := T(k.Coef[0]), T(k.Coef[1]), T(k.Coef[2]), T(k.Coef[3])
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	if !r.hasMomentum {
		vec.Axpby(s.Out, shrink, s.W, -lr, s.G[Grad])
		return
	}
	checkLen(n, len(s.Slots[0]))
	var buf [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, u := s.G[Grad][lo:hi], s.Slots[0][lo:hi]
		vec.Axpby(u, mu, u, keep, g)
		d := u
		if r.nesterov {
			d = buf[:hi-lo]
			vec.AddScaled(d, g, T(r.momentum), u) // μ also at the first update
		}
		vec.Axpby(s.Out[lo:hi], shrink, s.W[lo:hi], -lr, d)
	}
}

// multiplier is what a schedule multiplies the base rate lr with to give now.
func multiplier(now, lr float64) float64 {
	if lr == 0 {
		return 1
	}
	return now / lr
}
