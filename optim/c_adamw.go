package optim

import (
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "c_adamw",
		Doc:   "AdamW that moves only where the averaged and the present gradient agree in sign",
		Paper: "Liang et al., 2024, arXiv:2411.16085; kyleliang919/C-Optim c_adamw.py",
		Hypers: append(adamHypers(1e-3, 1e-6, 0, "decoupled decay: w shrinks by lr·weight_decay"),
			flag("correct_bias", true, "correct the moments for their start at 0")),
		New32: newCautiousAdamW[float32],
		New64: newCautiousAdamW[float64],
	})
}

// cautiousAdamW is C-AdamW. With c₁ = 1 − β₁ᵗ, c₂ = 1 − β₂ᵗ, decay λ and K of
// a tensor's n elements where m·g > 0 it does, for every element,
//
//	w ← w·(1 − lr·λ)
//	m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²
//	w ← w − step/max(K/n, 0.001) · m/(√v + ε)    where m·g > 0
//
// with step = lr·√c₂/c₁, or lr if the bias is not corrected: ε is added before
// the correction of v. Pass 0 counts K. Tensors marked NoDecay have λ = 0. The
// authors' multi-tensor path masks by m·m in place of m·g; that is a mistake.
//
// Out may be W; other overlaps are not allowed. A NaN in g reaches the same
// element of w, m and v and no other. Apply does not allocate.
//
// Liang et al., "Cautious Optimizers: Improving Training with One Line of
// Code", 2024, Algorithm 1, arXiv:2411.16085.
type cautiousAdamW[T Float] struct {
	adamHyper
	correct bool
	spec    Spec
}

// minKept bounds from below the share of elements that C-AdamW moves.
const minKept = 1e-3

func newCautiousAdamW[T Float](v Values) (Rule[T], error) {
	return &cautiousAdamW[T]{adamValues(v), v.Bool("correct_bias"), cautious("c_adamw", moments()...)}, nil
}

// cautious is the spec of a rule that counts the elements it moves, per tensor.
func cautious(name string, slots ...Slot) Spec {
	spec := elementWise(name, slots...)
	spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "kept", Op: Sum, Over: Tensor}}}, {}}
	return spec
}

// Spec implements [Rule].
func (r *cautiousAdamW[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *cautiousAdamW[T]) Prepare(_ int, k *Step) {
	step := k.LR
	if r.correct {
		step = float64(step*math.Sqrt(biasCorrection(r.b2, k.T))) / biasCorrection(r.b1, k.T)
	}
	k.Coef = append(k.Coef[:0], step, 1-float64(k.LR*r.wd))
}

// Apply implements [Rule].
func (r *cautiousAdamW[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]), len(s.Slots[1]))
	b1, a1, b2, a2 := T(r.b1), T(1-r.b1), T(r.b2), T(1-r.b2)
	eps, shrink, step := T(r.eps), T(k.Coef[1]), T(0)
	if pass == 1 {
		checkLen(n, len(s.Out))
		kept := s.Tensor.Reduced[0][0][0] / float64(s.Tensor.Info.Len)
		step = T(k.Coef[0] / max(kept, minKept))
	}
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	var buf [2][tile]T
	var zero [tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, m, v, x := s.G[Grad][lo:hi], s.Slots[0][lo:hi], s.Slots[1][lo:hi], buf[0][:hi-lo]
		if pass == 0 {
			vec.Axpby(x, b1, m, a1, g)
			s.Sums[0][0] += float64(vec.CountPositive(x, g))
			continue
		}
		out, root := s.Out[lo:hi], buf[1][:hi-lo]
		vec.Axpby(m, b1, m, a1, g)
		vec.AxpbySquare(v, b2, v, a2, g)
		vec.Mul(x, m, g)
		vec.Select(x, x, m, zero[:hi-lo])
		vec.RootScaled(root, v, 1, eps)
		vec.Scale(out, shrink, s.W[lo:hi])
		vec.SubQuotient(out, out, step, x, root)
	}
}
