package aggregate

import (
	"errors"
	"math"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func newMean(t interface{ Fatal(...any) }, by string) Rule[float32] {
	r, err := New[float32]("mean", map[string]any{"by": by})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNew(t *testing.T) {
	if _, err := New[float64]("maen", nil); !errors.Is(err, ErrUnknownRule) || !strings.Contains(err.Error(), `did you mean "mean"?`) {
		t.Errorf("New of a misspelt rule: %v", err)
	}
	_, err := New[float64]("mean", map[string]any{"by": "example", "bye": 1})
	if !errors.Is(err, ErrHyper) || !strings.Contains(err.Error(), `did you mean "examples"?`) || !strings.Contains(err.Error(), `did you mean "by"?`) {
		t.Errorf("New: %v, want both problems with suggestions", err)
	}
	if _, err := New[float64]("mean", map[string]any{"by": 3}); !errors.Is(err, ErrHyper) {
		t.Errorf("New by a number: %v, want an error", err)
	}
	if r, err := New[float64]("mean", nil); err != nil || r.Weights(nil, []Meta{{Examples: 1}, {Examples: 3}}, nil)[1] != 0.75 {
		t.Errorf("New with defaults: %v, want a mean by examples", err)
	}
	for _, by := range Bys {
		s := newMean(t, by).Spec(3)
		if s.Name != "mean" || !s.Coordinate || len(s.Passes) != 0 || len(s.Slots) != 0 {
			t.Errorf("Spec of mean by %s: %+v", by, s)
		}
	}
}

func TestWeights(t *testing.T) {
	for _, c := range []struct {
		name, by string
		ms       []Meta
		want     []float64
	}{
		{"uniform", "uniform", []Meta{{Examples: 1}, {Examples: 9}, {}, {Examples: 2}}, []float64{.25, .25, .25, .25}},
		{"uniform, null", "uniform", []Meta{{Null: true, Examples: 5}, {}, {}}, []float64{0, .5, .5}},
		{"examples", "examples", []Meta{{Examples: 1}, {Examples: 3}}, []float64{.25, .75}},
		{"examples, null", "examples", []Meta{{Examples: 1}, {Examples: 3, Null: true}}, []float64{1, 0}},
		{"none stands for any", "examples", []Meta{{}, {Examples: math.NaN()}, {Examples: -1}}, []float64{0, 0, 0}},
		{"all null", "uniform", []Meta{{Null: true}, {Null: true}}, []float64{0, 0}},
		{"nobody", "examples", nil, nil},
	} {
		r := newMean(t, c.by)
		dst := []float64{7, 7}
		if got := r.Weights(dst[:0], c.ms, nil); !slices.Equal(got, c.want) {
			t.Errorf("%s: Weights = %v, want %v", c.name, got, c.want)
		}
		if got := r.Weights(dst, c.ms, nil); !slices.Equal(got, c.want) {
			t.Errorf("%s: Weights into a used slice = %v, want %v", c.name, got, c.want)
		}
	}
}

// meanTwin is the obviously right mean in float64, element by element.
func meanTwin(in [][]float32, w []float64, n int) []float64 {
	out := make([]float64, n)
	for j := range out {
		for i := range in {
			if in[i] != nil {
				out[j] += w[i] * float64(in[i][j])
			}
		}
	}
	return out
}

func TestMeanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, n := rapid.IntRange(1, 6).Draw(t, "m"), rapid.IntRange(0, 9).Draw(t, "n")
		r := newMean(t, rapid.SampledFrom(Bys).Draw(t, "by"))
		ms, in := make([]Meta, m), make([][]float32, m)
		nulls := 0
		for i := range ms {
			ms[i] = Meta{Rank: i, Examples: float64(rapid.IntRange(1, 1000).Draw(t, "examples")), Null: rapid.Bool().Draw(t, "null")}
			if ms[i].Null {
				nulls++
				continue
			}
			in[i] = rapid.SliceOfN(rapid.Float32Range(-1e3, 1e3), n, n).Draw(t, "in")
		}
		w := r.Weights(nil, ms, nil)
		sum := 0.0
		for i := range w {
			sum += w[i]
			if (w[i] == 0) != ms[i].Null {
				t.Fatalf("weight %v of %+v", w[i], ms[i])
			}
		}
		if nulls == m && sum != 0 || nulls < m && math.Abs(sum-1) > 1e-15*float64(m) {
			t.Fatalf("weights %v sum to %v", w, sum)
		}
		buf := slices.Repeat([]float32{-77}, n+2) // sentinels, and out starts dirty
		out := buf[1 : n+1]
		r.Combine(out, in, w)
		if buf[0] != -77 || buf[n+1] != -77 {
			t.Fatal("written outside out")
		}
		for j, want := range meanTwin(in, w, n) {
			if got := float64(out[j]); math.Abs(got-want) > 1e-6*1e3 || m == nulls && got != 0 {
				t.Fatalf("out[%d] = %v, want %v", j, got, want)
			}
			// Exactly: products rounded, sums in rank order, one after the other.
			var exact float32
			first := true
			for i := range in {
				if in[i] == nil {
					continue
				}
				p := float32(float64(float32(w[i])) * float64(in[i][j])) // exact in float64, rounded once
				if first {
					exact, first = p, false
				} else {
					exact = float32(float64(exact) + float64(p))
				}
			}
			if math.Float32bits(exact) != math.Float32bits(out[j]) {
				t.Fatalf("out[%d] = %x, want %x", j, out[j], exact)
			}
		}
		// A cut into two spans gives the same bits.
		cut := rapid.IntRange(0, n).Draw(t, "cut")
		lo, hi := make([][]float32, m), make([][]float32, m)
		for i, x := range in {
			if x != nil {
				lo[i], hi[i] = x[:cut], x[cut:]
			}
		}
		again := make([]float32, n)
		r.Combine(again[:cut], lo, w)
		r.Combine(again[cut:], hi, w)
		if !slices.Equal(again, out) {
			t.Fatalf("in two spans %v, at once %v", again, out)
		}
	})
}

// The order of ranks decides the rounding: 1e8, 1, −1e8 is not 1e8, −1e8, 1.
func TestMeanOrder(t *testing.T) {
	r := newMean(t, "uniform")
	w := []float64{1, 1, 1}
	var a, b [1]float32
	r.Combine(a[:], [][]float32{{1e8}, {1}, {-1e8}}, w)
	r.Combine(b[:], [][]float32{{1e8}, {-1e8}, {1}}, w)
	if a[0] != 0 || b[0] != 1 {
		t.Errorf("sums %v and %v, want 0 and 1", a, b)
	}
}

func TestOnePassesThrough(t *testing.T) {
	r := newMean(t, "examples")
	ms := []Meta{{Null: true}, {Examples: 3}, {Null: true}}
	x := []float32{0, float32(math.Copysign(0, -1)), 1e-45, -3.4e38, float32(math.Inf(1)), 0.1}
	out := make([]float32, len(x))
	r.Combine(out, [][]float32{nil, x, nil}, r.Weights(nil, ms, nil))
	for i := range x {
		if math.Float32bits(out[i]) != math.Float32bits(x[i]) {
			t.Errorf("%v became %v", x[i], out[i])
		}
	}
}

func TestCombinePanicsAndAllocs(t *testing.T) {
	r := newMean(t, "uniform")
	panics := func(f func()) (did bool) {
		defer func() { did = recover() != nil }()
		f()
		return false
	}
	out := make([]float32, 2, 4)
	for _, in := range [][][]float32{{{1}}, {make([]float32, 3)}, {{1, 2}, {1, 2}}, {make([]float32, 1, 4)}} {
		if !panics(func() { r.Combine(out, in, []float64{1}) }) {
			t.Errorf("Combine of %v: no panic", in)
		}
	}
	if !panics(func() { r.Pass(0, nil, nil) }) {
		t.Error("Pass of a rule without passes: no panic")
	}
	in, w := [][]float32{{1, 2}, nil, {3, 4}}, []float64{.5, 0, .5}
	if a := testing.AllocsPerRun(10, func() { r.Combine(out, in, w) }); a != 0 {
		t.Errorf("Combine allocates %v times", a)
	}
}

func TestDeps(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(string(out)) {
		ours := strings.HasPrefix(p, "tributary/") && !slices.Contains([]string{"tributary/aggregate", "tributary/optim", "tributary/layout", "tributary/internal/rng", "tributary/internal/vec"}, p)
		if ours || p == "net" || p == "log/slog" || strings.Contains(strings.Split(p, "/")[0], ".") && p != "golang.org/x/sys/cpu" {
			t.Errorf("aggregate depends on %s", p)
		}
	}
}

func BenchmarkCombine(b *testing.B) {
	r := newMean(b, "examples")
	const n, m = 2048, 4
	out, in, w := make([]float32, n), make([][]float32, m), make([]float64, m)
	for i := range in {
		in[i], w[i] = make([]float32, n), 1.0/m
	}
	b.ReportAllocs()
	b.SetBytes(4 * n * m)
	for b.Loop() {
		r.Combine(out, in, w)
	}
}
