package optim

import (
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// The wanted numbers were computed away from this code, from PyTorch's own
// recursions where it has them and else from its closed forms, in double
// precision. e counts epochs from 0: the first number is the rate of update 1.
func TestSchedules(t *testing.T) {
	scaled := func(lr float64, shares ...float64) []float64 {
		for i := range shares {
			shares[i] *= lr
		}
		return shares
	}
	for _, c := range []struct {
		name  string
		s     ScheduleSpec
		lr    float64
		total uint64
		want  []float64
	}{
		{"no schedule", ScheduleSpec{}, 0.1, 3, []float64{0.1, 0.1, 0.1, 0.1}},
		// lr·t/4 up to update 4
		{"warm-up", ScheduleSpec{Warmup: 4}, 0.4, 5, []float64{0.1, 0.2, 0.3, 0.4, 0.4, 0.4}},
		// lr·(1/4 + 3/4·t/4)
		{"warm-up from a share", ScheduleSpec{Warmup: 4, WarmupFrom: 0.25}, 0.1, 5, []float64{0.04375, 0.0625, 0.08125, 0.1, 0.1}},
		// ConstantLR(factor=0.5, total_iters=4)
		{"constant", ScheduleSpec{Kind: "constant", Factor: 0.5, Over: 4}, 0.05, 6, []float64{0.025, 0.025, 0.025, 0.025, 0.05, 0.05}},
		// StepLR(step_size=3, gamma=0.1): η ← 0.1·η where e mod 3 = 0
		{"step", ScheduleSpec{Kind: "step", Every: 3}, 0.05, 8, []float64{0.05, 0.05, 0.05, 0.005, 0.005, 0.005, 0.0005, 0.0005}},
		{"step with a floor", ScheduleSpec{Kind: "step", Every: 3, Min: 0.001}, 0.05, 8, []float64{0.05, 0.05, 0.05, 0.005, 0.005, 0.005, 0.001, 0.001}},
		// MultiStepLR(milestones=[2, 5], gamma=0.5)
		{"milestones", ScheduleSpec{Kind: "step", Milestones: []uint64{2, 5}, Factor: 0.5}, 0.05, 7, []float64{0.05, 0.05, 0.025, 0.025, 0.025, 0.0125, 0.0125, 0.0125}},
		// ExponentialLR(gamma=0.9): η ← 0.9·η
		{"exponential", ScheduleSpec{Kind: "exponential", Factor: 0.9}, 0.1, 8, []float64{0.1, 0.09, 0.081, 0.0729, 0.06561, 0.059049, 0.0531441, 0.04782969, 0.04782969}},
		// lr·0.5^(e/4)
		{"exponential every 4", ScheduleSpec{Kind: "exponential", Factor: 0.5, Every: 4}, 0.1, 9, []float64{0.1, 0.084089641525371461, 0.070710678118654766, 0.059460355750136057, 0.05,
			0.042044820762685731, 0.035355339059327383, 0.029730177875068028, 0.025, 0.025}},
		// CosineAnnealingLR(T_max=8, eta_min=0.001): 0.001 + 0.099·(1+cos(πe/8))/2
		{"cosine", ScheduleSpec{Kind: "cosine", Min: 0.001}, 0.1, 8, []float64{0.1, 0.096232036859308701, 0.085501785668734107, 0.069442829902071956, 0.0505,
			0.031557170097928057, 0.0154982143312659, 0.0047679631406913068, 0.001, 0.001}},
		{"cosine over 8 of 20", ScheduleSpec{Kind: "cosine", Over: 8, Min: 0.001}, 0.1, 20, []float64{0.1, 0.096232036859308701, 0.085501785668734107, 0.069442829902071956, 0.0505,
			0.031557170097928057, 0.0154982143312659, 0.0047679631406913068, 0.001, 0.001}},
		{"cosine after a warm-up", ScheduleSpec{Kind: "cosine", Warmup: 4}, 0.4, 6, []float64{0.1, 0.2, 0.3, 0.4, 0.4, 0.2, 0, 0}},
		{"nothing but warm-up", ScheduleSpec{Kind: "cosine", Warmup: 2, Min: 0.5}, 1, 2, []float64{0.5, 1, 0.5}},
		// CosineAnnealingWarmRestarts(T_0=3, T_mult=2, eta_min=0.01): periods of 3, 6, 12
		{"restarts", ScheduleSpec{Kind: "cosine_restarts", Every: 3, Growth: 2, Min: 0.01}, 0.1, 11, []float64{0.1, 0.0775, 0.0325, 0.1, 0.093971143170299753, 0.0775,
			0.055, 0.0325, 0.016028856829700261, 0.1, 0.098466662183008077, 0.098466662183008077}},
		// CosineAnnealingWarmRestarts(T_0=4); beyond the job there is no restart
		{"restarts, equal", ScheduleSpec{Kind: "cosine_restarts", Every: 4}, 0.1, 8, []float64{0.1, 0.085355339059327379, 0.05, 0.014644660940672627,
			0.1, 0.085355339059327379, 0.05, 0.014644660940672627, 0.014644660940672627}},
		// LinearLR(start_factor=0.5, end_factor=1, total_iters=4)
		{"linear, rising", ScheduleSpec{Kind: "linear", From: 0.5, To: 1, Over: 4}, 0.05, 9, []float64{0.025, 0.03125, 0.0375, 0.04375, 0.05, 0.05}},
		// LinearLR(start_factor=1, end_factor=0.25, total_iters=4)
		{"linear, falling", ScheduleSpec{Kind: "linear", To: 0.25}, 0.1, 4, []float64{0.1, 0.08125, 0.0625, 0.04375, 0.025, 0.025}},
		// PolynomialLR(total_iters=4, power=1, 2, 0.5): lr·(1−e/4)^power
		{"polynomial", ScheduleSpec{Kind: "polynomial"}, 0.1, 4, []float64{0.1, 0.075, 0.05, 0.025, 0, 0}},
		{"square", ScheduleSpec{Kind: "polynomial", Power: 2, Over: 4}, 0.1, 9, []float64{0.1, 0.05625, 0.025, 0.00625, 0, 0}},
		{"root", ScheduleSpec{Kind: "polynomial", Power: 0.5}, 0.1, 4, []float64{0.1, 0.086602540378443865, 0.070710678118654766, 0.05, 0, 0}},
		// 0.02 + 0.08·(1−e/4)²
		{"square with an end", ScheduleSpec{Kind: "polynomial", Power: 2, Min: 0.02}, 0.1, 4, []float64{0.1, 0.065, 0.04, 0.025, 0.02, 0.02}},
		// OneCycleLR(max_lr=0.1, total_steps=10)
		{"one cycle", ScheduleSpec{Kind: "one_cycle"}, 0.1, 10, []float64{0.004, 0.052, 0.1, 0.095048463201347383, 0.081174565394976306, 0.06112620219362893,
			0.038874197806371073, 0.018825834605023701, 0.0049519367986526289, 4e-07, 4e-07}},
		// OneCycleLR(max_lr=0.1, total_steps=10, pct_start=0.5, div_factor=10, final_div_factor=100, anneal_strategy="linear")
		{"one cycle, straight", ScheduleSpec{Kind: "one_cycle", Rise: 0.5, Div: 10, FinalDiv: 100, Shape: "linear"}, 0.1, 10, []float64{0.01, 0.0325, 0.055, 0.0775, 0.1,
			0.08002, 0.06004, 0.04006, 0.02008, 0.0001, 0.0001}},
		// OneCycleLR(max_lr=1, total_steps=6, pct_start=0.4, div_factor=4, final_div_factor=10): its top lies between two updates
		{"one cycle, top between", ScheduleSpec{Kind: "one_cycle", Rise: 0.4, Div: 4, FinalDiv: 10, Over: 6}, 1, 9, []float64{0.25, 0.8588086756970249, 0.93468738434491394,
			0.59715348661262868, 0.19914104027781204, 0.025, 0.025}},
		// OneCycleLR(max_lr=1, total_steps=4, pct_start=1, div_factor=4, anneal_strategy="linear")
		{"one cycle that only rises", ScheduleSpec{Kind: "one_cycle", Rise: 1, Div: 4, Shape: "linear"}, 1, 4, []float64{0.25, 0.5, 0.75, 1, 1}},
		{"nothing but warm-up to a cycle", ScheduleSpec{Kind: "one_cycle", Warmup: 2, Div: 4}, 1, 2, []float64{0.125, 0.25, 0.25}},
		// SequentialLR([ConstantLR(0.1, 3), ExponentialLR(0.9)], milestones=[3])
		{"stages", ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{Kind: "constant", Factor: 0.1, Length: 3}, {Kind: "exponential", Factor: 0.9}}}, 0.05, 7,
			[]float64{0.005, 0.005, 0.005, 0.05, 0.045, 0.0405, 0.03645, 0.03645}},
		// SequentialLR([ConstantLR(0.1, 2), ConstantLR(0.5, 1), LinearLR(1, 0, 4)], milestones=[2, 3])
		{"three stages", ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{Factor: 0.1, Length: 2}, {Factor: 0.5, Length: 1}, {Kind: "linear"}}}, 1, 7,
			[]float64{0.1, 0.1, 0.5, 1, 0.75, 0.5, 0.25, 0, 0}},
		// ChainedScheduler([ConstantLR(0.1, 3), ExponentialLR(0.9)])
		{"product", ScheduleSpec{Kind: "product", Product: []ScheduleSpec{{Kind: "constant", Factor: 0.1, Over: 3}, {Kind: "exponential", Factor: 0.9}}}, 0.05, 7,
			[]float64{0.005, 0.0045, 0.00405, 0.03645, 0.032805, 0.0295245, 0.02657205}},
		// min is a share in a product: max(0.5^e, 0.2)·(1 − e/4)
		{"product with a floor", ScheduleSpec{Kind: "product", Product: []ScheduleSpec{{Kind: "exponential", Factor: 0.5, Min: 0.2}, {Kind: "linear"}}}, 8, 4, []float64{8, 3, 1, 0.4, 0}},
		// warm-up of 2 to the start of the first stage; a stage with a warm-up of its own
		{"warm-up, then stages", ScheduleSpec{Kind: "stages", Warmup: 2, Stages: []ScheduleSpec{{Kind: "linear", To: 0.5, Length: 2}, {Kind: "cosine", Warmup: 2, Length: 4}}}, 4, 9,
			[]float64{2, 4, 4, 3, 2, 4, 4, 2, 0, 0}},
		// fairseq inverse_square_root with warmup-updates 4: 5e-4·t/4, then 5e-4·√4·t^−½
		{"inverse root", ScheduleSpec{Kind: "inverse_sqrt", Warmup: 4}, 5e-4, 9, []float64{0.000125, 0.00025, 0.000375, 0.0005, 0.00044721359549995795, 0.00040824829046386303,
			0.00037796447300922727, 0.00035355339059327381, 0.00033333333333333332, 0.00033333333333333332}},
		// Vaswani et al.: 512^−½·min(t^−½, t·4^−1.5); lr = (512·4)^−½
		{"inverse root as by Vaswani", ScheduleSpec{Kind: "inverse_sqrt", Warmup: 4}, 0.022097086912079612, 9, []float64{0.0055242717280199029, 0.011048543456039806,
			0.01657281518405971, 0.022097086912079612, 0.019764235376052371, 0.018042195912175808, 0.016703827619526525, 0.015625, 0.01473139127471974}},
		{"inverse root, cold", ScheduleSpec{Kind: "inverse_sqrt", Min: 0.6}, 1, 4, []float64{1, 0.70710678118654757, 0.6, 0.6}},
		// Hu et al.: lr·t/2 for t ≤ 2, lr up to update T = 6, then lr·f(t−1−T) for f(k) = 1 − k/4 and so on
		{"wsd", ScheduleSpec{Kind: "wsd", Warmup: 2, Decay: 4, Min: 0.001}, 0.01, 10, []float64{0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.00775, 0.0055, 0.00325, 0.001, 0.001}},
		{"wsd, cosine", ScheduleSpec{Kind: "wsd", Warmup: 2, Decay: 4, Min: 0.001, Shape: "cosine"}, 0.01, 10,
			[]float64{0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.0086819805153394644, 0.0055, 0.0023180194846605367, 0.001, 0.001}},
		// 1 − √(k/4)
		{"wsd, root", ScheduleSpec{Kind: "wsd", Warmup: 2, Decay: 4, Shape: "sqrt"}, 0.01, 10, []float64{0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.0029289321881345244, 0.0013397459621556141, 0, 0}},
		// MiniCPM: f(k) = 0.5^(k/2), a half-life of 2 updates, which makes a quarter in 4
		{"wsd, exponential", ScheduleSpec{Kind: "wsd", Warmup: 2, Decay: 4, Min: 0.0025, Shape: "exponential"}, 0.01, 10,
			[]float64{0.005, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.0070710678118654762, 0.005, 0.0035355339059327381, 0.0025, 0.0025}},
		{"wsd of few updates", ScheduleSpec{Kind: "wsd"}, 0.3, 3, []float64{0.3, 0.3, 0.3, 0}},
		// a tenth of 20 updates
		{"wsd, default", ScheduleSpec{Kind: "wsd"}, 0.3, 20, scaled(0.3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5, 0, 0)},
	} {
		at, err := c.s.New(c.lr, c.total)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for i, want := range c.want {
			if got := at(uint64(i + 1)); math.Abs(got-want) > 1e-15*c.lr {
				t.Errorf("%s: rate of update %d = %v, want %v", c.name, i+1, got, want)
			}
		}
		last := c.want[len(c.want)-1]
		for _, far := range []uint64{c.total + 1, c.total + 2, 1 << 40, math.MaxUint64} {
			if c.total < uint64(len(c.want)) && math.Abs(at(far)-last) > 1e-15*c.lr {
				t.Errorf("%s: rate of update %d beyond the end = %v, want %v", c.name, far, at(far), last)
			}
		}
		if at(0) != at(1) {
			t.Errorf("%s: no rate before the first: %v", c.name, at(0))
		}
	}
}

// The bits of the two oldest kinds are those of the formulas as first written.
func TestScheduleBits(t *testing.T) {
	const lr, warmup, total, low = 0.1, 3, 50, 0.003 // lr·3/3 is not lr
	if x := lr; float64(x*warmup)/warmup == x {
		t.Error("the last update of the warm-up proves nothing")
	}
	at, err := ScheduleSpec{Kind: "cosine", Warmup: warmup, Min: low}.New(lr, total)
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= total+2; n++ {
		x := float64(n-1-min(n-1, warmup)) / float64(total-warmup)
		want := low + float64((lr-low)*float64(0.5*(1+cosPi(min(x, 1)))))
		if n == warmup {
			want = lr
		} else if n < warmup {
			want = float64(lr*float64(n)) / float64(warmup)
		}
		if got := at(n); got != want {
			t.Errorf("rate of update %d = %v, want %v", n, got, want)
		}
	}
}

// Periods as long as all that can be counted.
func TestSchedulePeriods(t *testing.T) {
	for _, c := range []struct{ s, first, growth, k, period uint64 }{
		{5, 3, 1, 2, 3}, {3, 3, 2, 0, 6}, {8, 3, 2, 5, 6}, {9, 3, 2, 0, 12}, {math.MaxUint64, 1, 2, 0, math.MaxUint64},
		{1 << 63, 1 << 62, 5, 1<<63 - 1<<62, math.MaxUint64}, {math.MaxUint64, math.MaxUint64, 3, 0, math.MaxUint64},
	} {
		if k, period := inPeriod(c.s, c.first, c.growth); k != c.k || period != c.period {
			t.Errorf("inPeriod(%d, %d, %d) = %d, %d, want %d, %d", c.s, c.first, c.growth, k, period, c.k, c.period)
		}
	}
}

// drawSchedule draws a spec of one kind that New accepts for n updates.
func drawSchedule(t *rapid.T, kind string, lr float64, n uint64, depth int) ScheduleSpec {
	count := func(name string, lo, hi uint64) uint64 { return rapid.Uint64Range(lo, max(lo, hi)).Draw(t, name) }
	share := rapid.Float64Range(0.01, 1)
	maybe := func(name string, g *rapid.Generator[float64]) float64 {
		if rapid.Bool().Draw(t, name+"?") {
			return g.Draw(t, name)
		}
		return 0
	}
	s := ScheduleSpec{Kind: kind, Warmup: count("warmup", 0, n)}
	if s.Warmup > 0 {
		s.WarmupFrom = maybe("warmup_from", rapid.Float64Range(0, 1))
	}
	rest := n - s.Warmup
	switch kind {
	case "step", "exponential", "cosine", "cosine_restarts", "polynomial", "inverse_sqrt", "wsd":
		s.Min = float64(lr * maybe("min", rapid.Float64Range(0, 1)))
	}
	switch kind {
	case "cosine", "polynomial", "linear", "one_cycle":
		s.Over = count("over", 0, 2*rest)
	}
	switch kind {
	case "constant":
		s.Factor = maybe("factor", share)
	case "step", "exponential":
		s.Every, s.Factor = count("every", 1, 2*n), share.Draw(t, "factor")
	case "cosine_restarts":
		s.Every, s.Growth = count("every", 1, 2*n), count("growth", 0, 4)
	case "linear":
		s.From, s.To = maybe("from", share), maybe("to", share)
	case "polynomial":
		s.Power = maybe("power", rapid.Float64Range(0.1, 10))
	case "one_cycle":
		s.Rise, s.Div, s.FinalDiv = maybe("rise", share), maybe("div", rapid.Float64Range(1, 100)), maybe("final_div", rapid.Float64Range(1, 1e6))
		s.Shape = rapid.SampledFrom(append([]string{""}, oneCycleShapes...)).Draw(t, "shape")
	case "wsd":
		s.Decay, s.Shape = count("decay", 0, rest), rapid.SampledFrom(append([]string{""}, wsdShapes...)).Draw(t, "shape")
		if s.Shape == "exponential" && s.Min == 0 {
			s.Min = float64(lr * 0.5)
		}
	case "stages", "product":
		for i := range rapid.IntRange(1, 3).Draw(t, "parts") {
			length, base := rest, 1.0
			if kind == "stages" {
				if base = lr; rest == 0 {
					break
				}
				length = count("length", 1, rest)
				rest -= length
			}
			kinds := ScheduleKinds
			if depth == 1 {
				kinds = kinds[:len(kinds)-2]
			}
			p := drawSchedule(t, kinds[(i+rapid.IntRange(0, len(kinds)-1).Draw(t, "kind"))%len(kinds)], base, length, depth-1)
			if kind == "stages" {
				p.Length = length
				s.Stages = append(s.Stages, p)
			} else {
				s.Product = append(s.Product, p)
			}
		}
		if kind == "stages" && len(s.Stages) == 0 {
			return ScheduleSpec{}
		}
	}
	return s
}

func drawValid(t *rapid.T, kinds ...string) (s ScheduleSpec, at Schedule, lr float64, n uint64) {
	lr, n = rapid.Float64Range(1e-6, 10).Draw(t, "lr"), rapid.Uint64Range(1, 60).Draw(t, "updates")
	if rapid.Bool().Draw(t, "long") {
		n *= 1 << 40
	}
	s = drawSchedule(t, rapid.SampledFrom(kinds).Draw(t, "kind"), lr, n, 3)
	at, err := s.New(lr, n)
	if err != nil {
		t.Fatalf("%+v: %v", s, err)
	}
	return s, at, lr, n
}

// Every rate is between 0 and the base rate, for any update.
func TestScheduleBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, at, lr, n := drawValid(t, ScheduleKinds...)
		check := func(u uint64) {
			if r := at(u); !(r >= 0 && r <= lr*(1+1e-12)) {
				t.Fatalf("%+v: rate of update %d of %d is %v, base %v", s, u, n, r, lr)
			}
		}
		for u := range min(n, 64) + 3 {
			check(u)
		}
		for range 20 {
			check(rapid.Uint64().Draw(t, "update"))
			check(rapid.Uint64Range(0, n).Draw(t, "update of the job"))
		}
		check(math.MaxUint64)
		if s.Describe() == "" {
			t.Fatalf("%+v: no words", s)
		}
	})
}

// A warm-up rises, and the schedule goes on from where it ends.
func TestScheduleWarmup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, at, lr, n := drawValid(t, ScheduleKinds...)
		if s.Warmup == 0 {
			return
		}
		if s.Warmup < n && s.Kind != "inverse_sqrt" && math.Abs(at(s.Warmup)-at(s.Warmup+1)) > 1e-12*lr {
			t.Fatalf("%+v: %v at the end of the warm-up, then %v", s, at(s.Warmup), at(s.Warmup+1))
		}
		if s.Kind == "inverse_sqrt" && at(s.Warmup) != lr {
			t.Fatalf("%+v: %v at the end of the warm-up, want %v", s, at(s.Warmup), lr)
		}
		prev := 0.0
		for u := uint64(1); u <= min(s.Warmup, 64); u++ {
			if r := at(u); r < prev*(1-1e-12) {
				t.Fatalf("%+v: the warm-up falls from %v to %v", s, prev, r)
			}
			prev = at(u)
		}
	})
}

// What falls never rises, and reaches its end.
func TestScheduleFalls(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, at, lr, n := drawValid(t, "step", "exponential", "cosine", "polynomial", "inverse_sqrt", "wsd")
		prev := math.Inf(1)
		for u := s.Warmup + 1; u <= min(n+2, s.Warmup+70); u++ {
			if at(u) > prev+1e-13*lr {
				t.Fatalf("%+v: rises from %v to %v at update %d", s, prev, at(u), u)
			}
			prev = at(u)
		}
		switch s.Kind {
		case "cosine", "polynomial", "wsd":
			if end := s.Warmup + max(s.Over, n-s.Warmup) + 1; at(end) != s.Min {
				t.Fatalf("%+v: ends at %v", s, at(end))
			}
		default:
			if s.Warmup < n && (at(n) < s.Min || at(n) != at(n+1)) {
				t.Fatalf("%+v: %v at the end, then %v", s, at(n), at(n+1))
			}
		}
	})
}

// Neighbouring updates of a curve without jumps are as close as its steepest
// slope allows: joints included.
func TestScheduleJoints(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lr, n := rapid.Float64Range(1e-6, 10).Draw(t, "lr"), rapid.Uint64Range(2, 100).Draw(t, "updates")
		s := drawSchedule(t, rapid.SampledFrom([]string{"cosine", "linear", "one_cycle", "wsd"}).Draw(t, "kind"), lr, n, 1)
		s.Warmup, s.WarmupFrom = 0, 0
		if s.Shape == "sqrt" || s.Shape == "exponential" {
			s.Shape = "cosine"
		}
		at, err := s.New(lr, n)
		if err != nil {
			t.Skip("drawn values that make no schedule: another draw")
		}
		span := float64(or(s.Over, n))
		switch s.Kind {
		case "one_cycle":
			rise := or(s.Rise, 0.3)*span - 1
			if span -= 1 + rise; rise > 0 {
				span = min(rise, span)
			}
			if span <= 0 {
				t.Skip("no fall left behind the rise: another draw")
			}
		case "wsd":
			span = float64(or(s.Decay, max(n/10, 1)))
		}
		for u := uint64(1); u <= n; u++ {
			if d := math.Abs(at(u+1) - at(u)); d > lr*math.Pi/2/span*(1+1e-9) {
				t.Fatalf("%+v: jumps by %v after update %d", s, d, u)
			}
		}
	})
}

func TestScheduleAllocates(t *testing.T) {
	parts := []ScheduleSpec{
		{Kind: "step", Milestones: []uint64{2, 4}, Length: 9}, {Kind: "exponential", Factor: 0.9, Every: 3, Length: 9}, {Kind: "cosine_restarts", Every: 2, Growth: 3, Length: 9},
		{Kind: "one_cycle", Length: 9}, {Kind: "wsd", Warmup: 2, Length: 9}, {Kind: "polynomial", Power: 1.5, Length: 9}, {Kind: "inverse_sqrt", Length: 9},
	}
	at, err := ScheduleSpec{Kind: "product", Warmup: 3, Product: []ScheduleSpec{{Kind: "stages", Stages: parts}, {Kind: "linear"}}}.New(1, 100)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	if n := testing.AllocsPerRun(10, func() {
		for u := range uint64(101) {
			sum += at(u)
		}
	}); n != 0 || !(sum > 0) {
		t.Errorf("%v allocations", n)
	}
}

// All problems come at once, each with its field.
func TestScheduleProblems(t *testing.T) {
	nested := func(depth int) ScheduleSpec {
		s := ScheduleSpec{}
		for range depth {
			s = ScheduleSpec{Kind: "product", Product: []ScheduleSpec{s}}
		}
		return s
	}
	for _, c := range []struct {
		s    ScheduleSpec
		lr   float64
		want string // lines
	}{
		{ScheduleSpec{}, math.NaN(), "base rate NaN, want 0 to 1e+100"},
		{ScheduleSpec{}, -1, "base rate -1, want"},
		{ScheduleSpec{Kind: "cosin"}, 1, `kind: "cosin" is none of constant, step, `},
		{ScheduleSpec{Warmup: 11}, 1, "warmup: got 11, longer than the 10 updates there are"},
		{ScheduleSpec{WarmupFrom: 0.1}, 1, "warmup_from: has no meaning without warmup"},
		{ScheduleSpec{WarmupFrom: 1.5, Warmup: 1}, 1, "warmup_from: got 1.5, want 0 to 1"},
		{ScheduleSpec{WarmupFrom: math.NaN(), Warmup: 1}, 1, "warmup_from: got NaN"},
		{ScheduleSpec{Min: 0.1}, 1, "min: has no meaning for kind constant"},
		{ScheduleSpec{Kind: "cosine", Min: 2}, 1, "min: got 2, want 0 to the base rate 1"},
		{ScheduleSpec{Kind: "cosine", Min: -1}, 1, "min: got -1"},
		{ScheduleSpec{Kind: "cosine", Min: math.NaN()}, 1, "min: got NaN"},
		{ScheduleSpec{Over: 5}, 1, "over: has no meaning without factor"},
		{ScheduleSpec{Kind: "step"}, 1, "every: a step needs either every or milestones"},
		{ScheduleSpec{Kind: "step", Every: 1, Milestones: []uint64{1}}, 1, "every: a step needs either every or milestones"},
		{ScheduleSpec{Kind: "step", Milestones: []uint64{1, 3, 3}}, 1, "milestones: got 3 after 3, want rising numbers"},
		{ScheduleSpec{Kind: "step", Every: 1, Factor: 1.1}, 1, "factor: got 1.1, want a number above 0, up to 1"},
		{ScheduleSpec{Kind: "exponential"}, 1, "factor: exponential needs one"},
		{ScheduleSpec{Kind: "cosine_restarts"}, 1, "every: cosine_restarts needs the updates of its first period"},
		{ScheduleSpec{Kind: "linear", From: -1, To: 2}, 1, "from: got -1, want a number above 0, up to 1\nto: got 2, want 0 to 1"},
		{ScheduleSpec{Kind: "polynomial", Power: math.Inf(1)}, 1, "power: got +Inf, want a number above 0"},
		{ScheduleSpec{Kind: "one_cycle", Rise: 2, Div: 0.5, FinalDiv: 0.1, Shape: "sqrt"}, 1,
			"rise: got 2, want\ndiv: got 0.5, want 1 to 1e+100\nfinal_div: got 0.1\nshape: got sqrt, want one of cosine, linear"},
		{ScheduleSpec{Kind: "wsd", Decay: 9, Warmup: 2}, 1, "decay: got 9, longer than the 8 updates after the warm-up"},
		{ScheduleSpec{Kind: "wsd", Shape: "exponential"}, 1, "min: an exponential decay needs one above 0"},
		{ScheduleSpec{Kind: "wsd", Length: 1}, 1, "length: has no meaning outside of stages"},
		{ScheduleSpec{Kind: "stages"}, 1, "stages: want a list of schedules"},
		{ScheduleSpec{Stages: []ScheduleSpec{{}}}, 1, "stages: has no meaning for kind constant"},
		{ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{}, {}}}, 1, "stages[0].length: every stage but the last needs one"},
		{ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{Length: 10}, {}}}, 1, "stages[1].length: no updates are left for the last stage"},
		{ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{Length: 6}, {Length: 5}}}, 1, "stages[1].length: got 5, but only 4 of 10 updates are left"},
		{ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{Length: 2, Warmup: 3}, {Kind: "x"}}}, 1, "stages[0].warmup: got 3, longer than the 2\nstages[1].kind: \"x\" is none"},
		{ScheduleSpec{Kind: "product", Product: []ScheduleSpec{{Length: 2}, {Kind: "cosine", Min: 1.5}}}, 3, "product[0].length: has no\nproduct[1].min: got 1.5, want 0 to the base rate 1"},
		{ScheduleSpec{Kind: "product", Product: make([]ScheduleSpec, 65)}, 1, "product: 65 schedules, want 64 at most"},
		{nested(5), 1, "product[0].product[0].product[0].product[0].product: nested more than 4 deep"},
	} {
		at, err := c.s.New(c.lr, 10)
		if e := (*ScheduleError)(nil); !errors.Is(err, ErrSchedule) || !errors.As(err, &e) || at != nil {
			t.Errorf("%+v.New(%v): %v, want a ScheduleError", c.s, c.lr, err)
			continue
		}
		got, want := strings.Split(err.Error(), "\n"), strings.Split(c.want, "\n")
		for i := range want {
			if len(got) != len(want) || !strings.HasPrefix(got[i], want[i]) {
				t.Errorf("%+v.New(%v):\n%v\nwant\n%s", c.s, c.lr, err, c.want)
				break
			}
		}
	}
	if _, err := nested(4).New(1, 10); err != nil {
		t.Error(err)
	}
}

// Whatever a file says, New answers with errors or with a schedule of rates.
func TestScheduleOfAnything(t *testing.T) {
	number := rapid.OneOf(rapid.Just(0.0), rapid.SampledFrom([]float64{1, 0.5, -1, 2, math.NaN(), math.Inf(1), math.SmallestNonzeroFloat64, 1e300}), rapid.Float64())
	count := rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(0, 20), rapid.Uint64())
	var draw func(t *rapid.T, depth int) ScheduleSpec
	draw = func(t *rapid.T, depth int) (s ScheduleSpec) {
		s.Kind = rapid.SampledFrom(ScheduleKinds).Draw(t, "kind")
		for _, x := range []*float64{&s.WarmupFrom, &s.Min, &s.Factor, &s.From, &s.To, &s.Power, &s.Rise, &s.Div, &s.FinalDiv} {
			if rapid.IntRange(0, 7).Draw(t, "number?") == 0 {
				*x = number.Draw(t, "number")
			}
		}
		for _, x := range []*uint64{&s.Warmup, &s.Over, &s.Every, &s.Growth, &s.Decay, &s.Length} {
			if rapid.IntRange(0, 3).Draw(t, "count?") == 0 {
				*x = count.Draw(t, "count")
			}
		}
		s.Shape = rapid.SampledFrom([]string{"", "", "", "cosine", "sqrt", "exponential"}).Draw(t, "shape")
		if s.Kind == "step" {
			s.Milestones = rapid.SliceOfN(count, 0, 2).Draw(t, "milestones")
		}
		if depth > 0 && s.Kind == "stages" {
			s.Stages = []ScheduleSpec{draw(t, depth-1), draw(t, depth-1)}
		}
		if depth > 0 && s.Kind == "product" {
			s.Product = []ScheduleSpec{draw(t, depth-1)}
		}
		return s
	}
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		s, lr, n := draw(t, 2), math.Abs(number.Draw(t, "lr")), count.Draw(t, "updates")
		at, err := s.New(lr, n)
		for range 4 { // without the fields that were complained about, most specs are good
			if err == nil {
				break
			}
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				clearField(t, &s, e.(*ScheduleError).Field)
			}
			at, err = s.New(min(lr, 10), n)
		}
		if err != nil {
			return
		}
		accepted++
		for _, u := range []uint64{0, 1, 2, s.Warmup, s.Warmup + 1, n - 1, n, n + 1, count.Draw(t, "update"), math.MaxUint64} {
			if r := at(u); !(r >= 0 && r <= lr*(1+1e-9)) {
				t.Fatalf("%+v: rate of update %d of %d is %v, base %v", s, u, n, r, lr)
			}
		}
	})
	if accepted < 10 {
		t.Errorf("only %d specs were accepted", accepted)
	}
}

// clearField empties the field of an error such as stages[1].min.
func clearField(t *rapid.T, s *ScheduleSpec, path string) {
	if path == "" { // the base rate
		return
	}
	name, rest, nested := strings.Cut(path, ".")
	name, index, _ := strings.Cut(name, "[")
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ","); tag != name {
			continue
		}
		if !nested {
			v.Field(i).SetZero()
			return
		}
		k, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
		if err != nil {
			t.Fatal(path, err)
		}
		clearField(t, v.Field(i).Index(k).Addr().Interface().(*ScheduleSpec), rest)
		return
	}
	t.Fatalf("no field %q", path)
}

func TestScheduleWords(t *testing.T) {
	for _, c := range []struct {
		s    ScheduleSpec
		want string
	}{
		{ScheduleSpec{}, "constant rate"},
		{ScheduleSpec{Kind: "constant", Factor: 0.1, Over: 20}, "constant rate ×0.1 over 20 updates"},
		{ScheduleSpec{Kind: "cosine", Min: 0.001, Warmup: 10, WarmupFrom: 0.5}, "cosine rate down to 0.001 after a warm-up of 10 updates from ×0.5"},
		{ScheduleSpec{Kind: "step", Every: 30}, "rate ×0.1 every 30 updates"},
		{ScheduleSpec{Kind: "step", Milestones: []uint64{30, 80}, Factor: 0.5}, "rate ×0.5 at each of the updates 30 80"},
		{ScheduleSpec{Kind: "exponential", Factor: 0.9}, "exponential rate ×0.9 in 1 updates"},
		{ScheduleSpec{Kind: "cosine_restarts", Every: 10, Growth: 2}, "cosine rate with restarts, the first after 10 updates, each period ×2"},
		{ScheduleSpec{Kind: "linear", To: 0.1}, "linear rate from ×1 to ×0.1"},
		{ScheduleSpec{Kind: "polynomial", Power: 2, Over: 9}, "polynomial rate of power 2 over 9 updates"},
		{ScheduleSpec{Kind: "inverse_sqrt", Warmup: 4000}, "inverse square root rate after a warm-up of 4000 updates"},
		{ScheduleSpec{Kind: "one_cycle"}, "one-cycle rate (cosine), from 1/25 up over a share of 0.3, then down to 1/250000"},
		{ScheduleSpec{Kind: "wsd"}, "stable rate, linear decay over the last tenth of the updates"},
		{ScheduleSpec{Kind: "wsd", Decay: 50, Shape: "sqrt"}, "stable rate, sqrt decay over the last 50 updates"},
		{ScheduleSpec{Kind: "stages", Stages: []ScheduleSpec{{Factor: 0.1, Length: 20}, {Kind: "cosine"}}}, "rate in stages (constant rate ×0.1 for 20 updates, then cosine rate)"},
		{ScheduleSpec{Kind: "product", Product: []ScheduleSpec{{Kind: "linear"}, {Kind: "cosine"}}}, "product of rates (linear rate from ×1 to ×0; cosine rate)"},
	} {
		if got := c.s.Describe(); got != c.want {
			t.Errorf("Describe() = %q, want %q", got, c.want)
		}
	}
}
