package optim

import (
	"errors"
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

func TestSchedules(t *testing.T) {
	near := func(name string, s Schedule, t_ uint64, want float64) {
		t.Helper()
		if got := s(t_); math.Abs(got-want) > 1e-15 {
			t.Errorf("%s: rate of update %d = %v, want %v", name, t_, got, want)
		}
	}
	near("constant", Constant(0.1), 1, 0.1)
	c := Cosine(0.5, 4, 0.1) // cos(π·k/4) for k = 0…4
	for i, want := range []float64{0.5, 0.1 + 0.2*(1+math.Sqrt2/2), 0.3, 0.1 + 0.2*(1-math.Sqrt2/2), 0.1, 0.1} {
		near("cosine", c, uint64(i+1), want)
	}
	w := WarmupCosine(0.4, 4, 6, 0)
	for i, want := range []float64{0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0, 0} {
		near("warmup, cosine", w, uint64(i+1), want)
	}
	k := WarmupConstant(0.4, 2)
	for i, want := range []float64{0.2, 0.4, 0.4} {
		near("warmup, constant", k, uint64(i+1), want)
	}
	// A warm-up as long as the job leaves nothing for the cosine.
	near("all warm-up", WarmupCosine(1, 3, 3, 0.5), 3, 1)
	near("all warm-up", WarmupCosine(1, 3, 3, 0.5), 4, 0.5)
}

func TestScheduleSpec(t *testing.T) {
	s, err := ScheduleSpec{Kind: "cosine", Warmup: 2, Min: 0.1}.New(1, 10)
	if err != nil || s(1) != 0.5 || s(11) != 0.1 {
		t.Errorf("cosine: %v", err)
	}
	if s, err := (ScheduleSpec{}).New(0.3, 10); err != nil || s(7) != 0.3 {
		t.Errorf("zero spec: %v", err)
	}
	for _, c := range []struct {
		s  ScheduleSpec
		lr float64
	}{
		{ScheduleSpec{Kind: "cosin"}, 1}, {ScheduleSpec{Warmup: 11}, 1}, {ScheduleSpec{Min: 0.1}, 1},
		{ScheduleSpec{Kind: "cosine", Min: 2}, 1}, {ScheduleSpec{Kind: "cosine", Min: -1}, 1},
		{ScheduleSpec{Kind: "cosine", Min: math.NaN()}, 1}, {ScheduleSpec{}, math.NaN()}, {ScheduleSpec{}, -1},
	} {
		if _, err := c.s.New(c.lr, 10); !errors.Is(err, ErrSchedule) {
			t.Errorf("%+v.New(%v): %v, want ErrSchedule", c.s, c.lr, err)
		}
	}
}
