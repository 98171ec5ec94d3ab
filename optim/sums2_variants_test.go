package optim

import (
	"fmt"
	"math"
	"testing"
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
	for _, shape := range [][2]int{{3, 5}, {newtonCols + 3, newtonCols + 40}, {40, 7}, {1, 300}, {300, 1}, {newtonCols + 2, newtonCols}, {1, 1}} {
		rows, cols := shape[0], shape[1]
		g := wave(rows*cols, float64(rows))
		want := slowNewtonSchulz(g, rows, cols)
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
