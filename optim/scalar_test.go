package optim

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

func TestPowInt(t *testing.T) {
	for _, b := range []float64{0, 0.5, 0.8, 0.9, 0.99, 0.999, 0.9999, 1} {
		for _, n := range []uint64{0, 1, 2, 3, 7, 10, 100, 1000, 12345, 1e6, 1 << 40} {
			got, want := powInt(b, n), math.Pow(b, float64(n))
			// Squaring doubles the relative error, so it grows like n; below
			// 1e-12 on a correction 1 − bᵗ nothing of it is seen.
			if math.Abs(got-want) > 1e-13*math.Max(1, want) {
				t.Errorf("powInt(%v, %d) = %v, want %v", b, n, got, want)
			}
		}
	}
	// Against exact arithmetic.
	exact, _ := new(big.Float).SetPrec(2000).SetInt64(1), 0
	b := 0.999
	for n := uint64(1); n <= 200; n++ {
		exact.Mul(exact, big.NewFloat(b))
		want, _ := exact.Float64()
		if got := powInt(b, n); math.Abs(got-want) > 1e-15*want*float64(n) {
			t.Errorf("powInt(%v, %d) = %v, want %v", b, n, got, want)
		}
	}
}

// Against powers in 200 bits: math.Pow itself loses digits of large exponents.
func TestPowReal(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range [][3]float64{
		{0, 0, 1}, {0, 0.3, 0}, {0, -0.3, inf}, {inf, 0.3, inf}, {inf, -1, 0}, {inf, 0, 1}, {nan, 0, 1}, {1, nan, 1}, {1, 1e300, 1},
		{2, 10, 1024}, {2, -1074, 0x1p-1074}, {0x1p-1074, -0.5, 0x1p537}, {2, 1e300, inf}, {2, -1e300, 0}, {0.5, 1e300, 0}, {4, 0.5, 2},
	} {
		if got := powReal(c[0], c[1]); got != c[2] {
			t.Errorf("powReal(%v, %v) = %v, want %v", c[0], c[1], got, c[2])
		}
	}
	for _, c := range [][2]float64{{-1, 2}, {nan, 1}, {2, nan}} {
		if got := powReal(c[0], c[1]); got == got {
			t.Errorf("powReal(%v, %v) = %v, want NaN", c[0], c[1], got)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		x := math.Exp(r.NormFloat64() * 40)
		y := math.Ldexp(float64(r.IntN(1<<24)), r.IntN(7)-24) // up to 64
		want := exactPow(x, y)
		if want > 0x1p1000 || want < 0x1p-1000 {
			continue
		}
		for _, c := range [][2]float64{{y, want}, {-y, 1 / want}} {
			if got := powReal(x, c[0]); math.Abs(got-c[1]) > (2+y)*0x1p-52*c[1] {
				t.Fatalf("powReal(%v, %v) = %v, want %v", x, c[0], got, c[1])
			}
		}
	}
}

// exactPow is x to the power y, of which at most 24 bits are set, from roots of
// roots in 200 bits.
func exactPow(x, y float64) float64 {
	whole, part := math.Modf(y)
	p := new(big.Float).SetPrec(200).SetInt64(1)
	base := new(big.Float).SetPrec(200).SetFloat64(x)
	for range int(whole) {
		p.Mul(p, base)
	}
	for ; part > 0; part = part - math.Floor(part) {
		base.Sqrt(base)
		if part *= 2; part >= 1 {
			p.Mul(p, base)
		}
	}
	want, _ := p.Float64()
	return want
}

func TestCosPi(t *testing.T) {
	for x, want := range map[float64]float64{0: 1, 1: -1, 0.5: 0} {
		if got := cosPi(x); got != want {
			t.Errorf("cosPi(%v) = %v, want %v exactly", x, got, want)
		}
	}
	prev := 2.0
	for i := range 100001 {
		x := float64(i) / 100000
		got := cosPi(x)
		if want := math.Cos(math.Pi * x); math.Abs(got-want) > 5e-16 {
			t.Fatalf("cosPi(%v) = %v, want %v", x, got, want)
		}
		if got > prev {
			t.Fatalf("cosPi rises before %v", x)
		}
		prev = got
	}
}
