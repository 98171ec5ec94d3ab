package train

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary/internal/rng"
)

func TestScores(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec, s := genModel(t)
		m, err := NewModel(spec, s)
		if err != nil {
			t.Fatal(err)
		}
		n := rapid.IntRange(0, 70).Draw(t, "n")
		params := start(m, 1)
		x, _ := noise(s, n, 1)
		got := make([]float32, n*s.Classes)
		for i := range got {
			got[i] = float32(math.NaN())
		}
		m.Scores(params, x, n, got)
		for i := range n {
			for j, z := range (twin{spec, s}).scores(widen(params), x[i*s.Dim:(i+1)*s.Dim]) {
				if v := float64(got[i*s.Classes+j]); !(math.Abs(v-z) < 1e-5) {
					t.Fatalf("%s: score of class %d of example %d is %v, want %v", m.Name(), j, i, v, z)
				}
			}
		}
	})
}

// Probabilities 1/8, 1/2, 0, 3/8, and every border between them.
func TestSample(t *testing.T) {
	z := []float32{0, float32(math.Log(4)), float32(math.Inf(-1)), float32(math.Log(3))}
	for _, c := range []struct {
		u    float64
		want int32
	}{{0, 0}, {0.1249, 0}, {0.1251, 1}, {0.6249, 1}, {0.6251, 3}, {1 - 0x1p-53, 3}} {
		if got := sample(z, c.u); got != c.want {
			t.Errorf("sample(1/8, 1/2, 0, 3/8; %v) = %d, want %d", c.u, got, c.want)
		}
	}
	if got := sample([]float32{float32(math.Inf(-1)), 0}, 0); got != 1 {
		t.Errorf("sample of an impossible class = %d", got)
	}
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, z := range [][]float32{{nan, 1, 2}, {1, nan, 2}, {1, 2, nan}, {inf, 1, inf}, {-inf, -inf, -inf}} {
		for _, u := range []float64{0, 0.5, 1 - 0x1p-53} {
			if got := sample(z, u); got < 0 || got > 2 {
				t.Errorf("sample(%v, %v) = %d, no class", z, u, got)
			}
		}
	}
	if got := sample([]float32{1e30, 0, -1e30}, 0.999); got != 0 {
		t.Errorf("sample of a certain class = %d", got)
	}
}

// Uniforms on a fine grid hit each class as often as it is likely: the inverse
// distribution function has no error of chance.
func TestSampleLabelsFollowTheModel(t *testing.T) {
	const n = 1000
	for _, c := range small {
		m := newModel(t, c.spec, c.s)
		params := start(m, 1)
		one, _ := noise(c.s, 1, 1)
		calls, y := 0, make([]int32, n)
		m.SampleLabels(params, slices.Repeat(one, n), n, func(i int) float64 {
			if i != calls {
				t.Fatalf("%s: u(%d), want u(%d)", m.Name(), i, calls)
			}
			calls++
			return (float64(i) + 0.5) / n
		}, y)
		z := twin{c.spec, c.s}.scores(widen(params), one)
		total, count := 0.0, make([]int, c.s.Classes)
		for _, v := range z {
			total += math.Exp(v)
		}
		for _, k := range y {
			count[k]++
		}
		for j, v := range z {
			if want := n * math.Exp(v) / total; !(math.Abs(float64(count[j])-want) <= 1.01) {
				t.Errorf("%s: class %d drawn %d times, want %.2f", m.Name(), j, count[j], want)
			}
		}
		if calls != n || !slices.IsSorted(y) {
			t.Errorf("%s: %d uniforms, labels in order: %t", m.Name(), calls, slices.IsSorted(y))
		}
	}
}

// Of softmax regression the Hessian does not depend on labels, so that n·g² of
// sampled labels has the Hessian's diagonal for its mean.
func TestSampledGradientsEstimateTheDiagonal(t *testing.T) {
	s := Shape{Dim: 3, Classes: 3}
	const n, draws = 8, 20000
	m := newModel(t, ModelSpec{Kind: "softmax"}, s)
	params := start(m, 1)
	x, y := noise(s, n, 1)
	mean, g := make([]float64, len(params)), make([]float32, len(params))
	for d := range uint64(draws) {
		k := rng.New(d, "label")
		m.SampleLabels(params, x, n, func(i int) float64 { return k.Float64(uint64(i)) }, y)
		m.Grad(params, x, y, n, g)
		for i, v := range g {
			mean[i] += n * float64(v) * float64(v) / draws
		}
	}
	unit := make([]float32, len(params))
	for i := range unit {
		clear(unit)
		unit[i] = 1
		want := float64(hvp(m, params, unit, x, y)[i])
		if !(math.Abs(mean[i]-want) <= 0.05*want) { // about four deviations: those of g⁴ are 1.4/√draws
			t.Errorf("mean of n·g[%d]² = %v, the diagonal is %v", i, mean[i], want)
		}
	}
}

func TestScoresDoNotAllocate(t *testing.T) {
	s := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	for _, spec := range []ModelSpec{{Kind: "softmax"}, {Kind: "sparse"}, {Kind: "mlp", Hidden: []int{256}}, {Kind: "cnn", Channels: []int{2, 2}}} {
		m := newModel(t, spec, s)
		params := start(m, 1)
		x, y := noise(s, 70, 1)
		out, grad := make([]float32, 70*s.Classes), make([]float32, len(params))
		m.Scores(params, x, 70, out)
		m.GradSoft(params, x, out, 2, 70, grad)
		u := func(int) float64 { return 0.5 }
		if got := testing.AllocsPerRun(2, func() {
			m.Scores(params, x, 70, out)
			m.SampleLabels(params, x, 70, u, y)
			m.GradSoft(params, x, out, 2, 70, grad)
		}); got != 0 {
			t.Errorf("%s: %v allocations a step", m.Name(), got)
		}
	}
}
