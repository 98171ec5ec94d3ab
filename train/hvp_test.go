package train

import (
	"math"
	"slices"
	"testing"

	"tributary/internal/rng"
)

// direction is a vector of standard normal numbers.
func direction(n int, seed uint64) []float32 {
	k, v := rng.New(seed, "direction"), make([]float32, n)
	for i := range v {
		v[i] = float32(k.Normal(uint64(i)))
	}
	return v
}

func dot(a, b []float32) (sum float64) {
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return sum
}

func norm(a []float32) float64 { return math.Sqrt(dot(a, a)) }

// along is p + s·v + t·u.
func along(p []float64, s float64, v []float32, t float64, u []float32) []float64 {
	out := slices.Clone(p)
	for i := range out {
		out[i] += s*float64(v[i]) + t*float64(u[i])
	}
	return out
}

func hvp(m Model, params, v, x []float32, y []int32) []float32 {
	out := make([]float32, len(params))
	m.HVP(params, v, x, y, len(y), out)
	return out
}

// sized is a model and a number of examples for it.
type sized struct {
	spec ModelSpec
	s    Shape
	n    int
}

// small has one of each layer, and layers of each in a row, at odd sizes. One
// is wide enough to have tiles, one has many examples for its chunks.
var small = []sized{
	{ModelSpec{Kind: "softmax"}, Shape{Dim: 7, Classes: 4}, 5},
	{ModelSpec{Kind: "sparse"}, Shape{Dim: 7, Classes: 4}, 5},
	{ModelSpec{Kind: "mlp", Hidden: []int{6}}, Shape{Dim: 5, Classes: 3}, 4},
	{ModelSpec{Kind: "mlp", Hidden: []int{9, 70}}, Shape{Dim: 200, Classes: 3}, 3},
	{ModelSpec{Kind: "mlp", Hidden: []int{4, 3}}, Shape{Dim: 3, Classes: 3}, 130},
	{ModelSpec{Kind: "cnn", Channels: []int{3}}, Shape{Dim: 35, Classes: 3, Height: 5, Width: 7}, 3},
	{ModelSpec{Kind: "cnn", Channels: []int{2, 3}, Hidden: []int{5}}, Shape{Dim: 30, Classes: 4, Height: 5, Width: 6}, 2},
}

// ⟨u, H·v⟩ is the mixed second difference of the twin's loss in float64, for
// each of many coordinates u and a few random ones. Draws with a kink between
// the four points have no second derivative there and are left out.
func TestHVPIsTheSecondDerivative(t *testing.T) {
	for _, c := range small {
		m := newModel(t, c.spec, c.s)
		tw := twin{c.spec, c.s}
		tried, worst := 0, 0.0
		for seed := range uint64(4) {
			params := start(m, seed)
			x, y := noise(c.s, c.n, seed)
			v := direction(len(params), seed)
			p, hv := widen(params), hvp(m, params, v, x, y)
			scale := norm(hv) / math.Sqrt(float64(len(hv)))
			for k := range 60 {
				u := direction(len(params), uint64(100+k))
				if k >= 4 { // a coordinate
					clear(u)
					u[rng.New(seed, "coordinate").IntN(uint64(k), len(u))] = 1
				}
				const h = 3e-5
				var loss [4]float64
				smooth, piece := true, tw.pieces(p, x)
				for j, q := range [][]float64{along(p, h, v, h, u), along(p, h, v, -h, u), along(p, -h, v, h, u), along(p, -h, v, -h, u)} {
					loss[j], _ = tw.loss(q, x, y)
					smooth = smooth && tw.pieces(q, x) == piece
				}
				if !smooth {
					continue
				}
				tried++
				want := (loss[0] - loss[1] - loss[2] + loss[3]) / (4 * h * h)
				off := math.Abs(dot(u, hv)-want) / (math.Abs(want) + scale*norm(u))
				worst = max(worst, off)
			}
		}
		if tried < 100 {
			t.Errorf("%s: only %d draws without a kink", m.Name(), tried)
		}
		if !(worst <= 2e-5) {
			t.Errorf("%s: ⟨u, H·v⟩ is off by %.2g of its size", m.Name(), worst)
		}
		t.Logf("%s: %d second differences, worst %.2g", m.Name(), tried, worst)
	}
}

// H·v is the central difference of the model's own gradient. Float32 leaves
// some 1e-7/h of rounding, so h is large, and its square remains.
func TestHVPIsTheDerivativeOfGrad(t *testing.T) {
	for _, c := range small {
		m := newModel(t, c.spec, c.s)
		tw := twin{c.spec, c.s}
		tried, worst := 0, 0.0
		for seed := range uint64(40) {
			params := start(m, seed)
			x, y := noise(c.s, c.n, seed)
			v := direction(len(params), seed)
			length := norm(v)
			for i := range v {
				v[i] /= float32(length)
			}
			const h = 4e-3
			up, down := slices.Clone(params), slices.Clone(params)
			for i := range v {
				up[i] += h * v[i]
				down[i] -= h * v[i]
			}
			if piece := tw.pieces(widen(params), x); tw.pieces(widen(up), x) != piece || tw.pieces(widen(down), x) != piece {
				continue
			}
			tried++
			a, b := make([]float32, len(params)), make([]float32, len(params))
			m.Grad(up, x, y, c.n, a)
			m.Grad(down, x, y, c.n, b)
			hv := hvp(m, params, v, x, y)
			size := norm(hv)
			for i := range a {
				a[i] = (a[i]-b[i])/(2*h) - hv[i]
			}
			worst = max(worst, norm(a)/size)
		}
		if tried < 10 {
			t.Errorf("%s: only %d draws without a kink", m.Name(), tried)
		}
		if !(worst <= 1e-3) {
			t.Errorf("%s: H·v is off by %.2g of its length", m.Name(), worst)
		}
		t.Logf("%s: %d differences of gradients, worst %.2g", m.Name(), tried, worst)
	}
}

// H is symmetric and linear, at full size too.
func TestHVPIsSymmetricAndLinear(t *testing.T) {
	big := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	cases := append(small[:len(small):len(small)],
		sized{ModelSpec{Kind: "mlp", Hidden: []int{200, 70}}, big, 70},
		sized{ModelSpec{Kind: "cnn", Channels: []int{8, 16}, Hidden: []int{32}}, big, 66})
	for _, c := range cases {
		m := newModel(t, c.spec, c.s)
		params := start(m, 1)
		x, y := noise(c.s, c.n, 2)
		u, v := direction(len(params), 3), direction(len(params), 4)
		hu, hv := hvp(m, params, u, x, y), hvp(m, params, v, x, y)
		if a, b := dot(u, hv), dot(v, hu); !(math.Abs(a-b) <= 1e-5*norm(u)*norm(hv)) {
			t.Errorf("%s: ⟨u, H·v⟩ = %v and ⟨v, H·u⟩ = %v", m.Name(), a, b)
		}
		mix, off := make([]float32, len(u)), make([]float32, len(u))
		for i := range mix {
			mix[i] = 2*u[i] - 0.5*v[i]
		}
		for i, h := range hvp(m, params, mix, x, y) {
			off[i] = h - (2*hu[i] - 0.5*hv[i])
		}
		if !(norm(off) <= 1e-5*(norm(hu)+norm(hv))) {
			t.Errorf("%s: H·(2u − v/2) is off by %v of %v", m.Name(), norm(off), norm(hu))
		}
		clear(mix)
		if got := norm(hvp(m, params, mix, x, y)); got != 0 {
			t.Errorf("%s: H·0 has length %v", m.Name(), got)
		}
	}
}

// The Hessian of softmax regression in closed form: with probabilities p of an
// example (x, 1) it is (diag(p) − p·pᵀ) ⊗ (x, 1)·(x, 1)ᵀ, whatever the label.
func TestHVPOfSoftmax(t *testing.T) {
	s := Shape{Dim: 9, Classes: 5}
	const n = 70
	m := newModel(t, ModelSpec{Kind: "softmax"}, s)
	params := start(m, 1)
	x, y := noise(s, n, 1)
	v := direction(len(params), 1)
	want := make([]float64, len(params))
	for i := range n {
		row := x[i*s.Dim : (i+1)*s.Dim]
		z, rz := twin{ModelSpec{}, s}.scores(widen(params), row), twin{ModelSpec{}, s}.scores(widen(v), row)
		total, mean := 0.0, 0.0
		for j := range z {
			total += math.Exp(z[j])
			mean += math.Exp(z[j]) * rz[j]
		}
		for j := range z {
			r := math.Exp(z[j]) / total * (rz[j] - mean/total) / n
			for k, f := range row {
				want[j*s.Dim+k] += r * float64(f)
			}
			want[s.Classes*s.Dim+j] += r
		}
	}
	for i, h := range hvp(m, params, v, x, y) {
		if !(math.Abs(float64(h)-want[i]) <= 1e-6*(1e-2+math.Abs(want[i]))) {
			t.Errorf("(H·v)[%d] = %v, want %v", i, h, want[i])
		}
	}
}

// As for the gradient: the same bits wherever the arguments lie and whatever
// was computed before, and nothing else is written. A product leaves no trace
// in later gradients.
func TestHVPIsDeterministic(t *testing.T) {
	s := Shape{Dim: 63, Classes: 3, Height: 9, Width: 7}
	for _, spec := range []ModelSpec{
		{Kind: "softmax"},
		{Kind: "sparse"},
		{Kind: "mlp", Hidden: []int{67, 5}},
		{Kind: "cnn", Channels: []int{5, 3}},
	} {
		const n = 70
		m := newModel(t, spec, s)
		params := start(m, 3)
		x, y := noise(s, n, 4)
		v := direction(len(params), 5)
		grad, again := make([]float32, len(params)), make([]float32, len(params))
		m.Grad(params, x, y, n, grad)
		want := hvp(m, params, v, x, y)
		if m.Grad(params, x, y, n, again); !slices.Equal(grad, again) {
			t.Errorf("%s: another gradient after HVP", m.Name())
		}
		for shift := range 4 {
			p, d, xs, guarded := moved(params, shift), moved(v, 3-shift), moved(x, 3-shift), moved(want, shift)
			out := guarded[:len(want):len(want)]
			for i := range out {
				out[i] = float32(math.NaN())
			}
			ys := slices.Clone(y)
			if m.HVP(p, d, xs, ys, n, out); !slices.Equal(out, want) {
				t.Errorf("%s: another product with arguments moved by %d elements", m.Name(), shift)
			}
			if !slices.Equal(p, params) || !slices.Equal(d, v) || !slices.Equal(xs, x) || !slices.Equal(ys, y) {
				t.Errorf("%s: HVP changed its arguments", m.Name())
			}
			if guarded[:len(want)+1][len(want)] != sentinel {
				t.Errorf("%s: HVP wrote past the product", m.Name())
			}
			m = newModel(t, spec, s)
			hvp(m, params, v, x[:s.Dim], y[:1]) // a smaller workspace first
		}
		if m.HVP(params, v, nil, nil, 0, want); norm(want) != 0 {
			t.Errorf("%s: HVP of no examples is %v", m.Name(), want)
		}
	}
}

// In a batch of copies of one example the product is that of the example.
func TestHVPIsOfTheMean(t *testing.T) {
	for _, c := range small {
		m := newModel(t, c.spec, c.s)
		params := start(m, 1)
		x, y := noise(c.s, 1, 1)
		v := direction(len(params), 1)
		one := hvp(m, params, v, x, y)
		off := hvp(m, params, v, slices.Repeat(x, 100), slices.Repeat(y, 100))
		for i := range off {
			off[i] -= one[i]
		}
		if !(norm(off) <= 1e-5*norm(one)) {
			t.Errorf("%s: a hundred copies are off by %v of %v", m.Name(), norm(off), norm(one))
		}
	}
}

func TestHVPDoesNotAllocate(t *testing.T) {
	s := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	for _, spec := range []ModelSpec{{Kind: "softmax"}, {Kind: "sparse"}, {Kind: "mlp", Hidden: []int{256}}, {Kind: "cnn", Channels: []int{2, 2}}} {
		m := newModel(t, spec, s)
		params := start(m, 1)
		x, y := noise(s, 70, 1)
		v, out := direction(len(params), 1), make([]float32, len(params))
		m.HVP(params, v, x, y, 70, out)
		if got := testing.AllocsPerRun(2, func() {
			m.HVP(params, v, x[:8*s.Dim], y[:8], 8, out)
			m.Grad(params, x, y, 70, out)
			m.HVP(params, v, x, y, 70, out)
		}); got != 0 {
			t.Errorf("%s: %v allocations a step", m.Name(), got)
		}
	}
}

func TestHVPPanics(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 2, Classes: 2})
	for _, c := range []struct{ params, v, x, y, out int }{
		{5, 6, 2, 1, 6}, {6, 5, 2, 1, 6}, {6, 6, 3, 1, 6}, {6, 6, 2, 2, 6}, {6, 6, 2, 1, 7},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("HVP with lengths %+v did not panic", c)
				}
			}()
			m.HVP(make([]float32, c.params), make([]float32, c.v), make([]float32, c.x), make([]int32, c.y), 1, make([]float32, c.out))
		}()
	}
}

func BenchmarkHVP(b *testing.B) {
	big := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	for _, spec := range []ModelSpec{{Kind: "softmax"}, {Kind: "mlp", Hidden: []int{128}}, {Kind: "cnn", Channels: []int{8, 16}}} {
		const n = 32
		m := newModel(b, spec, big)
		params := start(m, 1)
		x, y := noise(big, n, 1)
		v, out := direction(len(params), 1), make([]float32, len(params))
		b.Run(m.Name(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.HVP(params, v, x, y, n, out)
			}
		})
	}
}
