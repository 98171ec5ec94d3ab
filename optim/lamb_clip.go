package optim

import (
	"math"

	"tributary/internal/vec"
	"tributary/layout"
)

func init() {
	Register(Def{
		Name:  "lamb_clip",
		Doc:   "LAMB after clipping the gradient by its norm over the whole model",
		Paper: "You et al., ICLR 2020, arXiv:1904.00962; huggingface/pytorch-image-models timm/optim/lamb.py",
		Hypers: append(adamHypers(1e-3, 1e-6, 0, "decoupled decay, part of the step whose norm is taken"),
			number("max_grad_norm", 1, 0, inf, "norm over the model that gradients are cut down to; 0 means no clipping"),
			flag("always_adapt", false, "trust ratio for tensors without decay as well")),
		New32: newLAMBClip[float32],
		New64: newLAMBClip[float64],
	})
}

// lambClip is LAMB with clipping. With G the norm of the gradient over all
// tensors, Γ its bound, c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ and decay λ it does, for
// every tensor,
//
//	g ← g / max(1, G/Γ)            (Γ = 0: no clipping)
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	u = (m/c₁) / (√(v/c₂) + ε) + λ·w
//	r = ‖w‖/‖u‖ where both norms are above 0, else 1
//	w ← w − lr·r·u
//
// Tensors marked NoDecay have λ = 0. Tensors with λ = 0 have r = 1 unless
// alwaysAdapt. The passes are: the norm over the model, if gradients are
// clipped; the norms of every tensor, if any tensor needs them; and the step.
// Nothing is stored in between.
//
// Out may be W; other overlaps are not allowed. A NaN in g makes NaN of all
// parameters and moments; without clipping it reaches the same element of m and
// v and, through the norm, all of w's tensor. Apply does not allocate.
//
// You et al., "Large Batch Optimization for Deep Learning", ICLR 2020,
// Algorithm 2 of the last version, arXiv:1904.00962; clipping and the
// exemption from the trust ratio as in timm.
type lambClip[T Float] struct {
	adamHyper
	maxNorm     float64
	alwaysAdapt bool
	// clipPass and normPass are the passes with that reduction; -1 if there is none.
	clipPass, normPass int
	spec               Spec
}

func newLAMBClip[T Float](v Values) (Rule[T], error) {
	r := &lambClip[T]{
		adamHyper: adamValues(v), maxNorm: v.Float("max_grad_norm"), alwaysAdapt: v.Bool("always_adapt"),
		clipPass: -1, normPass: -1, spec: elementWise("lamb_clip", moments()...),
	}
	var passes []Pass
	if r.maxNorm > 0 {
		r.clipPass = len(passes)
		passes = append(passes, Pass{Reduce: []Reduction{{Name: "gradient", Op: Sum, Over: Model}}})
	}
	if r.wd != 0 || r.alwaysAdapt {
		r.normPass = len(passes)
		passes = append(passes, Pass{Reduce: []Reduction{{Name: "norms", Op: Sum, Over: Tensor, Width: 2, Only: r.adapts}}})
	}
	r.spec.Phases[0].Passes = append(passes, Pass{})
	return r, nil
}

// adapts says whether tensor t has a trust ratio.
func (r *lambClip[T]) adapts(t *layout.Tensor) bool {
	return r.alwaysAdapt || r.wd != 0 && !t.NoDecay
}

// Spec implements [Rule].
func (r *lambClip[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *lambClip[T]) Prepare(pass int, k *Step) {
	clip := 1.0
	if r.clipPass >= 0 && pass > r.clipPass {
		// A NaN is not in bounds, so that it reaches all parameters.
		if norm := math.Sqrt(k.Reduced[r.clipPass][0][0]); !(norm <= r.maxNorm) {
			clip = r.maxNorm / norm
		}
	}
	k.Coef = append(k.Coef[:0], k.LR, 1/biasCorrection(r.b1, k.T), 1/biasCorrection(r.b2, k.T), clip)
}

// Apply implements [Rule].
func (r *lambClip[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	if pass == r.clipPass {
		s.Sums[0][0] += vec.Dot(s.G[Grad], s.G[Grad])
		return
	}
	if pass == r.normPass && !r.adapts(s.Tensor.Info) {
		return
	}
	h1, h2, clip := T(k.Coef[1]), T(k.Coef[2]), T(k.Coef[3])
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	eps, wd := T(r.eps), T(r.wd)
	if s.Tensor.Info.NoDecay {
		wd = 0
	}
	step := T(k.Coef[0])
	if pass != r.normPass {
		checkLen(n, len(s.Out))
		if r.adapts(s.Tensor.Info) {
			step = finite[T](float64(k.Coef[0] * trustRatio(s.Tensor.Reduced[r.normPass][0])))
		}
	}
	var buf [3][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		w, g, m, v := s.W[lo:hi], s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi]
		u, newM, newV := buf[0][:hi-lo], m, v
		if pass == r.normPass {
			newM, newV = buf[1][:hi-lo], buf[2][:hi-lo]
		}
		if clip != 1 {
			vec.Scale(u, clip, g)
			g = u
		}
		vec.Axpby(newM, b1, m, a1, g)
		vec.AxpbySquare(newV, b2, v, a2, g)
		vec.RootOfScaled(u, newV, h2, eps)
		vec.Div(u, newM, u)
		vec.Axpby(u, h1, u, wd, w)
		if pass == r.normPass {
			s.Sums[0][lambWW] += vec.Dot(w, w)
			s.Sums[0][lambUU] += vec.Dot(u, u)
		} else {
			vec.SubScaled(s.Out[lo:hi], w, step, u)
		}
	}
}
