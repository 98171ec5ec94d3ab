package optim

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary/layout"
)

// twoPhase steps against the gradient that it is pushed at the point one unit
// along the first: enough of SAM to see what is clipped.
type twoPhase[T Float] struct{ spec Spec }

func newTwoPhase[T Float]() *twoPhase[T] {
	p := Phase{Needs: []Role{Grad}, Passes: []Pass{{}}}
	return &twoPhase[T]{Spec{Name: "two", Phases: []Phase{p, p}}}
}

func (r *twoPhase[T]) Spec() *Spec            { return &r.spec }
func (r *twoPhase[T]) Prepare(_ int, k *Step) { k.Coef = k.Coef[:0] }
func (r *twoPhase[T]) Apply(_ int, k *Step, s *Span[T]) {
	for i, w := range s.W {
		s.Out[i] = w + s.G[Grad][i]*T(1-2*k.Phase)
	}
}

// clipTwin is clipping from its formulas, with plain sums.
func clipTwin(c ClipSpec, l *layout.Layout, w, g []float64) []float64 {
	g = slices.Clone(g)
	norm := func(x []float64) float64 {
		sum := 0.0
		for _, v := range x {
			sum += v * v
		}
		return math.Sqrt(sum)
	}
	scale := func(x []float64, f float64) {
		for i := range x {
			x[i] *= f
		}
	}
	var trained []float64
	for i := range g {
		if c.Value > 0 {
			g[i] = math.Max(-c.Value, math.Min(g[i], c.Value))
		}
	}
	for _, t := range l.Tensors {
		if t.Buffer {
			continue
		}
		x := g[t.Offset : t.Offset+t.Len]
		if c.Adaptive > 0 {
			for lo := 0; lo < t.Len; lo += t.RowLen() {
				row := x[lo : lo+t.RowLen()]
				bound := math.Max(norm(w[t.Offset+lo:t.Offset+lo+t.RowLen()]), 1e-3) * c.Adaptive
				if n := norm(row); n > bound {
					scale(row, bound/math.Max(n, 1e-6))
				}
			}
		}
		if c.TensorNorm > 0 {
			scale(x, math.Min(1, c.TensorNorm/(norm(x)+1e-6)))
		}
		trained = append(trained, x...)
	}
	if c.Norm > 0 {
		scale(g, math.Min(1, c.Norm/(norm(trained)+1e-6)))
	}
	return g
}

func drawClip(t *rapid.T) (c ClipSpec) {
	for _, f := range []*float64{&c.Value, &c.Adaptive, &c.TensorNorm, &c.Norm} {
		*f = rapid.SampledFrom([]float64{0, 0, 0.01, 0.5, 3, 100}).Draw(t, "bound")
	}
	return c
}

func TestClipTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
		vector := rapid.SliceOfN(rapid.OneOf(rapid.Float64Range(-10, 10), rapid.SampledFrom([]float64{0, 1e-9, -1e-5})), l.P, l.P)
		checkClip(t, drawClip(t), l, vector.Draw(t, "w"), vector.Draw(t, "g"), rapid.SampledFrom([]int{1, 2, 3, 7}).Draw(t, "shards"))
	})
	l := wideModel(t)
	for _, c := range []ClipSpec{{Adaptive: 0.01}, {TensorNorm: 2}, {Norm: 2}, {Value: 3, Adaptive: 0.5, TensorNorm: 90, Norm: 100}} {
		checkClip(t, c, l, jumble[float64](l.P, 2), jumble[float64](l.P, 5), 3)
	}
	checkClip(t, ClipSpec{Adaptive: 1e-6}, l, make([]float64, l.P), slices.Repeat([]float64{1e-8}, l.P), 3) // both floors
}

// checkClip takes two steps of gradient descent with a rate of 1.
func checkClip(t fataler, c ClipSpec, l *layout.Layout, w, g []float64, shards int) {
	rule, err := Clip(newRule[float64](t, ruleVariant{name: "sgd"}), c)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRunner(rule, l, w, RunnerOptions{Shards: shards})
	want := slices.Clone(w)
	for range 2 {
		step(r, 1, constantly(g))
		for i, x := range clipTwin(c, l, want, g) {
			if !l.Find(i).Buffer {
				want[i] -= x
			}
		}
	}
	for i, x := range r.Params() {
		if math.Abs(x-want[i]) > 1e-12*max(1, math.Abs(want[i])) {
			t.Fatal(fmt.Sprintf("%+v, %d shards: element %d is %v, want %v", c, shards, i, x, want[i]))
		}
	}
}

// Clipping sees rules of every kind through: with bounds that are never reached
// the bits are those of the rule, in any number of shards.
func TestClipKeepsRules(t *testing.T) {
	loose := ClipSpec{Value: 1e30, Adaptive: 1e30, TensorNorm: 1e30, Norm: 1e30}
	l, wide := testModel(t, 7), wideModel(t)
	for _, v := range ruleVariants {
		plain := newRule[float32](t, v)
		for _, c := range []ClipSpec{{Value: 1e30}, {Norm: 1e30}, loose} {
			rule, err := Clip(plain, c)
			if err != nil {
				if roles := plain.Spec().AllRoles(); !slices.Contains(roles, GradPrev) && !slices.Contains(roles, FullGrad) {
					t.Errorf("%v: %v", v, err)
				}
				continue
			}
			for _, l := range []*layout.Layout{l, wide} {
				w := jumble[float32](l.P, 1)
				// A rule without reductions of its own sees other spans when
				// clipped, which must not matter.
				a, b := NewRunner(plain, l, w, RunnerOptions{Seed: 3}), NewRunner(rule, l, w, RunnerOptions{Shards: 3, Seed: 3})
				for i := range 3 {
					values := func(role Role) []float32 { return jumble[float32](l.P, i+int(role)) }
					step(a, 0.1, values)
					step(b, 0.1, values)
				}
				checkEqual(t, fmt.Sprintf("%v, %+v", v, c), a, b)
			}
		}
	}
}

// Groups, clipping and rules with reductions of every class together have the
// same bits in any number of shards, on a matrix cut inside rows.
func TestClippedGroupsCut(t *testing.T) {
	for _, names := range [][]string{{"lamb", "sgd", "momo"}, {"adamp", "adamw", "lamb"}, {"sgd", "adam", "lion"}} {
		var rules []GroupRule[float32]
		for i, n := range names {
			rules = append(rules, GroupRule[float32]{newRule[float32](t, ruleVariant{name: n}), []float64{0.1, 0.3, 0.1}[i]})
		}
		rule, err := Groups(rules)
		if err != nil {
			t.Fatal(err)
		}
		if rule, err = Clip(rule, ClipSpec{Value: 4, Adaptive: 0.3, TensorNorm: 100, Norm: 50}); err != nil {
			t.Fatal(err)
		}
		l := grouped(t, wideModel(t), []int{0, 1, 2, 0})
		var one *Runner[float32]
		for _, shards := range []int{1, 2, 3, 7} {
			r := NewRunner(rule, l, jumble[float32](l.P, 1), RunnerOptions{Shards: shards})
			for i := range 3 {
				step(r, 0.1, constantly(jumble[float32](l.P, i+3)))
			}
			if one == nil {
				one = r
			}
			checkEqual(t, fmt.Sprintf("%q, %d shards", names, shards), one, r)
		}
		checkFinite(t, fmt.Sprint(names), one.Params())
	}
}

// A NaN is not clipped away: it stays in its element, and a norm takes it to all
// that it is the norm of.
func TestClipNaN(t *testing.T) {
	l := testModel(t, 7)
	const at = 7 // in the third row of w
	for _, c := range []struct {
		spec   ClipSpec
		lo, hi int
	}{{ClipSpec{Value: 0.1}, at, at + 1}, {ClipSpec{Adaptive: 0.1}, 6, 9}, {ClipSpec{TensorNorm: 0.1}, 0, 15}, {ClipSpec{Norm: 0.1}, 0, l.P}} {
		rule, err := Clip(newRule[float32](t, ruleVariant{name: "sgd"}), c.spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, nan := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
			r := NewRunner(rule, l, slices.Repeat([]float32{1}, l.P), RunnerOptions{Shards: 2})
			g := slices.Repeat([]float32{1}, l.P)
			g[at] = nan
			step(r, 0.1, constantly(g))
			for i, x := range r.Params() {
				isNaN, near := x != x, i >= c.lo && i < c.hi && !l.Find(i).Buffer
				if nan != nan && isNaN != near {
					t.Errorf("%+v: NaN in element %d: element %d is %v", c.spec, at, i, x)
				}
				if nan == nan && i == at && !isNaN && c.spec.Value == 0 {
					t.Errorf("%+v: Inf hides: %v", c.spec, x)
				}
			}
		}
	}
}

// Of two pushes the last is clipped.
func TestClipPhases(t *testing.T) {
	rule, err := Clip[float64](newTwoPhase[float64](), ClipSpec{Norm: 1})
	if err != nil {
		t.Fatal(err)
	}
	l := testModel(t, 4)
	r := NewRunner(rule, l, make([]float64, l.P), RunnerOptions{Shards: 3})
	in := Input[float64]{}
	in.G[Grad] = slices.Repeat([]float64{3}, l.P)
	r.Phase(0, in)
	if x := r.Point(Perturbed)[0]; x != 3 {
		t.Errorf("the first push was clipped: %v", x)
	}
	r.Phase(1, in)
	want := -3 / (3*math.Sqrt(float64(l.P-3)) + 1e-6) // a buffer of three
	if x := r.Params()[0]; math.Abs(x-want) > 1e-15 {
		t.Errorf("after the second push %v, want %v", x, want)
	}
}

func TestClipSpec(t *testing.T) {
	sgd := newRule[float32](t, ruleVariant{name: "sgd"})
	if r, err := Clip(sgd, ClipSpec{}); err != nil || r != sgd {
		t.Errorf("no bounds: %v, %v", r, err)
	}
	r, err := Clip(sgd, ClipSpec{Value: 1})
	if err != nil || !r.Spec().Runs || r.Spec().Reductions() != 0 || len(r.Spec().Phases[0].Passes) != 1 {
		t.Errorf("value alone keeps a rule element-wise: %+v, %v", r.Spec(), err)
	}
	r, err = Clip(sgd, ClipSpec{Value: 1, Norm: 1, Adaptive: 1})
	if err != nil || r.Spec().Runs || len(r.Spec().Phases[0].Passes) != 3 || len(sgd.Spec().Phases[0].Passes) != 1 {
		t.Errorf("two norms are two passes: %+v, %v", r.Spec(), err)
	}
	for _, x := range []float64{-1, math.NaN(), math.Inf(1)} {
		_, err := Clip(sgd, ClipSpec{Value: x, Norm: x})
		if !errors.Is(err, ErrHyper) || !strings.Contains(err.Error(), "clip: value: want 0 or more") || !strings.Contains(err.Error(), "clip: norm:") {
			t.Errorf("bound %v: %v", x, err)
		}
	}
	if _, err := Clip(newRule[float32](t, ruleVariant{name: "spider"}), ClipSpec{Norm: 1}); err == nil || !strings.Contains(err.Error(), "two points") {
		t.Errorf("spider: %v", err)
	}
	none := newTwoPhase[float32]()
	none.spec.Phases[1].Needs = []Role{Delta}
	if _, err := Clip[float32](none, ClipSpec{Norm: 1}); err == nil || !strings.Contains(err.Error(), "no gradients") {
		t.Errorf("no gradients: %v", err)
	}
}
