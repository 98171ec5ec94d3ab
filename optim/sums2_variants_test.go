package optim

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"tributary/layout"
)

func init() {
	type h = map[string]any
	variants := []ruleVariant{
		{name: "swats"},
		{name: "swats", hyper: h{"weight_decay": 0.1}},
		// Any estimate will do: the switch comes at the second step.
		{name: "swats", hyper: h{"weight_decay": 0.1, "betas": []any{0.5, 0.5}, "switch_eps": 1e30, "switch_rel": 1}},
		{name: "oasis"},
		{name: "oasis", hyper: h{"beta2": 0.5, "alpha": 1, "lr": 0.5}},
		{name: "oasis", hyper: h{"lr": 0}},
		{name: "oasis", hyper: h{"adaptive": false}},
		// The concave part takes back what the pull to 0 does to large parameters.
		{name: "ag_nonconvex", drifts: true},
		{name: "ag_nonconvex", hyper: h{"penalty": "mcp", "lambda": 20}, shrinks: true},
		{name: "ag_nonconvex", hyper: h{"lambda": 20}, shrinks: true},
		{name: "ag_nonconvex", hyper: h{"lambda": 0}},
		{name: "sam"},
		{name: "sam", hyper: h{"rho": 0, "base": "lamb", "base_hyper": h{"weight_decay": 0.1}}, shrinks: true},
		{name: "sam", hyper: h{"base": "adamp", "base_hyper": h{"delta": 100, "nesterov": true}}},
		{name: "sam", hyper: h{"base": "momo_adam"}},
		{name: "sam", hyper: h{"base": "sgd", "sync_perturbation": false}},
		{name: "sam", hyper: h{"base": "adamp", "base_hyper": h{"delta": 100}, "sync_perturbation": false}},
		{name: "o2nc"},
		{name: "o2nc", hyper: h{"radius": 1e3, "epoch": 2, "seed": 7}},
		{name: "moe_bias"},
		{name: "adafactor"},
		{name: "adafactor", hyper: h{"lr": 0.1, "relative_step": false, "scale_parameter": false, "beta1": 0.9, "weight_decay": 0.1}},
		{name: "adafactor", hyper: h{"warmup_init": true, "eps2": []any{1e-20, 0.1}, "clip_threshold": 2, "decay_rate": -0.5}},
		// Decay is times the rate, which is relative to the parameters: large ones overshoot.
		{name: "adafactor", hyper: h{"decay_rate": 0, "beta1": 0.5, "weight_decay": 1}, limit: 100},
		{name: "muon"},
		{name: "muon", hyper: h{"weight_decay": 0.1, "aux_weight_decay": 0.1, "nesterov": false}},
		{name: "muon", hyper: h{"lr": 0, "momentum": 0}},
	}
	ruleVariants = append(ruleVariants, variants...)
	sumVariants = append(sumVariants, variants...)
}

// slowNewtonSchulz is newtonSchulz by its formulas.
func slowNewtonSchulz(g []float64, rows, cols int) []float64 {
	mul := func(x, y []float64, m, p, n int) []float64 {
		out := make([]float64, m*n)
		for i := range m {
			for k := range p {
				for j := range n {
					out[i*n+j] += x[i*p+k] * y[k*n+j]
				}
			}
		}
		return out
	}
	turn := func(x []float64, m, n int) []float64 {
		out := make([]float64, m*n)
		for i, v := range x {
			out[i%n*m+i/n] = v
		}
		return out
	}
	if rows > cols {
		return turn(slowNewtonSchulz(turn(g, rows, cols), cols, rows), cols, rows)
	}
	norm := math.Sqrt(dotOf(g, g)) + 1e-7
	x := make([]float64, len(g))
	for i, v := range g {
		x[i] = v / norm
	}
	for range 5 {
		a := mul(x, turn(x, rows, cols), rows, cols, rows)
		b := mul(a, a, rows, rows, rows)
		for i := range b {
			b[i] = -4.7750*a[i] + 2.0315*b[i]
		}
		y := mul(b, x, rows, rows, cols)
		for i := range x {
			x[i] = 3.4445*x[i] + y[i]
		}
	}
	return x
}

// Matrices of one block and of several, wide and tall, one after the other with
// the same memory.
func TestNewtonSchulz(t *testing.T) {
	var ns64 newtonSchulz[float64]
	var ns32 newtonSchulz[float32]
	for _, shape := range [][2]int{{3, 5}, {newtonCols + 3, newtonCols + 5}, {40, 7}, {1, 300}, {300, 1}, {newtonCols + 2, 20}, {1, 1}} {
		rows, cols := shape[0], shape[1]
		g := wave(rows*cols, float64(rows))
		want := slowNewtonSchulz(g, rows, cols)
		if min(rows, cols) > newtonCols { // in one precision: the race detector is slow
			for i, x := range ns32.run(g, rows, cols) {
				if !(math.Abs(float64(x)-want[i]) <= 1e-4) {
					t.Fatalf("%v: float32: element %d is %v, want %v", shape, i, x, want[i])
				}
			}
			continue
		}
		for i, x := range ns64.run(g, rows, cols) {
			if !(math.Abs(x-want[i]) <= 1e-10) {
				t.Fatalf("%v: element %d is %v, want %v", shape, i, x, want[i])
			}
		}
		for i, x := range ns32.run(g, rows, cols) {
			if !(math.Abs(float64(x)-want[i]) <= 1e-4) {
				t.Fatalf("%v: float32: element %d is %v, want %v", shape, i, x, want[i])
			}
		}
		if n := testing.AllocsPerRun(1, func() { ns64.run(g, rows, cols) }); n != 0 {
			t.Errorf("%v: %v allocations", shape, n)
		}
	}
	for i, x := range ns32.run(make([]float64, 15), 3, 5) {
		if x != 0 {
			t.Errorf("of zeros: element %d is %v", i, x)
		}
	}
}

func BenchmarkNewtonSchulz(b *testing.B) {
	for _, n := range []int{128, 512, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var ns newtonSchulz[float32]
			g := wave(n*n, 1)
			for b.Loop() {
				ns.run(g, n, n)
			}
			// A·A and X·Xᵀ take half the products.
			b.ReportMetric(2*float64(n*n*n)*newtonSteps*2/b.Elapsed().Seconds()*float64(b.N)/1e9, "Gflop/s")
		})
	}
}

// Adafactor of tensors of more than two dimensions: each matrix that the last two
// span has rows and columns of its own, as one tensor has all of them.
func TestAdafactorTwin(t *testing.T) {
	const eps1, eps2, clip, b1 = 1e-30, 1e-3, 0.5, 0.6
	rule, err := New[float64]("adafactor", map[string]any{"beta1": b1, "clip_threshold": clip})
	if err != nil {
		t.Fatal(err)
	}
	shape := []int{2, 3, 4, 5}
	l, err := layout.New([]layout.Tensor{{Name: "kernel", Shape: shape}}, 17)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRunner(rule, l, wave(l.P, 1), RunnerOptions{Shards: 3})
	w, m := wave(l.P, 1), make([]float64, l.P)
	const rows, cols = 4, 5
	rowMoment, colMoment := make([]float64, l.P/cols), make([]float64, l.P/rows)
	rms := func(x []float64) float64 { return math.Sqrt(dotOf(x, x) / float64(len(x))) }
	for n := range 6 {
		g := wave(l.P, 3+float64(n))
		step(r, 0, constantly(g))
		b := 1 - math.Pow(float64(n+1), -0.8)
		u := make([]float64, l.P)
		for at := 0; at < l.P; at += rows * cols {
			rm, cm := rowMoment[at/cols:][:rows], colMoment[at/rows:][:cols]
			mean := 0.0
			for i := range rm {
				sum := 0.0
				for j := range cols {
					sum += g[at+i*cols+j]*g[at+i*cols+j] + eps1
				}
				rm[i] = b*rm[i] + (1-b)*sum/cols
				mean += rm[i] / rows
			}
			for j := range cm {
				sum := 0.0
				for i := range rows {
					sum += g[at+i*cols+j]*g[at+i*cols+j] + eps1
				}
				cm[j] = b*cm[j] + (1-b)*sum/rows
			}
			for i := range rm {
				for j := range cm {
					u[at+i*cols+j] = g[at+i*cols+j] / math.Sqrt(rm[i]/mean) / math.Sqrt(cm[j])
				}
			}
		}
		rate := min(1e-2, 1/math.Sqrt(float64(n+1))) * max(eps2, rms(w))
		scale := rate / max(1, rms(u)/clip)
		for i := range u {
			m[i] = b1*m[i] + (1-b1)*scale*u[i]
			w[i] -= m[i]
		}
		for i, x := range r.Params() {
			if !(math.Abs(x-w[i]) <= 1e-12) {
				t.Fatalf("step %d: element %d is %v, want %v", n+1, i, x, w[i])
			}
		}
	}
}

// Settings that contradict each other are refused.
func TestSettingsRefused(t *testing.T) {
	type h = map[string]any
	for _, c := range []struct {
		name  string
		hyper h
		want  string
	}{
		{"adafactor", h{"lr": 0.1}, "relative_step"},
		{"adafactor", h{"relative_step": false}, "learning rate"},
		{"adafactor", h{"relative_step": false, "lr": 0.1, "warmup_init": true}, "warmup_init"},
		{"adafactor", h{"eps2": []any{0, 1e-3}}, "eps2"},
		{"ag_nonconvex", h{"a": 1}, "a: want"},
		{"ag_nonconvex", h{"gamma": 0}, "gamma: want"},
		{"ag_nonconvex", h{"penalty": "lasso"}, "one of scad, mcp"},
		{"o2nc", h{"epoch": 2.5}, "whole"},
		{"o2nc", h{"seed": 0.5}, "whole"},
		{"sam", h{"base": "adamv"}, `did you mean "adam"?`},
		{"sam", h{"base": "adamw", "base_hyper": h{"bets": []any{0.9, 0.9}}}, `did you mean "betas"?`},
		{"sam", h{"base": "sgd", "base_hyper": h{"nesterov": true}}, "sam: base_hyper"},
		{"sam", h{"base": "sam"}, "once per step"},
		{"sam", h{"base": "sam", "base_hyper": h{"sync_perturbation": false}}, "once per step"},
		{"sam", h{"base": "sophia_g"}, "once per step"},
	} {
		if _, err := New[float32](c.name, c.hyper); !errors.Is(err, ErrHyper) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: %v, want an error with %q", c.name, c.hyper, err, c.want)
		}
	}
}

// The base rate of SAM is that of its base rule, and without a push of its own it
// is that rule.
func TestSAMWithoutSync(t *testing.T) {
	d, _ := Lookup("sam")
	v, err := d.Resolve(map[string]any{"base": "adamw", "base_hyper": map[string]any{"lr": 0.25}})
	if err != nil {
		t.Fatal(err)
	}
	if lr, err := d.BaseLR(v); lr != 0.25 || err != nil {
		t.Errorf("base rate %v, %v, want 0.25", lr, err)
	}
	l := testModel(t, 4)
	for _, base := range []string{"adamw", "adamp"} {
		alone, err := New[float64](base, nil)
		if err != nil {
			t.Fatal(err)
		}
		rule, err := New[float64]("sam", map[string]any{"base": base, "rho": 0.1, "sync_perturbation": false})
		if err != nil {
			t.Fatal(err)
		}
		if spec := rule.Spec(); spec.Perturb != 0.1 || len(spec.Phases) != 1 {
			t.Errorf("%s: perturbed by %v in %d phases", base, spec.Perturb, len(spec.Phases))
		}
		a, b := NewRunner(alone, l, wave(l.P, 1), RunnerOptions{}), NewRunner(rule, l, wave(l.P, 1), RunnerOptions{Shards: 3})
		for i := range 3 {
			step(a, 0.1, constantly(wave(l.P, float64(i))))
			step(b, 0.1, constantly(wave(l.P, float64(i))))
		}
		checkEqual(t, base, a, b)
	}
}

// OASIS finds the curvature of a quadratic: with D̂ near the Hessian its rate
// settles near 1/2, wherever it starts, and a warm-up from 0 does not stop it.
func TestOASISRate(t *testing.T) {
	for _, lr := range []float64{1e-4, 0.1, 100} {
		rule, err := New[float64]("oasis", map[string]any{"lr": lr})
		if err != nil {
			t.Fatal(err)
		}
		l := testModel(t, 5)
		r := NewRunner(rule, l, wave(l.P, 1), RunnerOptions{})
		hessian := func(i int) float64 { return 1 + float64(i%7) }
		before := r.Params()
		for n := range 60 {
			w := r.Params()
			in := Input[float64]{LR: lr, Examples: 1}
			if n < 3 {
				in.LR = 0
			}
			for _, role := range []Role{Grad, GradPrev, HessDiag} {
				in.G[role] = make([]float64, l.P)
			}
			for i := range w {
				in.G[Grad][i], in.G[GradPrev][i], in.G[HessDiag][i] = hessian(i)*w[i], hessian(i)*before[i], hessian(i)
			}
			r.Step(in)
			before = w
		}
		if eta := r.ModelSlot("eta"); math.Abs(eta-0.5) > 1e-6 {
			t.Errorf("lr %v: the rate is %v, want 0.5", lr, eta)
		}
	}
}

// After its switch SWATS follows the schedule in proportion.
func TestSWATSSchedule(t *testing.T) {
	rule, err := New[float64]("swats", map[string]any{"switch_eps": 1e9})
	if err != nil {
		t.Fatal(err)
	}
	l := testModel(t, 5)
	moved := func(lr float64) []float64 {
		r := NewRunner(rule, l, wave(l.P, 1), RunnerOptions{})
		for range 2 {
			step(r, 0.1, constantly(wave(l.P, 2)))
		}
		if r.ModelSlot("phase") != 1 {
			t.Fatal("no switch at step 2")
		}
		w := r.Params()
		step(r, lr, constantly(wave(l.P, 2)))
		for i, x := range r.Params() {
			w[i] -= x
		}
		return w
	}
	whole, half := moved(0.1), moved(0.05)
	for i, x := range whole {
		if math.Abs(x-2*half[i]) > 1e-12 || x == 0 && !l.Find(i).Buffer {
			t.Errorf("element %d moves by %v, and by %v at half the rate", i, x, half[i])
		}
	}
}
