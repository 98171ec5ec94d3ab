package optim

import (
	"fmt"
	"math"

	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "sam",
		Doc:   "any rule, with gradients taken where the loss is worst nearby, to find flat minima",
		Paper: "Foret et al., ICLR 2021, arXiv:2010.01412; google-research/sam sam_jax/training_utils/flax_training.py",
		Hypers: []Hyper{
			number("rho", 0.05, 0, inf, "distance of the perturbation"),
			word("base", "sgd", nil, "name of the rule that takes the step; any of one phase that needs the same roles at every step"),
			settings("base_hyper", "hyper-parameters of that rule, which has the learning rate"),
			flag("sync_perturbation", true, "perturb by the mean gradient, with two pushes; else every worker by its own gradient, with one"),
		},
		New32: newSAM[float32],
		New64: newSAM[float64],
		LR: func(v Values) (float64, error) {
			d, inner, err := samBase(v)
			if err != nil {
				return 0, err
			}
			return d.BaseLR(inner)
		},
	})
}

// sam is SAM over a base rule. Workers push twice per step, of the same batch:
//
//	phase 0: g at w; ŵ = w + ρ·g/‖g‖ is handed out   (g = 0: ŵ = w)
//	phase 1: g at ŵ; the base rule takes its step with it, from w
//
// where the norm runs over the whole model, without an epsilon, and both
// gradients are means over the workers. The decay of the base rule acts in its
// step alone: a penalty that the perturbation is to see belongs to the loss.
// Slots, scalars and the point of evaluation are those of the base rule. Pass 0
// of phase 0 adds up the squares of g.
//
// With several workers the paper perturbs on each by its own gradient. That is
// [perturbed], which takes no phase of its own.
//
// A NaN or Inf in the g of phase 0 makes NaN of all of ŵ. Apply does not
// allocate.
//
// Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for
// Efficiently Improving Generalization", ICLR 2021, Algorithm 1 and equation 2,
// arXiv:2010.01412.
type sam[T Float] struct {
	rho  float64
	base Rule[T]
	spec Spec
}

// perturbed is a base rule whose gradients workers take at w + ρ·g/‖g‖, each
// with its own g.
type perturbed[T Float] struct {
	Rule[T]
	spec Spec
}

// samBase finds the base rule and its values.
func samBase(v Values) (d Def, inner Values, err error) {
	name := v.String("base")
	d, ok := Lookup(name)
	if !ok {
		return d, nil, &HyperError{"sam", "base", fmt.Sprintf("sam: base: %v %q: %s", ErrUnknownRule, name, Suggest(name, Names()))}
	}
	if inner, err = d.Resolve(v.Settings("base_hyper")); err != nil {
		return d, nil, within("sam", "base_hyper", err)
	}
	return d, inner, nil
}

func newSAM[T Float](v Values) (Rule[T], error) {
	if _, _, err := samBase(v); err != nil {
		return nil, err
	}
	name := v.String("base")
	base, err := New[T](name, v.Settings("base_hyper"))
	if err != nil {
		return nil, within("sam", "base_hyper", err)
	}
	spec := *base.Spec()
	if len(spec.Phases) > 1 || spec.Optional != nil || spec.Perturb != 0 {
		return nil, &HyperError{"sam", "base", fmt.Sprintf("sam: base: %s does not push the same once per step, which a base rule must", name)}
	}
	spec.Name = "sam"
	rho := v.Float("rho")
	if !v.Bool("sync_perturbation") {
		spec.Perturb = rho
		return &perturbed[T]{base, spec}, nil
	}
	spec.Runs = false
	spec.Phases = []Phase{{
		Needs:  []Role{Grad},
		Passes: []Pass{{Reduce: []Reduction{{Name: "norm", Op: Sum, Over: Model}}}, {}},
	}, spec.Phases[0]}
	return &sam[T]{rho, base, spec}, nil
}

// Spec implements [Rule].
func (r *sam[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *sam[T]) Prepare(pass int, k *Step) {
	switch {
	case k.Phase == 1:
		r.base.Prepare(pass, k)
	case pass == 1:
		k.Coef = append(k.Coef[:0], perNorm(r.rho, math.Sqrt(k.Reduced[0][0][0])))
	}
}

// PrepareTensor implements [TensorPreparer].
func (r *sam[T]) PrepareTensor(pass int, k *Step, ts *TensorState) {
	if k.Phase == 1 {
		PrepareTensor(r.base, pass, k, ts)
	}
}

// Apply implements [Rule].
func (r *sam[T]) Apply(pass int, k *Step, s *Span[T]) {
	if k.Phase == 1 {
		r.base.Apply(pass, k, s)
		return
	}
	n := len(s.W)
	checkLen(n, len(s.G[Grad]))
	if pass == 0 {
		s.Sums[0][0] += vec.Dot(s.G[Grad], s.G[Grad])
		return
	}
	checkLen(n, len(s.Out))
	vec.AddScaled(s.Out, s.W, finite[T](k.Coef[0]), s.G[Grad])
}

// Spec implements [Rule].
func (r *perturbed[T]) Spec() *Spec { return &r.spec }

// PrepareTensor implements [TensorPreparer].
func (r *perturbed[T]) PrepareTensor(pass int, k *Step, ts *TensorState) {
	PrepareTensor(r.Rule, pass, k, ts)
}
