package optim

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"tributary/internal/vec"
)

// ClipSpec says how gradients are bounded before an update rule sees them. A
// bound of 0 is none. Several bounds act one after the other, in the order of
// the fields: from one element to the whole model, so that each sees what the
// finer ones left, and the norm over the model holds for what is applied.
type ClipSpec struct {
	// Value bounds the magnitude of every element.
	Value float64 `json:"value" yaml:"value"`
	// Adaptive bounds the norm of every row by Adaptive times that of the row's
	// parameters. Vectors and single numbers are one row.
	Adaptive float64 `json:"adaptive" yaml:"adaptive"`
	// TensorNorm bounds the norm of every tensor.
	TensorNorm float64 `json:"tensor_norm" yaml:"tensor_norm"`
	// Norm bounds the norm over all tensors of the model.
	Norm float64 `json:"norm" yaml:"norm"`
}

func (c ClipSpec) check() error {
	var errs []error
	for _, f := range []struct {
		name string
		x    float64
	}{{"value", c.Value}, {"adaptive", c.Adaptive}, {"tensor_norm", c.TensorNorm}, {"norm", c.Norm}} {
		if !(f.x >= 0) || math.IsInf(f.x, 0) {
			errs = append(errs, &HyperError{"clip", f.name, fmt.Sprintf("clip: %s: want 0 or more, got %v", f.name, f.x)})
		}
	}
	return errors.Join(errs...)
}

// Clip returns rule with its gradients bounded as c says, or rule itself if c
// bounds nothing. For the combined gradient g and the parameters w
//
//	value:        g ← min(max(g, −value), value)
//	adaptive:     g ← g·b/max(‖g‖, 10⁻⁶) where ‖g‖ > b = adaptive·max(‖w‖, 10⁻³), by rows
//	tensor_norm:  g ← g·min(1, tensor_norm/(‖g‖ + 10⁻⁶)), by tensors
//	norm:         g ← g·min(1, norm/(‖g‖ + 10⁻⁶)), over the model
//
// Each of the last three adds a pass with a reduction before those of the rule;
// value alone adds none and keeps an element-wise rule one. Only gradients are
// bounded ([Grad]), no other roles. In a rule of several phases it is those of
// the last phase, which the parameters step along: earlier ones only choose the
// point where that is taken.
//
// Clip refuses rules without gradients in their last phase, and rules that
// subtract gradients at two points, which would have to be bounded alike.
//
// A NaN stays one. In a norm it reaches whatever the norm is taken over. The
// gradients of a span are overwritten. Apply and Prepare allocate nothing but
// room for scalars in their first step.
//
// Value and norms are torch.nn.utils.clip_grad_value_ and clip_grad_norm_;
// adaptive is Brock et al., "High-Performance Large-Scale Image Recognition
// Without Normalization", ICML 2021, equation 3, arXiv:2102.06171.
func Clip[T Float](rule Rule[T], c ClipSpec) (Rule[T], error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if c == (ClipSpec{}) {
		return rule, nil
	}
	inner := rule.Spec()
	roles := inner.AllRoles()
	switch {
	case !slices.Contains(inner.Phases[len(inner.Phases)-1].Needs, Grad) && inner.Optional == nil || !slices.Contains(roles, Grad):
		return nil, fmt.Errorf("clip: %s takes no gradients in its last push", inner.Name)
	case slices.Contains(roles, GradPrev):
		return nil, fmt.Errorf("clip: %s subtracts gradients at two points, which clipping one of them would falsify", inner.Name)
	}
	r := &clip[T]{rule: rule, spec: *inner, value: c.Value, phase: len(inner.Phases) - 1}
	r.spec.Name = inner.Name + " with clipping"
	var passes []Pass
	for _, s := range []clipStage{{clipRows, c.Adaptive}, {clipTensor, c.TensorNorm}, {clipModel, c.Norm}} {
		if s.bound > 0 {
			r.stages = append(r.stages, s)
			passes = append(passes, Pass{Reduce: []Reduction{clipReductions[s.over]}})
		}
	}
	last := inner.Phases[r.phase]
	last.Passes = append(passes, last.Passes...)
	r.spec.Phases = append(slices.Clone(inner.Phases[:r.phase]), last)
	r.spec.Runs = inner.Runs && len(passes) == 0
	return r, nil
}

// What the norm of a clipStage is taken over.
const (
	clipRows = iota
	clipTensor
	clipModel
)

var clipReductions = [...]Reduction{
	clipRows:   {Name: "clipping: squares of parameters and gradient", Op: Sum, Over: Row, Width: 2},
	clipTensor: {Name: "clipping: squares of the gradient", Op: Sum, Over: Tensor},
	clipModel:  {Name: "clipping: squares of the gradient", Op: Sum, Over: Model},
}

// clipStage is one bound of a norm. Stage i takes the sums of pass i.
type clipStage struct {
	over  int
	bound float64
}

// clip is a rule whose gradients are bounded. In the phase that it clips in,
// pass i below len(stages) adds up for stage i, and the passes of the inner rule
// come after these.
type clip[T Float] struct {
	rule   Rule[T]
	spec   Spec
	phase  int
	value  float64 // 0: none
	stages []clipStage
}

// Spec implements [Rule].
func (r *clip[T]) Spec() *Spec { return &r.spec }

// own is the number of clipping's own passes in a phase.
func (r *clip[T]) own(phase int) int {
	if phase != r.phase {
		return 0
	}
	return len(r.stages)
}

// Prepare implements [Rule]. The factor of the model's norm, known after the
// pass of the last stage, is the last of k.Coef.
func (r *clip[T]) Prepare(pass int, k *Step) {
	n := r.own(k.Phase)
	k.Coef = k.Coef[:0]
	if pass < n {
		return
	}
	all := k.Reduced
	factor := 1.0
	if n > 0 {
		if last := r.stages[n-1]; last.over == clipModel {
			factor = normFactor(all[n-1][0][0], last.bound)
		}
		k.Reduced = all[n:]
	}
	r.rule.Prepare(pass-n, k)
	k.Reduced = all
	k.Coef = append(k.Coef, factor)
}

// PrepareTensor implements [TensorPreparer] for inner rules that do.
func (r *clip[T]) PrepareTensor(pass int, k *Step, ts *TensorState) {
	n := r.own(k.Phase)
	if pass < n {
		return
	}
	if n == 0 {
		PrepareTensor(r.rule, pass, k, ts)
		return
	}
	model, tensor := k.Reduced, ts.Reduced
	k.Reduced, ts.Reduced = model[n:], tensor[n:]
	PrepareTensor(r.rule, pass-n, k, ts)
	k.Reduced, ts.Reduced = model, tensor
}

// Apply implements [Rule].
func (r *clip[T]) Apply(pass int, k *Step, s *Span[T]) {
	if k.Phase != r.phase {
		r.rule.Apply(pass, k, s)
		return
	}
	n := len(r.stages)
	if g := s.G[Grad]; g != nil { // an optional role may be absent
		checkLen(len(s.W), len(g))
		if v := T(r.value); r.value > 0 {
			vec.Clamp(g, g, -v, v)
		}
		for i := range min(pass, n) {
			r.bound(i, k, s)
		}
		if pass < n {
			r.addUp(pass, s)
		}
	}
	if pass < n {
		return
	}
	if n == 0 {
		r.rule.Apply(pass, k, s)
		return
	}
	model, tensor := k.Reduced, s.Tensor.Reduced
	k.Reduced, s.Tensor.Reduced = model[n:], tensor[n:]
	r.rule.Apply(pass-n, k, s)
	k.Reduced, s.Tensor.Reduced = model, tensor
}

// bound applies stage i, whose sums are complete.
func (r *clip[T]) bound(i int, k *Step, s *Span[T]) {
	g, b := s.G[Grad], r.stages[i].bound
	switch r.stages[i].over {
	case clipModel:
		shorten(g, k.Coef[len(k.Coef)-1])
	case clipTensor:
		shorten(g, normFactor(s.Tensor.Reduced[i][0][0], b))
	default:
		sums := s.Tensor.Reduced[i][0]
		for lo, row, hi := 0, 0, 0; lo < len(g); lo = hi {
			row, hi = s.rowEnd(lo)
			shorten(g[lo:hi], adaptiveFactor(sums[2*row], sums[2*row+1], b))
		}
	}
}

// addUp adds the span to the sums of stage i.
func (r *clip[T]) addUp(i int, s *Span[T]) {
	g, sums := s.G[Grad], s.Sums[0]
	if r.stages[i].over != clipRows {
		sums[0] += vec.Dot(g, g)
		return
	}
	for lo, row, hi := 0, 0, 0; lo < len(g); lo = hi {
		row, hi = s.rowEnd(lo)
		at := 2 * (row - s.FirstRow)
		sums[at] += vec.Dot(s.W[lo:hi], s.W[lo:hi])
		sums[at+1] += vec.Dot(g[lo:hi], g[lo:hi])
	}
}

// rowEnd is the row of the tensor that element lo of the span lies in, and
// where its part of the span ends.
func (s *Span[T]) rowEnd(lo int) (row, hi int) {
	rowLen := s.Tensor.Info.RowLen()
	row = (s.At + lo) / rowLen
	return row, min(len(s.W), (row+1)*rowLen-s.At)
}

// shorten multiplies g by a factor unless that is 1.
func shorten[T Float](g []T, factor float64) {
	if factor != 1 {
		vec.Scale(g, T(factor), g)
	}
}

// normFactor is min(1, bound/(√sum + 10⁻⁶)); a NaN is not below 1.
func normFactor(sum, bound float64) float64 {
	return min(1, bound/(math.Sqrt(sum)+1e-6))
}

// adaptiveFactor is the factor of a row from the sums of squares of its
// parameters and its gradient. A NaN in either is not within bounds.
func adaptiveFactor(ww, gg, lambda float64) float64 {
	norm, bound := math.Sqrt(gg), float64(lambda*max(math.Sqrt(ww), 1e-3))
	if norm <= bound {
		return 1
	}
	return bound / max(norm, 1e-6)
}
