package optim

import (
	"fmt"
	"math"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary/layout"
)

// fataler is what testing and rapid have in common.
type fataler interface{ Fatal(...any) }

// testModel has a matrix, a buffer and two vectors, one of them without decay.
func testModel(t fataler, chunk int) *layout.Layout {
	l, err := layout.New([]layout.Tensor{
		{Name: "w", Shape: []int{5, 3}},
		{Name: "b", Shape: []int{4}, NoDecay: true},
		{Name: "mean", Shape: []int{3}, Buffer: true},
		{Name: "v", Shape: []int{6}},
	}, chunk)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ruleVariant is one setting of a rule to test, and what to expect of it. The
// zero values of the expectations suit most rules.
type ruleVariant struct {
	name  string
	hyper map[string]any
	// drifts says that parameters move although all gradients so far were zero
	// and there is no decay.
	drifts bool
	// shrinks says that the hyper-parameters pull parameters to zero although
	// weight_decay is not among them.
	shrinks bool
	// nanStep is the first step whose gradient reaches the parameters; 0 means 1.
	nanStep int
	// limit is the largest magnitude of parameters and inputs at which results
	// are still finite in float32; 0 means 1e15. A lower one needs a reason.
	limit float64
}

// ruleVariants are settings that reach every branch of the rules. Files of
// rules add theirs in an init.
var ruleVariants = []ruleVariant{
	{name: "sgd"},
	{name: "sgd", hyper: map[string]any{"weight_decay": 0.1, "maximize": true}},
	{name: "sgd", hyper: map[string]any{"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}},
	{name: "sgd", hyper: map[string]any{"momentum": 0.9, "nesterov": true}},
	{name: "adam"},
	{name: "adam", hyper: map[string]any{"weight_decay": 0.1, "betas": []any{0.5, 0}}},
	{name: "adamw", hyper: map[string]any{"weight_decay": 0.5}},
	{name: "lamb"},
	{name: "lamb", hyper: map[string]any{"weight_decay": 0.5}},
}

// String names a variant in failures and benchmarks.
func (v ruleVariant) String() string {
	name := v.name
	for i, h := range sortedKeys(v.hyper) {
		sep := ","
		if i == 0 {
			sep = "/"
		}
		name += fmt.Sprintf("%s%s=%v", sep, h, v.hyper[h])
	}
	return name
}

// largest is v.limit, or its default.
func (v ruleVariant) largest() float64 {
	if v.limit == 0 {
		return 1e15
	}
	return v.limit
}

func newRule[T Float](t fataler, v ruleVariant) Rule[T] {
	r, err := New[T](v.name, v.hyper)
	if err != nil {
		t.Fatal(fmt.Sprintf("%v: %v", v, err))
	}
	return r
}

// decays says whether the variant has a weight decay, given or by default.
func (v ruleVariant) decays(t fataler) bool {
	d, _ := Lookup(v.name)
	x, err := d.Resolve(v.hyper)
	if err != nil {
		t.Fatal(err)
	}
	wd, _ := x["weight_decay"].(float64)
	return wd != 0
}

// feed is what a rule asks for in a phase of step t, with values(role) for a role.
func feed[T Float](spec *Spec, phase int, t uint64, lr float64, values func(Role) []T) Input[T] {
	in := Input[T]{LR: lr, Loss: 1.5, Examples: 1}
	for _, role := range spec.Roles(phase, t) {
		x := slices.Clone(values(role))
		if role == HessDiag && spec.AbsHessian {
			for i := range x {
				x[i] = T(math.Abs(float64(x[i])))
			}
		}
		in.G[role] = x
	}
	return in
}

// step takes one step of r.
func step[T Float](r *Runner[T], lr float64, values func(Role) []T) {
	for ph := range r.spec.Phases {
		t := r.T()
		if ph == 0 {
			t++
		}
		r.Phase(ph, feed(r.spec, ph, t, lr, values))
	}
}

func constantly[T Float](x []T) func(Role) []T { return func(Role) []T { return x } }

// checkEqual compares parameters, points and all slots bit for bit.
func checkEqual[T Float](t fataler, what string, a, b *Runner[T]) {
	for p := range NumPoints {
		if x, y := a.Point(p), b.Point(p); !equalBits(x, y) {
			t.Fatal(fmt.Sprintf("%s: point %d: %v and %v", what, p, x, y))
		}
	}
	for _, sl := range a.spec.Slots {
		if x, y := a.Slot(sl.Name), b.Slot(sl.Name); !equalBits(x, y) {
			t.Fatal(fmt.Sprintf("%s: slot %s: %v and %v", what, sl.Name, x, y))
		}
	}
	if !equalBits(a.model, b.model) {
		t.Fatal(fmt.Sprintf("%s: slots of the model: %v and %v", what, a.model, b.model))
	}
	for _, part := range b.shards { // all replicas
		for ti := range part.tensors {
			for si, x := range part.tensors[ti].Slots {
				if y := a.shards[0].tensors[ti].Slots[si]; !equalBits(x, y) {
					t.Fatal(fmt.Sprintf("%s: slot %d of tensor %d: %v and %v", what, si, ti, y, x))
				}
			}
		}
	}
}

func checkFinite[T Float](t fataler, what string, x []T) {
	for i, x := range x {
		if x != x || math.IsInf(float64(x), 0) {
			t.Fatal(fmt.Sprintf("%s: element %d became %v", what, i, x))
		}
	}
}

// Every registered rule is tested.
func TestEveryRuleHasVariants(t *testing.T) {
	var tested []string
	for _, v := range ruleVariants {
		tested = append(tested, v.name)
	}
	for _, name := range Names() {
		if !slices.Contains(tested, name) {
			t.Errorf("no variant of rule %q: add one to ruleVariants in a test file", name)
		}
	}
}

// draw32 draws values of all magnitudes, with zeros of both signs and denormals.
func draw32(lo, hi float64) *rapid.Generator[float32] {
	neg0 := float32(math.Copysign(0, -1))
	return rapid.OneOf(
		rapid.SampledFrom([]float32{0, neg0, 1e-45, -1e-42, 1e-38, -1e-8, 1}),
		rapid.Float32Range(float32(lo), float32(hi)),
	)
}

// drawInputs draws the values of some steps; the result gives those of a role.
func drawInputs(t *rapid.T, steps int, gen *rapid.Generator[[]float32]) func(step int) func(Role) []float32 {
	const perStep = 3 // roles share values: that is an input like any other
	x := make([][]float32, perStep*steps)
	for i := range x {
		x[i] = gen.Draw(t, "inputs")
	}
	return func(step int) func(Role) []float32 {
		return func(r Role) []float32 { return x[perStep*step+int(r)%perStep] }
	}
}

// Any cut into shards and spans gives the same bits, all replicas agree, and
// buffers stay.
func TestCutDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
		vector := rapid.SliceOfN(draw32(-100, 100), l.P, l.P)
		w := vector.Draw(t, "w")
		inputs := drawInputs(t, 3, vector)
		o := RunnerOptions{Shards: rapid.IntRange(1, 9).Draw(t, "shards"), Span: rapid.IntRange(1, 9).Draw(t, "span")}
		lr := rapid.SampledFrom([]float64{0, 1e-3, 0.1}).Draw(t, "lr")
		for _, v := range ruleVariants {
			rule := newRule[float32](t, v)
			a, b := NewRunner(rule, l, w, RunnerOptions{}), NewRunner(rule, l, w, o)
			for i := range 3 {
				step(a, lr, inputs(i))
				step(b, lr, inputs(i))
			}
			checkEqual(t, v.String(), a, b)
			got := a.Params()
			if buf := l.Tensors[2]; !equalBits(got[buf.Offset:buf.Offset+buf.Len], w[buf.Offset:buf.Offset+buf.Len]) {
				t.Fatalf("%v: a buffer was updated", v)
			}
			checkFinite(t, v.String(), got)
		}
	})
}

// From the smallest numbers to huge ones, also within one tensor, nothing
// becomes NaN or Inf.
func TestMagnitudes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testModel(t, 0)
		number := rapid.Custom(func(t *rapid.T) float32 {
			x := math.Pow(10, rapid.Float64Range(-45, 15).Draw(t, "power"))
			if rapid.Bool().Draw(t, "negative") {
				x = -x
			}
			return float32(x)
		})
		vector := rapid.SliceOfN(rapid.OneOf(number, draw32(-1, 1)), l.P, l.P)
		w := vector.Draw(t, "w")
		inputs := drawInputs(t, 3, vector)
		for _, v := range ruleVariants {
			clip := func(x []float32) []float32 {
				y := slices.Clone(x)
				for i := range y {
					y[i] = float32(max(-v.largest(), min(float64(y[i]), v.largest())))
				}
				return y
			}
			r := NewRunner(newRule[float32](t, v), l, clip(w), RunnerOptions{})
			for i := range 3 {
				step(r, 0.01, func(role Role) []float32 { return clip(inputs(i)(role)) })
			}
			checkFinite(t, v.String(), r.Params())
			checkFinite(t, v.String(), r.Point(Eval))
		}
	})
}

// rising are n values from lo in steps of by.
func rising[T Float](n int, lo, by float64) []T {
	x := make([]T, n)
	for i := range x {
		x[i] = T(lo + float64(float64(i)*by))
	}
	return x
}

// jumble are n values between −5 and 5 in no order.
func jumble[T Float](n, seed int) []T {
	x := make([]T, n)
	for i := range x {
		x[i] = T((i*i*(seed+1)+seed)%11 - 5)
	}
	return x
}

// Elementwise rules do not depend on the chunk length either.
func TestChunkLengthOfElementwise(t *testing.T) {
	for _, v := range ruleVariants {
		rule := newRule[float32](t, v)
		if rule.Spec().Reductions() > 0 {
			continue
		}
		var want *Runner[float32]
		for _, chunk := range []int{1, 2, 7, 28, 100} {
			l := testModel(t, chunk)
			r := NewRunner(rule, l, rising[float32](l.P, -2, 1./3), RunnerOptions{Shards: 3})
			for i := range 2 {
				step(r, 0.1, func(role Role) []float32 { return jumble[float32](l.P, i+int(role)) })
			}
			if want == nil {
				want = r
			}
			checkEqual(t, fmt.Sprintf("%v, chunk %d", v, chunk), want, r)
		}
	}
}

// The order of a model's tensors changes no bit, unless something is summed
// over all of them.
func TestOrderOfTensors(t *testing.T) {
	tensors := []layout.Tensor{{Name: "a", Shape: []int{5, 3}}, {Name: "b", Shape: []int{2, 2, 3, 2}}, {Name: "c", Shape: []int{7}, NoDecay: true}}
	orders := [][]int{{0, 1, 2}, {2, 0, 1}, {1, 2, 0}, {2, 1, 0}}
	for _, v := range ruleVariants {
		rule := newRule[float32](t, v)
		if widest(rule.Spec()) == Model {
			continue
		}
		want := map[string][]float32{}
		for _, order := range orders {
			var ts []layout.Tensor
			for _, i := range order {
				ts = append(ts, tensors[i])
			}
			l, err := layout.New(ts, 1000) // one block per tensor
			if err != nil {
				t.Fatal(err)
			}
			values := func(seed int) []float32 {
				x := make([]float32, l.P)
				for _, ti := range l.Tensors {
					copy(x[ti.Offset:], jumble[float32](ti.Len, seed+int(ti.Name[0])))
				}
				return x
			}
			r := NewRunner(rule, l, values(0), RunnerOptions{Seed: 7})
			for i := range 3 {
				step(r, 0.1, func(role Role) []float32 { return values(i + int(role)) })
			}
			got := r.Params()
			for _, ti := range l.Tensors {
				x := got[ti.Offset : ti.Offset+ti.Len]
				if want[ti.Name] == nil {
					want[ti.Name] = x
				}
				if !equalBits(x, want[ti.Name]) {
					t.Errorf("%v: tensors in order %v: %s is %v, want %v", v, order, ti.Name, x, want[ti.Name])
				}
			}
		}
	}
}

// widest is over how much the rule reduces: Element, Tensor (which stands for
// all within a tensor) or Model.
func widest(spec *Spec) Class {
	over := Element
	for _, ph := range spec.Phases {
		for _, ps := range ph.Passes {
			for _, rd := range ps.Reduce {
				if rd.Over == Model {
					return Model
				}
				over = Tensor
			}
		}
	}
	return over
}

// With zero gradients nothing moves but by decay, and decay spares NoDecay.
func TestZeroGradient(t *testing.T) {
	l := testModel(t, 0)
	w := rising[float32](l.P, -9.5, 1)
	for _, v := range ruleVariants {
		if v.drifts {
			continue
		}
		r := NewRunner(newRule[float32](t, v), l, w, RunnerOptions{})
		for range 2 {
			step(r, 0.1, constantly(make([]float32, l.P)))
		}
		decays := v.decays(t) || v.shrinks
		for i, x := range r.Params() {
			ti := l.Find(i)
			// A rule may compute w anew, for instance as an average of equals.
			rounding := 1e-6 * math.Abs(float64(w[i]))
			switch moved := math.Abs(float64(x - w[i])); {
			case ti.Buffer || ti.NoDecay || !decays:
				if !(moved <= rounding) {
					t.Errorf("%v: %s[%d] moved from %v to %v", v, ti.Name, i-ti.Offset, w[i], x)
				}
			case moved == 0:
				t.Errorf("%v: %s[%d] did not decay", v, ti.Name, i-ti.Offset)
			case !(math.Abs(float64(x)) <= math.Abs(float64(w[i]))):
				t.Errorf("%v: %s[%d] grew from %v to %v", v, ti.Name, i-ti.Offset, w[i], x)
			}
		}
	}
}

// A NaN in an input reaches what the rule hands out: it never hides. It stays
// in its element, or in what the rule sums over.
func TestNaN(t *testing.T) {
	l := testModel(t, 7)
	const at = 16 // in tensor b
	for _, v := range ruleVariants {
		rule := newRule[float32](t, v)
		spec := rule.Spec()
		first := uint64(max(1, v.nanStep))
		for ph := range spec.Phases {
			for _, role := range spec.Roles(ph, first) {
				r := NewRunner(rule, l, slices.Repeat([]float32{1}, l.P), RunnerOptions{Shards: 2})
				clean := slices.Repeat([]float32{0.5}, l.P)
				for range first - 1 {
					step(r, 0.1, constantly(clean))
				}
				var handed []float32
				for p := range spec.Phases {
					in := feed(spec, p, first, 0.1, constantly(clean))
					if p == ph {
						in.G[role][at] = float32(math.NaN())
					}
					r.Phase(p, in)
					if p == ph && p < len(spec.Phases)-1 {
						handed = r.Point(Perturbed)
					}
				}
				if role != Grad {
					step(r, 0.1, constantly(clean)) // it may go through a slot
				}
				if handed == nil {
					handed = r.Params()
				}
				checkNaN(t, fmt.Sprintf("%v, NaN in %v of phase %d", v, role, ph), l, handed, at, widest(spec))
			}
		}
	}
}

func checkNaN(t *testing.T, what string, l *layout.Layout, x []float32, at int, spread Class) {
	if x[at] == x[at] {
		t.Errorf("%s: element %d is %v", what, at, x[at])
	}
	for i, y := range x {
		near := i == at || spread == Tensor && l.Find(i) == l.Find(at) || spread == Model && !l.Find(i).Buffer
		if y != y && !near {
			t.Errorf("%s: element %d is %v", what, i, y)
		}
	}
}

// What no run names keeps its bits, slots included; what is named takes the
// step that it would take among all.
func TestRuns(t *testing.T) {
	tested := map[string]bool{}
	for _, v := range ruleVariants {
		rule := newRule[float32](t, v)
		spec := rule.Spec()
		if !spec.Runs {
			continue
		}
		tested[v.name] = true
		if len(spec.Phases) != 1 || len(spec.Phases[0].Passes) != 1 {
			t.Errorf("%v: a rule that takes runs has one pass", v)
		}
		rapid.Check(t, func(t *rapid.T) {
			l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
			vector := rapid.SliceOfN(draw32(-10, 10), l.P, l.P)
			w := vector.Draw(t, "w")
			inputs := drawInputs(t, 3, vector)
			o := RunnerOptions{Shards: rapid.IntRange(1, 4).Draw(t, "shards"), Span: rapid.IntRange(1, 9).Draw(t, "span")}
			some, all := NewRunner(rule, l, w, o), NewRunner(rule, l, w, RunnerOptions{})
			step(some, 0.1, inputs(0))
			step(all, 0.1, inputs(0))
			var runs []layout.Range
			for lo := 0; lo < l.P; {
				lo += rapid.IntRange(0, 9).Draw(t, "gap")
				hi := min(lo+rapid.IntRange(1, 9).Draw(t, "run"), l.P)
				if lo < hi {
					runs = append(runs, layout.Range{Lo: lo, Hi: hi})
				}
				lo = hi + 1
			}
			if runs == nil {
				runs = []layout.Range{{Lo: l.P - 1, Hi: l.P}}
			}
			old := snapshot(some)
			in := feed(spec, 0, 2, 0.1, inputs(1))
			all.Phase(0, in)
			in.Runs = runs
			some.Phase(0, in)
			now, whole := snapshot(some), snapshot(all)
			for i := range now {
				for j := range now[i] {
					named := slices.ContainsFunc(runs, func(r layout.Range) bool { return r.Lo <= j && j < r.Hi })
					want := old[i][j]
					if named {
						want = whole[i][j]
					}
					if !equalBits(now[i][j:j+1], []float32{want}) {
						t.Fatalf("%v: runs %v: element %d of vector %d is %v, want %v", v, runs, j, i, now[i][j], want)
					}
				}
			}
		})
	}
	for _, name := range []string{"sgd", "adagrad", "adam_lazy", "ftrl"} { // the rules of tables
		if !tested[name] {
			t.Errorf("%s does not take runs", name)
		}
	}
}

// snapshot are the parameters and element slots.
func snapshot(r *Runner[float32]) [][]float32 {
	x := [][]float32{r.Params()}
	for _, sl := range r.spec.Slots {
		if s := r.Slot(sl.Name); s != nil {
			x = append(x, s)
		}
	}
	return x
}

// optim stands on layout, vec and what these need, and on nothing else of ours
// or of others.
func TestDeps(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"tributary/optim", "tributary/layout", "tributary/internal/rng", "tributary/internal/vec", "golang.org/x/sys/cpu"}
	for _, p := range strings.Fields(string(out)) {
		notStd := strings.HasPrefix(p, "tributary/") || strings.Contains(strings.Split(p, "/")[0], ".")
		if notStd && !slices.Contains(allowed, p) || p == "net" || p == "os/exec" || p == "log/slog" {
			t.Errorf("optim depends on %s", p)
		}
	}
}
