package optim

import (
	"math"
	"testing"

	"tributary/layout"
)

func init() {
	aggregationReplays["o2nc"] = replayO2NC
	aggregationReplays["moe_bias"] = replayMoEBias
}

func replayO2NC(c *aggregationCase) map[string][][]float64 {
	eta, epoch := c.number("eta"), int(c.number("T"))
	a, uniform := c.matrix("A"), c.vector("uniform")
	r := c.runner("o2nc", map[string]any{"lr": eta, "radius": c.number("D"), "epoch": epoch}, c.vector("x0"))
	r.rule.(*o2nc[float64]).uniform = func(n uint64) float64 {
		if n > uint64(len(uniform)) {
			return 0 // of a step that the case does not have
		}
		return uniform[n-1]
	}
	var x, delta, mean [][]float64
	for n := range c.matrix("result") {
		w := r.Params()
		g := times(a, w)
		for i, wi := range w {
			g[i] += math.Sin(wi)
		}
		r.Step(aggregationInput(eta, map[Role][]float64{Grad: g}))
		x, delta = append(x, r.Slot("x")), append(delta, r.Slot("delta"))
		if (n+1)%epoch == 0 {
			mean = append(mean, r.Slot("mean"))
			// The file has the last Δ of an epoch before it is set to 0.
			for i, d := range delta[n] {
				if d != 0 {
					c.t.Errorf("step %d: Δ of element %d is %v at the end of an epoch", n+1, i, d)
				}
			}
			delta[n] = c.matrix("delta_after")[n]
		}
	}
	return map[string][][]float64{"result": x, "delta_after": delta, "epoch_average_w": mean}
}

func replayMoEBias(c *aggregationCase) map[string][][]float64 {
	u := c.number("u")
	n := int(c.number("experts"))
	r := c.runnerOver("moe_bias", map[string]any{"lr": u}, []layout.Tensor{{Name: "bias", Shape: []int{n}}}, make([]float64, n))
	var out [][]float64
	for _, load := range c.matrix("load") {
		r.Step(aggregationInput(u, map[Role][]float64{Grad: load}))
		out = append(out, r.Params())
	}
	return map[string][][]float64{"result": out}
}

// Each epoch's mean is as likely to be the answer as any other.
func TestO2NCAnswer(t *testing.T) {
	const epochs, runs = 4, 4000
	var won [epochs]int
	for seed := range runs {
		rule, err := New[float64]("o2nc", map[string]any{"seed": seed, "epoch": 3})
		if err != nil {
			t.Fatal(err)
		}
		last := 0
		for n := uint64(1); n <= 3*epochs; n++ {
			if chosen := rule.(*o2nc[float64]).chosen(n); chosen && n%3 == 0 {
				last = int(n/3) - 1
			} else if chosen && n > 3 {
				t.Fatalf("seed %d: the answer changes at step %d, within an epoch", seed, n)
			}
		}
		won[last]++
	}
	for e, n := range won {
		if want := runs / epochs; math.Abs(float64(n-want)) > 150 { // five deviations
			t.Errorf("epoch %d is the answer %d times of %d, want about %d", e+1, n, runs, want)
		}
	}
}

// Loads that are equal but for the rounding of a mean over ranks leave biases
// alone.
func TestMoEBiasRounding(t *testing.T) {
	rule, err := New[float32]("moe_bias", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, ranks := range []float32{1, 3, 7, 11} {
		load := []float32{1000, 1001, 999, 1000, 1700, 300}
		l, err := layout.New([]layout.Tensor{{Name: "bias", Shape: []int{len(load)}}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range load {
			load[i] /= ranks
		}
		r := NewRunner(rule, l, make([]float32, len(load)), RunnerOptions{})
		step(r, 1, constantly(load))
		if got, want := r.Params(), []float32{0, -1, 1, 0, -1, 1}; !equalBits(got, want) {
			t.Errorf("%v ranks: biases %v, want %v", ranks, got, want)
		}
	}
}
