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

// Perturbed hyper-parameters must be noticed by some golden file: a tolerance
// that forgives them would forgive a wrong rule.
func TestGoldenNoticesWrongHyper(t *testing.T) {
	wrong := map[string]func(x any) any{
		"lr":           func(x any) any { return x.(float64) * 1.001 },
		"eps":          func(x any) any { return x.(float64) * 1.5 },
		"weight_decay": func(x any) any { return x.(float64)*1.01 + 1e-3 },
		"betas":        func(x any) any { p := x.([]any); return []any{p[1], p[0]} },
		"momentum":     func(x any) any { return x.(float64) * 0.999 },
		"dampening":    func(x any) any { return x.(float64) * 0.99 },
		"nesterov":     func(any) any { return false },
		"maximize":     func(any) any { return false },
	}
	seen := map[string]bool{}
	noticed := map[string]bool{}
	for _, file := range goldenIn(t, ownGolden) {
		g := readGolden(t, file)
		if _, ok := Lookup(g.Optimizer); !ok || g.Steps[0]["rows"] != nil {
			continue
		}
		for _, name := range sortedKeys(wrong) {
			h, err := g.hyper()
			if err != nil {
				t.Fatal(err)
			}
			x, given := h[name]
			if !given {
				continue
			}
			h[name] = wrong[name](x)
			rule, err := New[float64](g.Optimizer, h)
			if err != nil {
				continue
			}
			if name == "lr" {
				g = readGolden(t, file) // the schedule's value comes from the file
				g.Hyper["lr"] = h["lr"]
			}
			key := g.Optimizer + "." + name
			seen[key] = true
			if compare(g, replay(t, g, rule, g.layout(t, 0), RunnerOptions{})) != nil {
				noticed[key] = true
			}
			g = readGolden(t, file)
		}
	}
	for _, key := range sortedKeys(seen) {
		if !noticed[key] {
			t.Errorf("no golden file notices a wrong %s", key)
		}
	}
	if len(seen) < 15 {
		t.Errorf("only %d hyper-parameters tried", len(seen))
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

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

func newRule[T Float](t fataler, i int) Rule[T] {
	r, err := New[T](ruleVariants[i].name, ruleVariants[i].hyper)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// draw32 draws values of all magnitudes, with zeros of both signs and denormals.
func draw32(lo, hi float64) *rapid.Generator[float32] {
	neg0 := float32(math.Copysign(0, -1))
	return rapid.OneOf(
		rapid.SampledFrom([]float32{0, neg0, 1e-45, -1e-42, 1e-38, -1e-8, 1}),
		rapid.Float32Range(float32(lo), float32(hi)),
	)
}

// Any cut into shards and spans gives the same bits, and the rule leaves
// alone what it must not touch.
func TestCutDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vi := rapid.IntRange(0, len(ruleVariants)-1).Draw(t, "variant")
		l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
		rule := newRule[float32](t, vi)
		vec := rapid.SliceOfN(draw32(-100, 100), l.P, l.P)
		w := vec.Draw(t, "w")
		a := NewRunner(rule, l, w, RunnerOptions{})
		b := NewRunner(rule, l, w, RunnerOptions{
			Shards: rapid.IntRange(1, 9).Draw(t, "shards"),
			Span:   rapid.IntRange(1, 9).Draw(t, "span"),
		})
		for range 3 {
			g := vec.Draw(t, "g")
			before := slices.Clone(g)
			in := Input[float32]{LR: 0.01}
			in.G[Grad] = g
			a.Step(in)
			b.Step(in)
			if !equalBits(g, before) {
				t.Fatal("the gradient was changed")
			}
			pa, pb := a.Params(), b.Params()
			if !equalBits(pa, pb) {
				t.Fatalf("params %v and %v", pa, pb)
			}
			for _, sl := range rule.Spec().Slots {
				if !equalBits(a.Slot(sl.Name), b.Slot(sl.Name)) {
					t.Fatalf("slot %s differs", sl.Name)
				}
			}
			if buf := l.Tensors[2]; !equalBits(pa[buf.Offset:buf.Offset+buf.Len], w[buf.Offset:buf.Offset+buf.Len]) {
				t.Fatal("a buffer was updated")
			}
			for i, x := range pa {
				if x != x || math.IsInf(float64(x), 0) {
					t.Fatalf("element %d became %v", i, x)
				}
			}
		}
	})
}

// Elementwise rules do not depend on the chunk length either.
func TestChunkLengthOfElementwise(t *testing.T) {
	for vi, v := range ruleVariants {
		rule := newRule[float32](t, vi)
		if rule.Spec().Reductions() > 0 {
			continue
		}
		var want []float32
		for _, chunk := range []int{1, 2, 7, 28, 100} {
			l := testModel(t, chunk)
			in := Input[float32]{LR: 0.1}
			w := make([]float32, l.P)
			in.G[Grad] = make([]float32, l.P)
			for i := range w {
				w[i], in.G[Grad][i] = float32(i)/3-2, float32(i*i%11)-5
			}
			r := NewRunner(rule, l, w, RunnerOptions{Shards: 3})
			r.Step(in)
			r.Step(in)
			got := r.Params()
			if want == nil {
				want = got
			}
			if !equalBits(got, want) {
				t.Errorf("%v: chunk %d changes the result", v, chunk)
			}
		}
	}
}

// With a zero gradient nothing moves but by decay, and decay spares NoDecay.
func TestZeroGradient(t *testing.T) {
	l := testModel(t, 0)
	w := make([]float32, l.P)
	for i := range w {
		w[i] = float32(i) - 9.5
	}
	for vi, v := range ruleVariants {
		r := NewRunner(newRule[float32](t, vi), l, w, RunnerOptions{})
		in := Input[float32]{LR: 0.1}
		in.G[Grad] = make([]float32, l.P)
		r.Step(in)
		r.Step(in)
		for i, x := range r.Params() {
			ti := l.Find(i)
			wd, _ := v.hyper["weight_decay"].(float64)
			switch moved := x != w[i]; {
			case ti.Buffer || ti.NoDecay || wd == 0:
				if moved {
					t.Errorf("%v: %s[%d] moved from %v to %v", v, ti.Name, i-ti.Offset, w[i], x)
				}
			case !moved:
				t.Errorf("%v: %s[%d] did not decay", v, ti.Name, i-ti.Offset)
			case math.Abs(float64(x)) > math.Abs(float64(w[i])):
				t.Errorf("%v: %s[%d] grew from %v to %v", v, ti.Name, i-ti.Offset, w[i], x)
			}
		}
	}
}

// A NaN reaches the element it belongs to, and with LAMB's norm its tensor.
func TestNaN(t *testing.T) {
	l := testModel(t, 7)
	const at = 16 // in tensor b
	for vi, v := range ruleVariants {
		rule := newRule[float32](t, vi)
		r := NewRunner(rule, l, make([]float32, l.P), RunnerOptions{Shards: 2})
		in := Input[float32]{LR: 0.1}
		in.G[Grad] = make([]float32, l.P)
		for i := range in.G[Grad] {
			in.G[Grad][i] = 1
		}
		in.G[Grad][at] = float32(math.NaN())
		r.Step(in)
		for i, x := range r.Params() {
			if isNaN := x != x; isNaN != (i == at) {
				t.Errorf("%v: element %d is %v", v, i, x)
			}
		}
		// From parameters that are not zero the norm counts.
		if v.name == "lamb" {
			w := slices.Repeat([]float32{1}, l.P)
			r := NewRunner(rule, l, w, RunnerOptions{Shards: 2})
			r.Step(in)
			for i, x := range r.Params() {
				if isNaN := x != x; isNaN != (l.Find(i).Name == "b") {
					t.Errorf("%v: element %d is %v", v, i, x)
				}
			}
		}
	}
}

// Only the last pass writes parameters and slots, in place or not; slices are
// written to their length and no further.
func TestApplyWrites(t *testing.T) {
	l := testModel(t, 0)
	ts := &TensorState{Info: &l.Tensors[0]}
	for vi, v := range ruleVariants {
		rule := newRule[float32](t, vi)
		spec := rule.Spec()
		last := len(spec.Phases[0].Passes) - 1
		for _, n := range []int{0, 1, 2, 3, 7, 8, 9} {
			var outs [2][]float32
			for place := range outs {
				k := &Step{T: 2, LR: 0.1}
				mk := func(x float32) []float32 { // n elements between sentinels
					s := make([]float32, n+2)
					for i := range s {
						s[i] = x + float32(i)
					}
					s[0], s[n+1] = -77, -77
					return s
				}
				whole := [][]float32{mk(1), mk(2), mk(3), mk(4), mk(5)}
				in := func(i int) []float32 { return whole[i][1 : n+1] }
				s := &Span[float32]{Tensor: ts, W: in(0), Out: in(1), Slots: [][]float32{in(2), in(3)}[:len(spec.Slots)]}
				if place == 1 {
					s.Out = s.W
				}
				s.G[Grad] = in(4)
				ts.Reduced = nil
				for pass := range last {
					before := fmt.Sprint(whole)
					rule.Prepare(pass, k)
					s.Sums = [][]float64{make([]float64, 2)}
					rule.Apply(pass, k, s)
					ts.Reduced = append(ts.Reduced, s.Sums)
					if fmt.Sprint(whole) != before {
						t.Errorf("%v: pass %d changed elements", v, pass)
					}
				}
				w, g := slices.Clone(s.W), slices.Clone(s.G[Grad])
				rule.Prepare(last, k)
				if a := testing.AllocsPerRun(10, func() { rule.Prepare(last, k) }); a != 0 {
					t.Errorf("%v: Prepare allocates %v times", v, a)
				}
				rule.Apply(last, k, s)
				if place == 0 && !slices.Equal(s.W, w) || !slices.Equal(s.G[Grad], g) {
					t.Errorf("%v: an input was changed", v)
				}
				for i, x := range whole {
					if x[0] != -77 || x[n+1] != -77 {
						t.Errorf("%v: slice %d: written outside its %d elements", v, i, n)
					}
				}
				outs[place] = slices.Clone(s.Out)
				if a := testing.AllocsPerRun(10, func() { rule.Apply(last, k, s) }); a != 0 {
					t.Errorf("%v: Apply allocates %v times", v, a)
				}
			}
			if !equalBits(outs[0], outs[1]) {
				t.Errorf("%v: in place %v, otherwise %v", v, outs[1], outs[0])
			}
		}
	}
}

func TestApplyPanicsOnLengths(t *testing.T) {
	l := testModel(t, 0)
	x := func(n int) []float32 { return make([]float32, n, 8) }
	for vi, v := range ruleVariants {
		rule := newRule[float32](t, vi)
		for bad := range 3 + len(rule.Spec().Slots) {
			for _, n := range []int{3, 5} {
				lens := []int{4, 4, 4, 4, 4}
				lens[bad] = n
				s := &Span[float32]{Tensor: &TensorState{Info: &l.Tensors[0], Reduced: [][][]float64{{{1, 1}}}}, W: x(lens[0]), Out: x(lens[1])}
				s.G[Grad] = x(lens[2])
				for i := range rule.Spec().Slots {
					s.Slots = append(s.Slots, x(lens[3+i]))
				}
				k := &Step{T: 1, LR: 0.1}
				last := len(rule.Spec().Phases[0].Passes) - 1
				rule.Prepare(last, k)
				if !panics(func() { rule.Apply(last, k, s) }) {
					t.Errorf("%v: lengths %v: no panic", v, lens)
				}
			}
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

// optim stands on layout and what layout needs, and on nothing else of ours.
func TestDeps(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"tributary/optim", "tributary/layout", "tributary/internal/rng", "tributary/internal/vec"}
	for _, p := range strings.Fields(string(out)) {
		if strings.Contains(strings.Split(p, "/")[0], ".") || strings.HasPrefix(p, "tributary/") && !slices.Contains(allowed, p) ||
			p == "net" || p == "os/exec" || p == "log/slog" {
			t.Errorf("optim depends on %s", p)
		}
	}
}
