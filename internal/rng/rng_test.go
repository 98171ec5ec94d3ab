package rng

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Frozen: every logged run, checkpoint and split follows from these bits.
func TestGolden(t *testing.T) {
	k := New(1, "init").WithString("fc1.weight")
	if got, want := []uint64{k.Uint64(0), k.Uint64(1), New(0, "").With(0).Uint64(1 << 40)}, []uint64{0x9ba269c6ffbcd916, 0x38d6b3131b48a551, 0x0ab90590e54353ed}; !slices.Equal(got, want) {
		t.Errorf("draws %#x, want %#x", got, want)
	}
	p := make([]int, 8)
	if New(7, "batch").With(3).Perm(p); !slices.Equal(p, []int{5, 0, 6, 3, 7, 4, 1, 2}) {
		t.Errorf("Perm = %v", p)
	}
}

// SplitMix64 seeded with 0 begins with these three numbers (the reference
// implementation of S. Vigna, https://prng.di.unimi.it/splitmix64.c).
func TestSplitMix64(t *testing.T) {
	for i, want := range []uint64{0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f} {
		if got := Key(0).Uint64(uint64(i)); got != want {
			t.Errorf("Key(0).Uint64(%d) = %#x, want %#x", i, got, want)
		}
	}
}

func TestStreamsDiffer(t *testing.T) {
	seen := make(map[uint64]string)
	add := func(name string, k Key) {
		x := k.Uint64(0)
		if other, ok := seen[x]; ok {
			t.Errorf("%s and %s begin alike", name, other)
		}
		seen[x] = name
	}
	for seed := range uint64(50) {
		for _, purpose := range []string{"", "init", "batch", "split"} {
			k := New(seed, purpose)
			add(purpose, k)
			for n := range uint64(20) {
				add(purpose+" with number", k.With(n))
			}
			add(purpose+" with string", k.WithString("a"))
			add(purpose+" with string", k.WithString("b"))
		}
	}
}

func TestPermIsAPermutation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := Key(rapid.Uint64().Draw(t, "key"))
		p := slices.Repeat([]int{-1}, rapid.IntRange(0, 50).Draw(t, "n"))
		k.Perm(p)
		slices.Sort(p)
		for i, v := range p {
			if i != v {
				t.Fatalf("sorted: %v", p)
			}
		}
	})
}

// Each of the 24 orders of 4 comes up equally often: 24,000 keys, so 1,000
// each, with a deviation of 31.
func TestPermIsFair(t *testing.T) {
	count := make(map[[4]int]int)
	for i := range uint64(24000) {
		var p [4]int
		New(i, "fair").Perm(p[:])
		count[p]++
	}
	if len(count) != 24 {
		t.Fatalf("%d orders, want 24", len(count))
	}
	for p, n := range count {
		if n < 850 || n > 1150 {
			t.Errorf("%v came %d times, want about 1000", p, n)
		}
	}
}

func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k, i := Key(rapid.Uint64().Draw(t, "key")), rapid.Uint64().Draw(t, "i")
		n := rapid.IntRange(1, math.MaxInt).Draw(t, "n")
		if x := k.IntN(i, n); x < 0 || x >= n {
			t.Fatalf("IntN(%d) = %d", n, x)
		}
		if x := k.Float64(i); x < 0 || x >= 1 {
			t.Fatalf("Float64 = %v", x)
		}
		if x := k.Normal(i); x < -6 || x > 6 {
			t.Fatalf("Normal = %v", x)
		}
	})
}

// Mean, variance and kurtosis over 100,000 draws. For twelve uniforms the
// variance is 1 and the excess kurtosis -6/5/12 = -0.1. The bounds are about
// five standard errors.
func TestMoments(t *testing.T) {
	const n = 100000
	moments := func(draw func(uint64) float64) (mean, m2, m4 float64) {
		for i := range uint64(n) {
			x := draw(i)
			mean += x / n
			m2 += x * x / n
			m4 += x * x * x * x / n
		}
		return mean, m2, m4
	}
	k := New(3, "moments")
	if mean, m2, m4 := moments(k.Normal); math.Abs(mean) > 0.016 || math.Abs(m2-1) > 0.022 || math.Abs(m4-2.9) > 0.15 {
		t.Errorf("Normal: moments %v, %v, %v; want 0, 1, 2.9", mean, m2, m4)
	}
	u := func(i uint64) float64 { return k.Float64(i) - 0.5 }
	if mean, m2, _ := moments(u); math.Abs(mean) > 0.0046 || math.Abs(m2-1./12) > 0.0012 {
		t.Errorf("Float64: mean %v and variance %v around 1/2; want 0 and 1/12", mean, m2)
	}
	// Neighbours in the stream are not correlated.
	if r, _, _ := moments(func(i uint64) float64 { return u(i) * u(i+1) * 12 }); math.Abs(r) > 0.016 {
		t.Errorf("correlation %v of neighbours, want 0", r)
	}
}
