package train

import (
	"errors"
	"math"
	"slices"
	"testing"
	"unsafe"

	"pgregory.net/rapid"

	"tributary/internal/rng"
	"tributary/layout"
)

func newModel(t testing.TB, spec ModelSpec, s Shape) Model {
	t.Helper()
	m, err := NewModel(spec, s)
	if err != nil {
		t.Fatalf("NewModel(%+v, %+v): %v", spec, s, err)
	}
	return m
}

// genModel draws a small architecture of each kind.
func genModel(t *rapid.T) (ModelSpec, Shape) {
	width := rapid.IntRange(1, 7)
	spec := ModelSpec{Kind: rapid.SampledFrom([]string{"softmax", "sparse", "mlp", "cnn"}).Draw(t, "kind")}
	s := Shape{Dim: rapid.IntRange(1, 12).Draw(t, "dim"), Classes: rapid.IntRange(2, 5).Draw(t, "classes")}
	switch spec.Kind {
	case "mlp":
		spec.Hidden = rapid.SliceOfN(width, 1, 3).Draw(t, "hidden")
	case "cnn":
		spec.Hidden = rapid.SliceOfN(width, 0, 1).Draw(t, "hidden")
		spec.Channels = rapid.SliceOfN(rapid.IntRange(1, 4), 1, 2).Draw(t, "channels")
		side := rapid.IntRange(1<<len(spec.Channels), 9)
		s.Height, s.Width = side.Draw(t, "height"), side.Draw(t, "width")
		s.Dim = s.Height * s.Width
	}
	return spec, s
}

// The gradient agrees with central differences of the twin's loss, coordinate
// by coordinate. The twin being float64, a step of 1e-6 is far from rounding
// and hardly ever crosses a kink; what remains is the float32 of the model.
func TestGradIsTheDerivative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec, shape := genModel(t)
		m, err := NewModel(spec, shape)
		if err != nil {
			t.Fatal(err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		n := rapid.IntRange(1, 6).Draw(t, "n")
		params := start(m, seed)
		x, y := noise(shape, n, seed)
		grad := make([]float32, len(params))
		loss, correct := m.Grad(params, x, y, n, grad)

		tw, p := twin{spec, shape}, widen(params)
		wantLoss, wantCorrect := tw.loss(p, x, y)
		if math.Abs(loss-wantLoss) > 1e-5 || correct != wantCorrect {
			t.Fatalf("Grad = %v, %d; want %v, %d", loss, correct, wantLoss, wantCorrect)
		}
		if l, c := m.Eval(params, x, y, n); l != loss || c != correct {
			t.Fatalf("Eval = %v, %d and Grad = %v, %d", l, c, loss, correct)
		}
		const h = 1e-6
		for i := range p {
			at := p[i]
			p[i] = at + h
			up, _ := tw.loss(p, x, y)
			p[i] = at - h
			down, _ := tw.loss(p, x, y)
			p[i] = at
			if want := (up - down) / (2 * h); math.Abs(float64(grad[i])-want) > 2e-6+1e-4*math.Abs(want) {
				t.Fatalf("%s: grad[%d] = %v, difference quotient %v", m.Name(), i, grad[i], want)
			}
		}
	})
}

// At full size, where products are cut into tiles and n into chunks, the
// derivative along random directions agrees.
func TestGradAlongDirections(t *testing.T) {
	big := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	for _, c := range []struct {
		spec ModelSpec
		s    Shape
		n    int
	}{
		{ModelSpec{Kind: "softmax"}, big, 130},
		{ModelSpec{Kind: "mlp", Hidden: []int{200, 70}}, big, 70},
		{ModelSpec{Kind: "cnn", Channels: []int{8, 16}, Hidden: []int{32}}, big, 2},
		{ModelSpec{Kind: "cnn", Channels: []int{8, 70}}, Shape{Dim: 64, Classes: 10, Height: 8, Width: 8}, 66},
	} {
		m := newModel(t, c.spec, c.s)
		params := start(m, 1)
		x, y := noise(c.s, c.n, 2)
		grad := make([]float32, len(params))
		loss, _ := m.Grad(params, x, y, c.n, grad)
		tw, p := twin{c.spec, c.s}, widen(params)
		if want, _ := tw.loss(p, x, y); math.Abs(loss-want) > 1e-5 {
			t.Errorf("%s: loss %v, want %v", m.Name(), loss, want)
		}
		for k := range uint64(2) {
			dir := rng.New(k, "direction")
			const h = 1e-6
			var got float64
			up, down := slices.Clone(p), slices.Clone(p)
			for i := range p {
				d := dir.Normal(uint64(i))
				got += d * float64(grad[i])
				up[i] += h * d
				down[i] -= h * d
			}
			a, _ := tw.loss(up, x, y)
			b, _ := tw.loss(down, x, y)
			if want := (a - b) / (2 * h); math.Abs(got-want) > 1e-4*math.Max(1, math.Abs(want)) {
				t.Errorf("%s: slope %v along direction %d, want %v", m.Name(), got, k, want)
			}
		}
	}
}

// The bits do not depend on the address of any argument, on what the model
// computed before, or on whether it is a fresh one. Arguments are unchanged and
// grad is overwritten, no more and no less.
func TestGradIsDeterministic(t *testing.T) {
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
		want := make([]float32, len(params))
		wantLoss, wantCorrect := m.Grad(params, x, y, n, want)
		for shift := range 4 {
			p, xs, guarded := moved(params, shift), moved(x, 3-shift), moved(want, shift)
			grad := guarded[:len(want):len(want)]
			for i := range grad {
				grad[i] = float32(math.NaN())
			}
			ys := slices.Clone(y)
			loss, correct := m.Grad(p, xs, ys, n, grad)
			if loss != wantLoss || correct != wantCorrect || !slices.Equal(grad, want) {
				t.Errorf("%s: another result with arguments moved by %d elements", m.Name(), shift)
			}
			if !slices.Equal(p, params) || !slices.Equal(xs, x) || !slices.Equal(ys, y) {
				t.Errorf("%s: Grad changed its arguments", m.Name())
			}
			if guarded[:len(want)+1][len(want)] != sentinel {
				t.Errorf("%s: Grad wrote past the gradient", m.Name())
			}
			m = newModel(t, spec, s)
			m.Eval(params, x[:s.Dim], y[:1], 1) // a smaller workspace first
		}
	}
}

const sentinel = 12345

// moved copies x to an address that is shift elements behind a 16-byte
// boundary and puts a sentinel behind it.
func moved(x []float32, shift int) []float32 {
	b := workspace(len(x) + 5)
	out := b[shift : shift+len(x) : shift+len(x)+1]
	copy(out, x)
	out[:len(x)+1][len(x)] = sentinel
	return out
}

func TestWorkspaceIsAligned(t *testing.T) {
	var all [][]float32 // alive, so that each has an address of its own
	for n := 1; n < 1<<16; n += 1 + n/7 {
		for range 4 {
			all = append(all, workspace(n))
		}
	}
	for _, b := range all {
		if at := uintptr(unsafe.Pointer(&b[0])); at%16 != 0 {
			t.Fatalf("workspace of %d elements at %#x", len(b), at)
		}
	}
}

func TestGradDoesNotAllocate(t *testing.T) {
	s := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	for _, spec := range []ModelSpec{{Kind: "softmax"}, {Kind: "sparse"}, {Kind: "mlp", Hidden: []int{256}}, {Kind: "cnn", Channels: []int{2, 2}}} {
		m := newModel(t, spec, s)
		params := start(m, 1)
		x, y := noise(s, 70, 1)
		grad := make([]float32, len(params))
		m.Grad(params, x, y, 70, grad)
		if got := testing.AllocsPerRun(2, func() {
			m.Grad(params, x[:8*s.Dim], y[:8], 8, grad)
			m.Eval(params, x, y, 70)
		}); got != 0 {
			t.Errorf("%s: %v allocations a step", m.Name(), got)
		}
	}
}

func TestNothingToLearn(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 2, Classes: 2})
	grad := []float32{1, 2, 3, 4, 5, 6}
	loss, correct := m.Grad(make([]float32, 6), nil, nil, 0, grad)
	if loss != 0 || correct != 0 || slices.Max(grad) != 0 || slices.Min(grad) != 0 {
		t.Errorf("Grad of no examples = %v, %d and %v", loss, correct, grad)
	}
}

// Two classes and one feature by hand: scores (0, ln 3) give probabilities
// (1/4, 3/4).
func TestSoftmaxByHand(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 1, Classes: 2})
	ln3 := float32(math.Log(3))
	grad := make([]float32, 4)
	loss, correct := m.Grad([]float32{0, ln3 / 2, 0, 0}, []float32{2}, []int32{0}, 1, grad)
	if math.Abs(loss-math.Log(4)) > 1e-6 || correct != 0 {
		t.Errorf("loss %v and %d right, want ln 4 and 0", loss, correct)
	}
	for i, want := range []float64{-1.5, 1.5, -0.75, 0.75} {
		if math.Abs(float64(grad[i])-want) > 1e-6 {
			t.Errorf("grad = %v, want -1.5, 1.5, -0.75, 0.75", grad)
			break
		}
	}
}

// A NaN among the biases or the weights of inputs that are not 0 must reach the
// loss, and great scores must not overflow.
func TestLossOfExtremes(t *testing.T) {
	s := Shape{Dim: 16, Classes: 3, Height: 4, Width: 4}
	for _, spec := range []ModelSpec{{Kind: "softmax"}, {Kind: "mlp", Hidden: []int{4}}, {Kind: "cnn", Channels: []int{2}}} {
		m := newModel(t, spec, s)
		x := slices.Repeat([]float32{1}, 16)
		for i, tensor := range m.Tensors() {
			if i > 0 && !tensor.NoDecay {
				continue // weights of hidden units, which may be 0
			}
			for k := range tensor.Len {
				params := start(m, 1)
				params[tensor.Offset+k] = float32(math.NaN())
				if loss, _ := m.Eval(params, x, []int32{0}, 1); !math.IsNaN(loss) {
					t.Errorf("%s: loss %v with NaN as element %d of %s", m.Name(), loss, k, tensor.Name)
				}
			}
		}
	}
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 1, Classes: 2})
	if loss, _ := m.Eval([]float32{0, 1e30, 0, 0}, []float32{1}, []int32{1}, 1); loss != 0 {
		t.Errorf("loss %v for a certain and right answer, want 0", loss)
	}
}

// Of equal scores the first counts as the answer.
func TestTies(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 1, Classes: 3})
	if _, correct := m.Eval(make([]float32, 6), make([]float32, 3), []int32{0, 1, 2}, 3); correct != 1 {
		t.Errorf("%d of classes 0, 1, 2 right with equal scores, want 1", correct)
	}
	if _, correct := m.Eval(make([]float32, 6), []float32{0}, []int32{0}, 1); correct != 1 {
		t.Error("class 0 wrong with equal scores")
	}
}

// unfold puts each pixel where its definition says, whatever was there before,
// and fold is its adjoint: ⟨unfold(a), b⟩ = ⟨a, fold(b)⟩.
func TestUnfoldAndFold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 5)
		c, h, w := size.Draw(t, "c"), size.Draw(t, "h"), size.Draw(t, "w")
		number := rapid.Map(rapid.IntRange(-9, 9), func(i int) float32 { return float32(i) }) // sums are exact
		a := rapid.SliceOfN(number, c*h*w, c*h*w).Draw(t, "a")
		b := rapid.SliceOfN(number, 9*c*h*w, 9*c*h*w).Draw(t, "b")
		cols, img := slices.Repeat([]float32{99}, len(b)), make([]float32, len(a))
		unfold(cols, a, c, h, w)
		fold(img, b, c, h, w)
		var left, right float32
		for i, v := range cols {
			ch, ky, kx, y, x := i/(9*h*w), i/(3*h*w)%3, i/(h*w)%3, i/w%h, i%w
			want := float32(0)
			if y, x = y+ky-1, x+kx-1; y >= 0 && y < h && x >= 0 && x < w {
				want = a[(ch*h+y)*w+x]
			}
			if v != want {
				t.Fatalf("cols[%d] = %v, want %v", i, v, want)
			}
			left += v * b[i]
		}
		for i, v := range img {
			right += v * a[i]
		}
		if left != right {
			t.Fatalf("products %v and %v", left, right)
		}
	})
}

func TestPoolKeepsNaN(t *testing.T) {
	p := &pool{c: 1, h: 2, w: 2}
	p.reserve(1)
	for i := range 4 {
		x, y := []float32{1, 2, 3, 4}, []float32{0}
		x[i] = float32(math.NaN())
		if p.forward(dual{}, dual{v: x}, dual{v: y}, 1); y[0] == y[0] {
			t.Errorf("maximum of %v is %v, want NaN", x, y[0])
		}
	}
}

func TestTensors(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "cnn", Channels: []int{4, 8}, Hidden: []int{32}},
		Shape{Dim: 784, Classes: 10, Height: 28, Width: 28})
	if got, want := m.Name(), "cnn 784-4c-8c-32-10"; got != want {
		t.Errorf("Name() = %q, want %q", got, want)
	}
	want := []struct {
		name  string
		shape []int
		fanIn float64
	}{
		{"conv1.weight", []int{4, 1, 3, 3}, 9}, {"conv1.bias", []int{4}, 9},
		{"conv2.weight", []int{8, 4, 3, 3}, 36}, {"conv2.bias", []int{8}, 36},
		{"fc1.weight", []int{32, 8 * 7 * 7}, 392}, {"fc1.bias", []int{32}, 392},
		{"fc2.weight", []int{10, 32}, 32}, {"fc2.bias", []int{10}, 32},
	}
	l, err := layout.New(m.Tensors(), 0)
	if err != nil || len(l.Tensors) != len(want) {
		t.Fatalf("layout.New: %d tensors, %v", len(l.Tensors), err)
	}
	for i, w := range want {
		got := m.Tensors()[i]
		if got.Name != w.name || !slices.Equal(got.Shape, w.shape) || got.NoDecay != (len(w.shape) == 1) ||
			got.Init.Kind != layout.Uniform || math.Abs(got.Init.Scale-1/math.Sqrt(w.fanIn)) > 1e-15 {
			t.Errorf("tensor %d: %+v, want %+v", i, got, w)
		}
		if lt := l.Tensors[i]; got.Offset != lt.Offset || got.Len != lt.Len {
			t.Errorf("%s at %d+%d, layout says %d+%d", got.Name, got.Offset, got.Len, lt.Offset, lt.Len)
		}
	}
}

func TestNewModelErrors(t *testing.T) {
	flat := Shape{Dim: 64, Classes: 10}
	image := Shape{Dim: 64, Classes: 10, Height: 8, Width: 8}
	for _, c := range []struct {
		spec ModelSpec
		s    Shape
		want string
	}{
		{ModelSpec{Kind: "gpt"}, flat, `bad model: kind "gpt": want softmax, sparse, mlp or cnn`},
		{ModelSpec{Kind: "softmax", Hidden: []int{1}}, flat, "bad model: softmax has neither hidden layers nor channels"},
		{ModelSpec{Kind: "sparse", Channels: []int{1}}, flat, "bad model: sparse has neither hidden layers nor channels"},
		{ModelSpec{Kind: "sparse"}, Shape{Dim: 1 << 20, Classes: 1 << 12}, "bad model: table: more than 268435456 parameters"},
		{ModelSpec{Kind: "mlp"}, flat, "bad model: mlp wants hidden layers and no channels"},
		{ModelSpec{Kind: "cnn"}, image, "bad model: cnn wants channels"},
		{ModelSpec{Kind: "cnn", Channels: []int{4}}, flat, "bad model: cnn wants images, and these data are not"},
		{ModelSpec{Kind: "cnn", Channels: []int{2, 2, 2, 2}}, image, "bad model: convolution 4: an image of 1×1 cannot be halved"},
		{ModelSpec{Kind: "mlp", Hidden: []int{0}}, flat, "bad model: layer of width 0: want 1 to 1048576"},
		{ModelSpec{Kind: "mlp", Hidden: []int{1 << 20, 1 << 20}}, flat, "bad model: fc2: more than 268435456 parameters"},
		{ModelSpec{Kind: "softmax"}, Shape{Dim: 3, Classes: 1}, "bad model: data with 3 features and 1 classes: want at least 1 and 2"},
	} {
		if _, err := NewModel(c.spec, c.s); err == nil || err.Error() != c.want || !errors.Is(err, ErrModel) {
			t.Errorf("NewModel(%+v, %+v): %v\nwant %s", c.spec, c.s, err, c.want)
		}
	}
}

// Shapes that do not fit are a programmer's mistake.
func TestGradPanics(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 2, Classes: 2})
	for _, c := range []struct{ params, x, y, n, grad int }{
		{5, 2, 1, 1, 6}, {6, 3, 1, 1, 6}, {6, 2, 2, 1, 6}, {6, 2, 1, 1, 7}, {6, 2, 1, 2, 6},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Grad with lengths %+v did not panic", c)
				}
			}()
			m.Grad(make([]float32, c.params), make([]float32, c.x), make([]int32, c.y), c.n, make([]float32, c.grad))
		}()
	}
}

func BenchmarkGrad(b *testing.B) {
	small := Shape{Dim: 64, Classes: 10, Height: 8, Width: 8}
	big := Shape{Dim: 784, Classes: 10, Height: 28, Width: 28}
	for _, c := range []struct {
		spec ModelSpec
		s    Shape
	}{
		{ModelSpec{Kind: "softmax"}, small},
		{ModelSpec{Kind: "mlp", Hidden: []int{128}}, small},
		{ModelSpec{Kind: "cnn", Channels: []int{8, 16}}, small},
		{ModelSpec{Kind: "softmax"}, big},
		{ModelSpec{Kind: "mlp", Hidden: []int{128}}, big},
		{ModelSpec{Kind: "cnn", Channels: []int{8, 16}}, big},
	} {
		const n = 32
		m := newModel(b, c.spec, c.s)
		params := start(m, 1)
		x, y := noise(c.s, n, 1)
		grad := make([]float32, len(params))
		b.Run(m.Name(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m.Grad(params, x, y, n, grad)
			}
		})
	}
}
