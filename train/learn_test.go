package train

import (
	"math"
	"testing"
)

// recipe is a run of plain AdamW with a cosine to zero.
type recipe struct {
	model        ModelSpec
	ranks, batch int
	steps        int
	lr, decay    float64
}

// adamW is one update as in Loshchilov and Hutter, ICLR 2019, Algorithm 2,
// with β = (0.9, 0.999) and ε = 1e-8; step counts from 1. Only the tensors'
// weights decay.
func adamW(p, m, v []float32, g []float32, step int, lr, decay float64) {
	c1, c2 := 1-math.Pow(0.9, float64(step)), 1-math.Pow(0.999, float64(step))
	for i, gi := range g {
		m[i] = 0.9*m[i] + 0.1*gi
		v[i] = 0.999*v[i] + 0.001*gi*gi
		p[i] -= float32(lr * (float64(m[i])/c1/(math.Sqrt(float64(v[i])/c2)+1e-8) + decay*float64(p[i])))
	}
}

// learn follows the recipe on data of one seed and returns the losses over
// the updates and the accuracy on the test part. It does what a cluster does:
// every rank has its own examples and the gradients are averaged.
func learn(t testing.TB, r recipe, seed uint64) (losses []float64, accuracy float64) {
	t.Helper()
	data, test, _, err := Load("digits", "", seed)
	if err != nil {
		t.Fatal(err)
	}
	m := newModel(t, r.model, data.Shape())
	params := start(m, seed)
	zeros := func() []float32 { return make([]float32, len(params)) }
	m1, m2, grad, mean := zeros(), zeros(), zeros(), zeros()
	sampler := NewSampler(data.N, r.ranks, seed)
	x, y, indices := make([]float32, r.batch*data.Dim), make([]int32, r.batch), []int(nil)
	for s := range r.steps {
		clear(mean)
		total := 0.0
		for rank := range r.ranks {
			indices, _ = sampler.Batch(indices[:0], rank, uint64(s), r.batch)
			data.Gather(indices, x, y)
			loss, _ := m.Grad(params, x, y, r.batch, grad)
			total += loss / float64(r.ranks)
			for i, g := range grad {
				mean[i] += g / float32(r.ranks)
			}
		}
		lr := r.lr / 2 * (1 + math.Cos(math.Pi*float64(s)/float64(r.steps)))
		adamW(params, m1, m2, mean, s+1, lr, r.decay)
		losses = append(losses, total)
	}
	_, correct := m.Eval(params, test.X, test.Y, test.N)
	return losses, float64(correct) / float64(test.N)
}

// A short run learns the digits. The bounds leave about four of the 359 test
// examples to another machine's rounding; a gradient that is off, or labels
// that are mixed up, fall far below.
func TestLearnDigits(t *testing.T) {
	for _, c := range []struct {
		recipe
		want float64
	}{
		{recipe{ModelSpec{Kind: "softmax"}, 2, 32, 200, 2e-2, 0}, 0.94},
		{recipe{ModelSpec{Kind: "mlp", Hidden: []int{128}}, 4, 32, 300, 2e-2, 1e-2}, 0.965},
		{recipe{ModelSpec{Kind: "cnn", Channels: []int{8, 16}}, 2, 16, 200, 1e-2, 1e-2}, 0.95},
	} {
		losses, accuracy := learn(t, c.recipe, 1)
		if first := losses[0]; math.Abs(first-math.Log(10)) > 0.4 {
			t.Errorf("%s: first loss %.3f, want about ln 10", c.model.Kind, first)
		}
		if last := losses[len(losses)-1]; last > 0.25 || accuracy < c.want {
			t.Errorf("%s: loss %.3f and accuracy %.4f after %d updates, want below 0.25 and at least %v",
				c.model.Kind, last, accuracy, c.steps, c.want)
		}
	}
}
