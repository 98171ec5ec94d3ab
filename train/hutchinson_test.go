package train

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary/layout"
)

// A part of the vector is that part of the whole one.
func TestRademacherIsKeyedByElement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed, step := rapid.Uint64().Draw(t, "seed"), rapid.Uint64().Draw(t, "step")
		n := rapid.IntRange(1, 400).Draw(t, "n")
		whole := make([]float32, n)
		Rademacher(seed, step, 0, whole)
		lo := rapid.IntRange(0, n-1).Draw(t, "lo")
		part := make([]float32, rapid.IntRange(0, n-lo).Draw(t, "length"))
		if Rademacher(seed, step, lo, part); !slices.Equal(part, whole[lo:lo+len(part)]) {
			t.Fatalf("elements from %d: %v, want %v", lo, part, whole[lo:lo+len(part)])
		}
		for i, v := range whole {
			if v != 1 && v != -1 {
				t.Fatalf("element %d is %v", i, v)
			}
		}
	})
}

// The signs are even and those of different elements, steps and seeds have
// nothing to do with each other. Sums of 2^16 signs deviate by 256.
func TestRademacherIsRandom(t *testing.T) {
	const n = 1 << 16
	draw := func(seed, step uint64) []float32 {
		z := make([]float32, n)
		Rademacher(seed, step, 0, z)
		return z
	}
	a := draw(1, 1)
	check := func(what string, x, y []float32) {
		if s := dot(x, y); math.Abs(s) > 4*256 {
			t.Errorf("%s: product %v", what, s)
		}
	}
	check("mean", a, slices.Repeat([]float32{1}, n))
	check("next step", a, draw(1, 2))
	check("next seed", a, draw(2, 1))
	for _, lag := range []int{1, 2, 32, 63, 64, 65, 128} {
		check("lag", a[:n-lag], a[lag:])
	}
	for bit := range 64 {
		s := 0.0
		for i := bit; i < n; i += 64 {
			s += float64(a[i])
		}
		if math.Abs(s) > 4.5*32 {
			t.Errorf("bit %d: sum %v of 1024 signs", bit, s)
		}
	}
}

// Frozen: other signs would silently change every logged run.
func TestRademacherGolden(t *testing.T) {
	got := make([]float32, 12)
	Rademacher(1, 2, 58, got)
	if want := []float32{1, 1, 1, -1, -1, 1, 1, -1, 1, -1, 1, -1}; !slices.Equal(got, want) {
		t.Errorf("Rademacher = %v, want %v", got, want)
	}
}

// The mean of z ∘ (H·z) is the diagonal of H.
func TestHutchinsonEstimatesTheDiagonal(t *testing.T) {
	s := Shape{Dim: 16, Classes: 3, Height: 4, Width: 4}
	const n, draws = 5, 20000
	m := newModel(t, ModelSpec{Kind: "cnn", Channels: []int{2}}, s)
	params := start(m, 1)
	x, y := noise(s, n, 1)
	z, hz, mean := make([]float32, len(params)), make([]float32, len(params)), make([]float64, len(params))
	for step := range uint64(draws) {
		Rademacher(1, step, 0, z)
		m.HVP(params, z, x, y, n, hz)
		for i := range z {
			mean[i] += float64(z[i]) * float64(hz[i]) / draws
		}
	}
	for i := range z {
		clear(z)
		z[i] = 1
		m.HVP(params, z, x, y, n, hz)
		off := math.Sqrt((dot(hz, hz) - float64(hz[i])*float64(hz[i])) / draws) // the deviation of the mean
		if !(math.Abs(mean[i]-float64(hz[i])) <= 4.5*off+1e-6) {
			t.Errorf("mean of element %d is %v, the diagonal %v, the deviation %v", i, mean[i], hz[i], off)
		}
	}
}

func TestAbsHessian(t *testing.T) {
	l, err := layout.New([]layout.Tensor{
		{Name: "w", Shape: []int{2, 2}}, {Name: "k", Shape: []int{2, 1, 1, 3}}, {Name: "v", Shape: []int{1, 1, 2}}, {Name: "s"},
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	hz := []float32{-1, 2, 0, -3, -1, 4, -4, 0, 6, -3, -7, 8, -9}
	want := []float32{1, 2, 0, 3, 3, 3, 3, 3, 3, 3, 7, 8, 9}
	got, in := make([]float32, len(hz)), slices.Clone(hz)
	if AbsHessian(l.Tensors, hz, got); !slices.Equal(got, want) || !slices.Equal(hz, in) {
		t.Errorf("AbsHessian(%v) = %v, want %v; the argument is now %v", in, got, want, hz)
	}
	if AbsHessian(l.Tensors, hz, hz); !slices.Equal(hz, want) {
		t.Errorf("AbsHessian in place = %v, want %v", hz, want)
	}
	if got := testing.AllocsPerRun(5, func() { AbsHessian(l.Tensors, hz, hz); Rademacher(1, 1, 0, hz) }); got != 0 {
		t.Errorf("%v allocations", got)
	}
}
