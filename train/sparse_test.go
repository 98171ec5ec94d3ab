package train

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary/layout"
)

// The sparse model is the softmax model with its weight transposed, bit for
// bit, in all it computes.
func TestSparseIsSoftmaxTransposed(t *testing.T) {
	s := Shape{Dim: 201, Classes: 7}
	const n = 70
	table, plain := newModel(t, ModelSpec{Kind: "sparse"}, s), newModel(t, ModelSpec{Kind: "softmax"}, s)
	flip := func(p []float32) []float32 { // from the table's order to softmax's
		weights := s.Dim * s.Classes
		return append(transposed(p[:weights], s.Dim, s.Classes), p[weights:]...)
	}
	params := start(table, 1)
	x, y := noise(s, n, 1)
	v, teacher := direction(len(params), 1), direction(n*s.Classes, 2)
	got, want := make([]float32, len(params)), make([]float32, len(params))
	check := func(what string, same bool) {
		if got := flip(got); !same || !slices.Equal(got, want) {
			t.Errorf("%s of sparse is not that of softmax", what)
		}
	}
	loss, correct := table.Grad(params, x, y, n, got)
	wantLoss, wantCorrect := plain.Grad(flip(params), x, y, n, want)
	check("Grad", loss == wantLoss && correct == wantCorrect)
	table.HVP(params, v, x, y, n, got)
	plain.HVP(flip(params), flip(v), x, y, n, want)
	check("HVP", true)
	check("GradSoft", table.GradSoft(params, x, teacher, 2, n, got) == plain.GradSoft(flip(params), x, teacher, 2, n, want))
}

func TestSparseTensors(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "sparse"}, Shape{Dim: 9, Classes: 4})
	l, err := layout.New(m.Tensors(), 0)
	if err != nil || len(l.Tensors) != 2 || m.Name() != "sparse 9-4" {
		t.Fatalf("%s: %+v, %v", m.Name(), l, err)
	}
	w, b := m.Tensors()[0], m.Tensors()[1]
	if w.Name != "table.weight" || !slices.Equal(w.Shape, []int{9, 4}) || w.NoDecay || w.RowLen() != 4 || w.Init.Scale != 1./3 || w.Len != 36 {
		t.Errorf("weight %+v", w)
	}
	if b.Name != "table.bias" || !slices.Equal(b.Shape, []int{4}) || !b.NoDecay || b.Offset != 36 || b.Len != 4 {
		t.Errorf("bias %+v", b)
	}
}

func TestTouched(t *testing.T) {
	m := newModel(t, ModelSpec{Kind: "sparse"}, Shape{Dim: 6, Classes: 3}).(RowSparse)
	nan := float32(math.NaN())
	for _, c := range []struct {
		x    []float32
		want []layout.Range
	}{
		{nil, nil},
		{[]float32{0, 0, 0, 0, 0, 0}, []layout.Range{{Lo: 18, Hi: 21}}},
		{[]float32{1, 0, 0, -2, nan, 0}, []layout.Range{{Lo: 0, Hi: 3}, {Lo: 9, Hi: 15}, {Lo: 18, Hi: 21}}},
		{[]float32{0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 0, 0}, []layout.Range{{Lo: 3, Hi: 9}, {Lo: 18, Hi: 21}}},
		{[]float32{0, 0, 0, 0, 0, 7}, []layout.Range{{Lo: 15, Hi: 21}}},
		{[]float32{1, 1, 1, 1, 1, 1}, []layout.Range{{Lo: 0, Hi: 21}}},
	} {
		if got := m.Touched(c.x, len(c.x)/6, nil); !slices.Equal(got, c.want) {
			t.Errorf("Touched(%v) = %v, want %v", c.x, got, c.want)
		}
	}
	// What is there already stays apart.
	dst := []layout.Range{{Lo: 0, Hi: 15}}
	if got := m.Touched([]float32{0, 0, 0, 0, 0, 7}, 1, dst); !slices.Equal(got, []layout.Range{{Lo: 0, Hi: 15}, {Lo: 15, Hi: 21}}) {
		t.Errorf("Touched after a run = %v", got)
	}
	if _, ok := newModel(t, ModelSpec{Kind: "softmax"}, Shape{Dim: 6, Classes: 3}).(RowSparse); ok {
		t.Error("softmax is row-sparse")
	}
}

// Gradients and products are 0 outside of the runs and, of data at random,
// nowhere 0 inside. Parameters outside have no say.
func TestTouchedHoldsTheGradient(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Shape{Dim: rapid.IntRange(1, 60).Draw(t, "dim"), Classes: rapid.IntRange(2, 5).Draw(t, "classes")}
		m, err := NewModel(ModelSpec{Kind: "sparse"}, s)
		if err != nil {
			t.Fatal(err)
		}
		n := rapid.IntRange(1, 5).Draw(t, "n")
		params, x := start(m, 1), direction(n*s.Dim, 1)
		_, y := noise(s, n, 1)
		off := rapid.SliceOfN(rapid.IntRange(0, 9), len(x), len(x)).Draw(t, "off")
		for i := range x {
			if off[i] > 0 {
				x[i] = 0
			}
		}
		runs := m.(RowSparse).Touched(x, n, nil)
		inside, end := make([]bool, len(params)), -1
		for _, r := range runs {
			if r.Lo <= end || r.Hi <= r.Lo || r.Hi > len(params) {
				t.Fatalf("runs %v", runs)
			}
			end = r.Hi
			for i := r.Lo; i < r.Hi; i++ {
				inside[i] = true
			}
		}
		grad, hv, again := make([]float32, len(params)), make([]float32, len(params)), make([]float32, len(params))
		loss, _ := m.Grad(params, x, y, n, grad)
		m.HVP(params, direction(len(params), 2), x, y, n, hv)
		for i := range grad {
			if (grad[i] != 0) != inside[i] || hv[i] != 0 && !inside[i] {
				t.Fatalf("element %d: gradient %v, product %v, runs %v", i, grad[i], hv[i], runs)
			}
			if !inside[i] {
				params[i] = 1e9
			}
		}
		if l, _ := m.Grad(params, x, y, n, again); l != loss || !slices.Equal(again, grad) {
			t.Fatal("a parameter outside of the runs changes the gradient")
		}
	})
}

func TestTouchedDoesNotAllocate(t *testing.T) {
	s := Shape{Dim: 500, Classes: 3}
	m := newModel(t, ModelSpec{Kind: "sparse"}, s).(RowSparse)
	x, _ := noise(s, 1, 1)
	dst := make([]layout.Range, 0, s.Dim+1)
	if got := testing.AllocsPerRun(5, func() { m.Touched(x, 1, dst) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// Each layer's product is bilinear with the two adjoints it says, and all
// three add: ⟨dy, W∘x⟩ = ⟨byWeight(x, dy), W⟩ = ⟨byInput(W, dy), x⟩. Small
// whole numbers make the sums exact.
func TestAdjoints(t *testing.T) {
	for name, c := range map[string]struct {
		bilinear
		weight, in, out int
	}{
		"dense": {&dense{in: 7, out: 3}, 21, 7, 3},
		"table": {&table{in: 7, out: 3}, 21, 7, 3},
		"conv":  {&conv{cin: 2, cout: 3, h: 4, w: 5}, 54, 40, 60},
	} {
		const n = 3
		numbers := func(length int, seed uint64) []float32 {
			x := direction(length, seed)
			for i, v := range x {
				x[i] = float32(math.Round(3 * float64(v)))
			}
			return x
		}
		w, x, dy := numbers(c.weight, 1), numbers(n*c.in, 2), numbers(n*c.out, 3)
		y, dw, dx := numbers(n*c.out, 4), numbers(c.weight, 5), numbers(n*c.in, 6)
		before := [3]float64{dot(dy, y), dot(w, dw), dot(x, dx)}
		c.reserve()
		c.product(w, x, y, n)
		c.byWeight(dw, x, dy, n)
		c.byInput(w, dy, dx, n)
		a, b, d := dot(dy, y)-before[0], dot(w, dw)-before[1], dot(x, dx)-before[2]
		if a != b || a != d || a == 0 {
			t.Errorf("%s: products %v, %v and %v", name, a, b, d)
		}
	}
}
