package optim

import (
	"errors"
	"math"
	"slices"
	"testing"

	"tributary/layout"
)

// sumVariants are settings of rules that add up something over tensors or the
// model, and pass nothing but gradients and a loss.
var sumVariants = []ruleVariant{
	// The velocity starts as noise, which moves parameters.
	{name: "gravity", drifts: true},
	{name: "gravity", hyper: map[string]any{"alpha": 0, "beta": 0.5}},
	{name: "gravity", hyper: map[string]any{"lr": 0}},
	{name: "c_adamw"},
	{name: "c_adamw", hyper: map[string]any{"weight_decay": 0.1, "correct_bias": false}},
	{name: "c_lion"},
	{name: "c_lion", hyper: map[string]any{"weight_decay": 0.1}},
	{name: "lamb_clip"},
	{name: "lamb_clip", hyper: map[string]any{"max_grad_norm": 0, "weight_decay": 0}},
	{name: "lamb_clip", hyper: map[string]any{"max_grad_norm": 100, "weight_decay": 0.1}},
	{name: "lamb_clip", hyper: map[string]any{"weight_decay": 0.1}},
	{name: "lamb_clip", hyper: map[string]any{"max_grad_norm": 0, "weight_decay": 0.1, "always_adapt": true}},
	{name: "adamp"},
	{name: "adamp", hyper: map[string]any{"weight_decay": 0.1, "delta": 100, "nesterov": true}},
	{name: "adamp", hyper: map[string]any{"weight_decay": 0.1, "delta": 0}},
	{name: "sgdp"},
	{name: "sgdp", hyper: map[string]any{"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1, "delta": 100}},
	{name: "sgdp", hyper: map[string]any{"momentum": 0.9, "nesterov": true, "delta": 100}},
	{name: "sgdp", hyper: map[string]any{"momentum": 0.9, "delta": 1}},
	{name: "momo"},
	{name: "momo", hyper: map[string]any{"weight_decay": 0.1, "bias_correction": true}},
	{name: "momo", hyper: map[string]any{"weight_decay": 0.1, "lb": -1, "use_fstar": true, "beta": 0.5}},
	{name: "momo_adam"},
	{name: "momo_adam", hyper: map[string]any{"weight_decay": 0.1, "lb": -1, "use_fstar": true}},
	{name: "momo_adam", hyper: map[string]any{"weight_decay": 0.1, "divide": false}},
	{name: "sania_adagrad_sqr"},
	{name: "sania_adagrad_sqr", hyper: map[string]any{"is_sqrt": true, "eps": 1e-3}},
	{name: "sania_adam_sqr"},
	{name: "sania_adam_sqr", hyper: map[string]any{"is_sqrt": true, "betas": []any{0.9, 0.5}}},
	{name: "normalized_gd"},
	{name: "normalized_gd", hyper: map[string]any{"momentum": 0.9}},
	{name: "normalized_gd", hyper: map[string]any{"clip": 1, "momentum": 0.5}},
	{name: "normalized_gd", hyper: map[string]any{"gamma": 0.5}},
	{name: "spider"},
	{name: "spider", hyper: map[string]any{"period": 2, "normalized": false}},
	{name: "spider", hyper: map[string]any{"period": 1}},
}

func init() {
	ruleVariants = append(ruleVariants, sumVariants...)
}

// Blocks shorter than a tile and blocks of several tiles and spans give the same
// but for the order of sums, whatever rows begin in them.
func TestSumsOverTiles(t *testing.T) {
	tensors := []layout.Tensor{
		{Name: "wide", Shape: []int{3, 1700}}, {Name: "tall", Shape: []int{701, 3}}, {Name: "conv", Shape: []int{5, 6, 7, 8}},
		{Name: "vector", Shape: []int{2500}, NoDecay: true}, {Name: "one", Shape: []int{1}},
	}
	for _, v := range sumVariants {
		rule := newRule[float64](t, v)
		var want []float64
		for _, chunk := range []int{97, 1 << 18, 5000, 511} {
			l, err := layout.New(tensors, chunk)
			if err != nil {
				t.Fatal(err)
			}
			r := NewRunner(rule, l, wave(l.P, 0.1), RunnerOptions{Shards: 3, Seed: 3})
			for i := range 4 {
				step(r, 0.1, func(role Role) []float64 { return wave(l.P, 0.7+float64(i)+3*float64(role)) })
			}
			got := r.Params()
			if want == nil {
				want = got
			}
			for i, x := range got {
				if !(math.Abs(x-want[i]) <= 1e-10*max(1, math.Abs(x))) {
					t.Fatalf("%v: chunk %d: element %d is %v, want %v", v, chunk, i, x, want[i])
				}
			}
		}
	}
}

// wave are n values between −1 and 1 that do not repeat.
func wave(n int, phase float64) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = math.Sin(phase + 1.7*float64(i) + 1e-4*float64(i)*float64(i))
	}
	return x
}

// The step of MoMo lands where the model of the loss is at its lower bound,
// also where only a part of the model decays.
func TestMoMoReachesBound(t *testing.T) {
	for _, hyper := range []map[string]any{{"weight_decay": 0.3, "lb": 0.5}, {"weight_decay": 0.3, "lb": 0.5, "bias_correction": true}, {}} {
		rule, err := New[float64]("momo", hyper)
		if err != nil {
			t.Fatal(err)
		}
		l := testModel(t, 4)
		r := NewRunner(rule, l, wave(l.P, 1), RunnerOptions{Shards: 2})
		for i := range 5 {
			const lr = 500 // no cap
			in := Input[float64]{LR: lr, Loss: 40 + float64(i), Examples: 1}
			in.G[Grad] = wave(l.P, float64(i))
			r.Step(in)
			model := r.ModelSlot("f") - r.ModelSlot("gam")
			d := r.Slot("d")
			for j, x := range r.Params() {
				if !l.Find(j).Buffer {
					model += d[j] * x
				}
			}
			rho := 1.0
			if hyper["bias_correction"] != nil {
				rho = 1 - math.Pow(0.9, float64(i+1))
			}
			if want := rho * r.ModelSlot("lb"); math.Abs(model-want) > 1e-9 {
				t.Errorf("%v, step %d: the model is %v, want %v", hyper, i+1, model, want)
			}
		}
	}
}

// slowProjection is the projection by its formulas, on the whole tensor.
func slowProjection(p projection, rowLen int, w, g, u []float64) (ratio float64) {
	dot := func(a, b []float64) (s float64) {
		for i := range a {
			s += a[i] * b[i]
		}
		return s
	}
	norm := func(a []float64) float64 { return math.Sqrt(dot(a, a)) }
	for _, n := range []int{rowLen, len(w)} {
		top := 0.0
		for lo := 0; lo < len(w); lo += n {
			wr, gr := w[lo:lo+n], g[lo:lo+n]
			top = max(top, math.Abs(dot(gr, wr))/(max(norm(gr), p.eps)*max(norm(wr), p.eps)))
		}
		if top >= p.delta/math.Sqrt(float64(n)) {
			continue
		}
		for lo := 0; lo < len(w); lo += n {
			wr, ur := w[lo:lo+n], u[lo:lo+n]
			k := dot(wr, ur) / (norm(wr) + p.eps) / (norm(wr) + p.eps)
			for i := range ur {
				ur[i] -= k * wr[i]
			}
		}
		return p.wdRatio
	}
	return 1
}

// SGDP against its formulas, on tensors of which the first passes the test by
// rows, the second as a whole, and the others not at all.
func TestSGDPTwin(t *testing.T) {
	const lr, mu, wd = 0.1, 0.8, 0.05
	for _, nesterov := range []bool{false, true} {
		rule, err := New[float64]("sgdp", map[string]any{"momentum": mu, "weight_decay": wd, "nesterov": nesterov})
		if err != nil {
			t.Fatal(err)
		}
		l, err := layout.New([]layout.Tensor{
			{Name: "rows", Shape: []int{3, 1200}}, {Name: "whole", Shape: []int{4, 3, 100}}, {Name: "none", Shape: []int{5, 7}}, {Name: "vector", Shape: []int{9}},
		}, 1111)
		if err != nil {
			t.Fatal(err)
		}
		r := NewRunner(rule, l, wave(l.P, 2), RunnerOptions{Shards: 2})
		w, m := wave(l.P, 2), make([]float64, l.P)
		p := projection{1e-8, 0.1, 0.1}
		for i := range 5 {
			g := wave(l.P, 5+float64(i))
			ratios := map[string]float64{}
			for _, ti := range l.Tensors {
				part := func(x []float64) []float64 { return x[ti.Offset : ti.Offset+ti.Len] }
				w, g, m := part(w), part(g), part(m)
				switch ti.Name {
				case "rows":
					for lo := 0; lo < ti.Len; lo += 1200 {
						orthogonalize(g[lo:lo+1200], w[lo:lo+1200], 0)
					}
				case "whole": // rows along w that cancel
					orthogonalize(g[:600], w[:600], 1)
					orthogonalize(g[600:], w[600:], -dotOf(w[:600], w[:600])/dotOf(w[600:], w[600:]))
				case "none":
					copy(g, w)
				}
				u := make([]float64, ti.Len)
				for j := range u {
					m[j] = mu*m[j] + g[j]
					u[j] = m[j]
					if nesterov {
						u[j] = g[j] + mu*m[j]
					}
				}
				ratio := 1.0
				if len(ti.Shape) > 1 {
					ratio = slowProjection(p, ti.RowLen(), w, g, u)
				}
				ratios[ti.Name] = ratio
				for j := range u {
					w[j] = w[j]*(1-lr*wd*ratio/(1-mu)) - lr*u[j]
				}
				if !nesterov {
					copy(m, u)
				}
			}
			if ratios["rows"] != 0.1 || ratios["whole"] != 0.1 || ratios["none"] != 1 || ratios["vector"] != 1 {
				t.Fatalf("the test does not reach all views: %v", ratios)
			}
			in := Input[float64]{LR: lr, Examples: 1}
			in.G[Grad] = g
			r.Step(in)
			for j, x := range r.Params() {
				if !(math.Abs(x-w[j]) <= 1e-10) {
					t.Fatalf("nesterov %v, step %d: element %d is %v, want %v", nesterov, i+1, j, x, w[j])
				}
			}
		}
	}
}

func dotOf(a, b []float64) (s float64) {
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

// orthogonalize takes from g its part along w and adds k·w.
func orthogonalize(g, w []float64, k float64) {
	f := k - dotOf(g, w)/dotOf(w, w)
	for i := range g {
		g[i] += f * w[i]
	}
}

// Tensors without decay have no trust ratio: LAMB does there what Adam does.
func TestLAMBClipWithoutDecay(t *testing.T) {
	l, err := layout.New([]layout.Tensor{{Name: "bias", Shape: []int{30}, NoDecay: true}, {Name: "w", Shape: []int{30}}}, 7)
	if err != nil {
		t.Fatal(err)
	}
	params := func(name string, hyper map[string]any) []float64 {
		rule, err := New[float64](name, hyper)
		if err != nil {
			t.Fatal(err)
		}
		r := NewRunner(rule, l, wave(l.P, 3), RunnerOptions{})
		for i := range 4 {
			step(r, 0.01, constantly(wave(l.P, float64(i))))
		}
		return r.Params()
	}
	adam := params("adam", map[string]any{"eps": 1e-6})
	lamb := params("lamb_clip", map[string]any{"weight_decay": 0.1, "max_grad_norm": 0})
	adapted := params("lamb_clip", map[string]any{"weight_decay": 0.1, "max_grad_norm": 0, "always_adapt": true})
	for i, x := range adam[:30] {
		if math.Abs(lamb[i]-x) > 1e-12 {
			t.Errorf("element %d of the bias is %v, Adam's %v", i, lamb[i], x)
		}
	}
	if slices.Equal(lamb[:30], adapted[:30]) || !slices.Equal(lamb[30:], adapted[30:]) {
		t.Error("always_adapt must act on the bias and nothing else")
	}
	for _, c := range []struct {
		hyper  map[string]any
		passes int
	}{
		{map[string]any{"weight_decay": 0, "max_grad_norm": 0}, 1},
		{map[string]any{"weight_decay": 0}, 2},
		{map[string]any{"weight_decay": 0.1, "max_grad_norm": 0}, 2},
		{map[string]any{"weight_decay": 0.1}, 3},
	} {
		rule, err := New[float64]("lamb_clip", c.hyper)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(rule.Spec().Phases[0].Passes); n != c.passes {
			t.Errorf("%v takes %d passes, want %d", c.hyper, n, c.passes)
		}
	}
}

// C-AdamW scales its step by the share of elements that move, at most to a
// thousandfold; C-Lion knows no bound.
func TestCautiousShare(t *testing.T) {
	l, err := layout.New([]layout.Tensor{{Name: "w", Shape: []int{5000}}}, 300)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		moved int
		want  float64 // step of a moved element by the learning rate
	}{{"c_adamw", 1, 1000}, {"c_adamw", 5, 1000}, {"c_adamw", 10, 500}, {"c_adamw", 5000, 1}, {"c_lion", 1, 2500}, {"c_lion", 4, 1000}} {
		hyper := map[string]any{}
		if c.name == "c_adamw" { // at the first step m and √v are a tenth of g
			hyper = map[string]any{"betas": []any{0.9, 0.99}, "eps": 1e-300, "correct_bias": false}
		}
		rule, err := New[float64](c.name, hyper)
		if err != nil {
			t.Fatal(err)
		}
		r := NewRunner(rule, l, slices.Repeat([]float64{1}, l.P), RunnerOptions{Shards: 3})
		g := slices.Repeat([]float64{1e-200}, l.P) // the product with m vanishes
		for i := range c.moved {
			g[len(g)-1-i] = 2
		}
		if c.name == "c_lion" { // which compares signs
			clear(g[:len(g)-c.moved])
		}
		step(r, 1e-3, constantly(g))
		w := r.Params()
		if got := (1 - w[len(w)-1]) / 1e-3; math.Abs(got-c.want) > 1e-9*c.want {
			t.Errorf("%s: with %d moved elements the step is %v, want %v", c.name, c.moved, got, c.want)
		}
		if c.moved < len(w) && w[0] != 1 {
			t.Errorf("%s: an element that must stay moved to %v", c.name, w[0])
		}
	}
}

// The velocity of Gravity starts as noise of deviation alpha/lr.
func TestGravityNoise(t *testing.T) {
	for _, c := range []struct{ lr, alpha, want float64 }{{0.1, 0.01, 0.1}, {0.01, 0.01, 1}, {0.1, 0, 0}, {0, 0.01, 0}} {
		rule, err := New[float64]("gravity", map[string]any{"lr": c.lr, "alpha": c.alpha})
		if err != nil {
			t.Fatal(err)
		}
		l, err := layout.New([]layout.Tensor{{Name: "w", Shape: []int{10000}}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		v := NewRunner(rule, l, make([]float64, l.P), RunnerOptions{Seed: 1}).Slot("v")
		if sigma := math.Sqrt(dotOf(v, v) / float64(l.P)); math.Abs(sigma-c.want) > 0.03*c.want {
			t.Errorf("lr %v, alpha %v: deviation %v, want %v", c.lr, c.alpha, sigma, c.want)
		}
	}
}

// Of SANIA's learning rate only the schedule's part acts.
func TestSANIALearningRate(t *testing.T) {
	for _, name := range []string{"sania_adagrad_sqr", "sania_adam_sqr"} {
		l := testModel(t, 5)
		var want []float64
		for _, c := range []struct{ base, lr float64 }{{1, 0.5}, {4, 2}, {0.5, 0.25}} {
			rule, err := New[float64](name, map[string]any{"lr": c.base})
			if err != nil {
				t.Fatal(err)
			}
			r := NewRunner(rule, l, wave(l.P, 1), RunnerOptions{})
			for i := range 3 {
				step(r, c.lr, constantly(wave(l.P, float64(i))))
			}
			if want == nil {
				want = r.Params()
			}
			if !equalBits(r.Params(), want) {
				t.Errorf("%s: base rate %v changes the step", name, c.base)
			}
		}
	}
}

// Normalised steps have the length of the learning rate, however small or large
// the gradient is; none is taken where there is no gradient.
func TestNormalizedLength(t *testing.T) {
	for _, name := range []string{"normalized_gd", "spider"} {
		rule, err := New[float32](name, nil)
		if err != nil {
			t.Fatal(err)
		}
		l := testModel(t, 4)
		for _, scale := range []float32{1e-30, 1e-3, 1, 1e30} {
			r := NewRunner(rule, l, make([]float32, l.P), RunnerOptions{Shards: 2})
			g := convert[float32](wave(l.P, 1))
			for i := range g {
				g[i] *= scale
			}
			step(r, 0.25, constantly(g))
			norm := 0.0
			for _, x := range r.Params() {
				norm += float64(x) * float64(x)
			}
			if norm = math.Sqrt(norm); math.Abs(norm-0.25) > 1e-6 {
				t.Errorf("%s: gradient of scale %v: step of length %v, want 0.25", name, scale, norm)
			}
		}
		// The inverse of this norm is beyond float32.
		r := NewRunner(rule, l, make([]float32, l.P), RunnerOptions{})
		g := make([]float32, l.P)
		g[0] = math.SmallestNonzeroFloat32
		step(r, 0.25, constantly(g))
		checkFinite(t, name, r.Params())
	}
}

func TestNormalizedGDClipAndGamma(t *testing.T) {
	_, err := New[float32]("normalized_gd", map[string]any{"clip": 1, "gamma": 1})
	if !errors.Is(err, ErrHyper) {
		t.Errorf("clip and gamma together: %v, want an error", err)
	}
}

// SPIDER asks for a full gradient every period, else for two gradients.
func TestSPIDERRoles(t *testing.T) {
	for _, bad := range []any{0, 1.5, -1} {
		if _, err := New[float32]("spider", map[string]any{"period": bad}); !errors.Is(err, ErrHyper) {
			t.Errorf("period %v: %v, want an error", bad, err)
		}
	}
	rule, err := New[float32]("spider", map[string]any{"period": 3})
	if err != nil {
		t.Fatal(err)
	}
	spec := rule.Spec()
	for step := uint64(1); step <= 9; step++ {
		want := []Role{Grad, GradPrev}
		if step == 1 || step == 4 || step == 7 {
			want = []Role{FullGrad}
		}
		if got := spec.Roles(0, step); !slices.Equal(got, want) {
			t.Errorf("step %d asks for %v, want %v", step, got, want)
		}
	}
	if spec.History() != 1 {
		t.Error("workers need the previous parameters")
	}
	always, err := New[float32]("spider", map[string]any{"period": 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := always.Spec().AllRoles(); !slices.Equal(got, []Role{FullGrad}) {
		t.Errorf("with period 1 it asks for %v", got)
	}
}
