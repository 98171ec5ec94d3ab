package train

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// soft is the distillation loss of a student by its definition.
func (t twin) soft(params []float64, x, targets []float32, temperature float64) (mean float64) {
	softmax := func(z []float64) []float64 {
		total := 0.0
		p := make([]float64, len(z))
		for j, v := range z {
			p[j] = math.Exp(v / temperature)
			total += p[j]
		}
		for j := range p {
			p[j] /= total
		}
		return p
	}
	n := len(x) / t.shape.Dim
	for i := range n {
		q := softmax(t.scores(params, x[i*t.shape.Dim:(i+1)*t.shape.Dim]))
		for j, p := range softmax(widen(targets[i*t.shape.Classes : (i+1)*t.shape.Classes])) {
			mean += temperature * temperature * p * math.Log(p/q[j])
		}
	}
	return mean / float64(n)
}

func TestGradSoftIsTheDerivative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec, s := genModel(t)
		m, err := NewModel(spec, s)
		if err != nil {
			t.Fatal(err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		n := rapid.IntRange(1, 6).Draw(t, "n")
		temperature := rapid.Float64Range(0.5, 8).Draw(t, "temperature")
		params := start(m, seed)
		x, _ := noise(s, n, seed)
		targets := direction(n*s.Classes, seed)
		grad := slices.Repeat([]float32{float32(math.NaN())}, len(params))
		loss := m.GradSoft(params, x, targets, temperature, n, grad)
		tw, p := twin{spec, s}, widen(params)
		if want := tw.soft(p, x, targets, temperature); !(math.Abs(loss-want) <= 1e-5*(1+want)) {
			t.Fatalf("%s: loss %v, want %v", m.Name(), loss, want)
		}
		const h = 1e-6
		for i := range p {
			at := p[i]
			p[i] = at + h
			up := tw.soft(p, x, targets, temperature)
			p[i] = at - h
			down := tw.soft(p, x, targets, temperature)
			p[i] = at
			if want := (up - down) / (2 * h); !(math.Abs(float64(grad[i])-want) <= 1e-5+1e-4*math.Abs(want)) {
				t.Fatalf("%s: grad[%d] = %v, difference quotient %v", m.Name(), i, grad[i], want)
			}
		}
	})
}

// A student that is its own teacher has nothing to learn, and a teacher that
// is certain is a label.
func TestTeachers(t *testing.T) {
	s := Shape{Dim: 12, Classes: 4}
	const n = 70
	m := newModel(t, ModelSpec{Kind: "mlp", Hidden: []int{6}}, s)
	params := start(m, 1)
	x, y := noise(s, n, 1)
	targets, grad, want := make([]float32, n*s.Classes), make([]float32, len(params)), make([]float32, len(params))
	m.Scores(params, x, n, targets)
	for _, temperature := range []float64{0.5, 1, 20} {
		if loss := m.GradSoft(params, x, targets, temperature, n, grad); !(math.Abs(loss) <= 1e-12) || norm(grad) != 0 {
			t.Errorf("own teacher at temperature %v: loss %v, gradient of length %v", temperature, loss, norm(grad))
		}
	}
	for i := range targets {
		targets[i] = float32(math.Inf(-1))
	}
	for i, c := range y {
		targets[i*s.Classes+int(c)] = 3
	}
	wantLoss, _ := m.Grad(params, x, y, n, want)
	loss := m.GradSoft(params, x, targets, 1, n, grad)
	for i := range grad {
		grad[i] -= want[i]
	}
	if !(math.Abs(loss-wantLoss) <= 1e-12) || !(norm(grad) <= 1e-6*norm(want)) {
		t.Errorf("certain teacher: loss %v, want %v; gradient off by %v", loss, wantLoss, norm(grad))
	}
	if loss := m.GradSoft(params, nil, nil, 1, 0, grad); loss != 0 || norm(grad) != 0 {
		t.Errorf("no examples: loss %v, gradient %v", loss, grad)
	}
}

func TestGradSoftPanics(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 2, Classes: 2})
	for _, c := range []struct {
		targets, grad int
		temperature   float64
	}{{1, 6, 1}, {2, 5, 1}, {2, 6, 0}, {2, 6, -1}, {2, 6, math.NaN()}, {2, 6, math.Inf(1)}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("GradSoft with %+v did not panic", c)
				}
			}()
			m.GradSoft(make([]float32, 6), make([]float32, 2), make([]float32, c.targets), c.temperature, 1, make([]float32, c.grad))
		}()
	}
}
