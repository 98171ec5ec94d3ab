package vec

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"tributary/internal/deptest"
)

// loop is one function of the package as the tests call it: on slices of the
// same length, the first of them the destination, and on scalars. Functions
// without a destination return their result.
type loop struct {
	name    string
	slices  int
	scalars int
	run     func(s [][]float32, c []float32) float64
}

func none(f func()) float64 { f(); return 0 }

var loops = []loop{
	{"Add", 3, 0, func(s [][]float32, c []float32) float64 { return none(func() { Add(s[0], s[1], s[2]) }) }},
	{"Sub", 3, 0, func(s [][]float32, c []float32) float64 { return none(func() { Sub(s[0], s[1], s[2]) }) }},
	{"Mul", 3, 0, func(s [][]float32, c []float32) float64 { return none(func() { Mul(s[0], s[1], s[2]) }) }},
	{"Div", 3, 0, func(s [][]float32, c []float32) float64 { return none(func() { Div(s[0], s[1], s[2]) }) }},
	{"Max", 3, 0, func(s [][]float32, c []float32) float64 { return none(func() { Max(s[0], s[1], s[2]) }) }},
	{"MaxConst", 2, 1, func(s [][]float32, c []float32) float64 { return none(func() { MaxConst(s[0], s[1], c[0]) }) }},
	{"MinConst", 2, 1, func(s [][]float32, c []float32) float64 { return none(func() { MinConst(s[0], s[1], c[0]) }) }},
	{"Scale", 2, 1, func(s [][]float32, c []float32) float64 { return none(func() { Scale(s[0], c[0], s[1]) }) }},
	{"AddConst", 2, 1, func(s [][]float32, c []float32) float64 { return none(func() { AddConst(s[0], s[1], c[0]) }) }},
	{"AddScaled", 3, 1, func(s [][]float32, c []float32) float64 {
		return none(func() { AddScaled(s[0], s[1], c[0], s[2]) })
	}},
	{"SubScaled", 3, 1, func(s [][]float32, c []float32) float64 {
		return none(func() { SubScaled(s[0], s[1], c[0], s[2]) })
	}},
	{"Axpby", 3, 2, func(s [][]float32, c []float32) float64 {
		return none(func() { Axpby(s[0], c[0], s[1], c[1], s[2]) })
	}},
	{"AxpbySquare", 3, 2, func(s [][]float32, c []float32) float64 {
		return none(func() { AxpbySquare(s[0], c[0], s[1], c[1], s[2]) })
	}},
	{"MulAdd", 4, 0, func(s [][]float32, c []float32) float64 { return none(func() { MulAdd(s[0], s[1], s[2], s[3]) }) }},
	{"SubQuotient", 4, 1, func(s [][]float32, c []float32) float64 {
		return none(func() { SubQuotient(s[0], s[1], c[0], s[2], s[3]) })
	}},
	{"Sqrt", 2, 0, func(s [][]float32, c []float32) float64 { return none(func() { Sqrt(s[0], s[1]) }) }},
	{"RootScaled", 2, 2, func(s [][]float32, c []float32) float64 {
		return none(func() { RootScaled(s[0], s[1], c[0], c[1]) })
	}},
	{"RootOfScaled", 2, 2, func(s [][]float32, c []float32) float64 {
		return none(func() { RootOfScaled(s[0], s[1], c[0], c[1]) })
	}},
	{"Abs", 2, 0, func(s [][]float32, c []float32) float64 { return none(func() { Abs(s[0], s[1]) }) }},
	{"Sign", 2, 0, func(s [][]float32, c []float32) float64 { return none(func() { Sign(s[0], s[1]) }) }},
	{"Select", 4, 0, func(s [][]float32, c []float32) float64 { return none(func() { Select(s[0], s[1], s[2], s[3]) }) }},
	{"SoftThreshold", 2, 1, func(s [][]float32, c []float32) float64 {
		return none(func() { SoftThreshold(s[0], s[1], float32(math.Abs(float64(c[0])))) })
	}},
	{"ScaleAddConst", 2, 2, func(s [][]float32, c []float32) float64 {
		return none(func() { ScaleAddConst(s[0], c[0], s[1], c[1]) })
	}},
	{"Clamp", 2, 2, func(s [][]float32, c []float32) float64 {
		return none(func() { Clamp(s[0], s[1], min(c[0], c[1]), max(c[0], c[1])) })
	}},
	{"Saturate", 2, 1, func(s [][]float32, c []float32) float64 { return none(func() { Saturate(s[0], s[1], c[0]) }) }},

	{"Dot", 2, 0, func(s [][]float32, c []float32) float64 { return Dot(s[0], s[1]) }},
	{"Sum", 1, 0, func(s [][]float32, c []float32) float64 { return Sum(s[0]) }},
	{"MaxAbs", 1, 0, func(s [][]float32, c []float32) float64 { return MaxAbs(s[0]) }},
	{"CountPositive", 2, 0, func(s [][]float32, c []float32) float64 { return float64(CountPositive(s[0], s[1])) }},

	{"SGD", 3, 6, func(s [][]float32, c []float32) float64 {
		return none(func() { SGD(s[0], s[1], s[2], &SGDCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5]}) })
	}},
	{"SGDMomentum", 4, 6, func(s [][]float32, c []float32) float64 {
		return none(func() { SGDMomentum(s[0], s[1], s[2], s[3], &SGDCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5]}) })
	}},
	{"SGDNesterov", 4, 6, func(s [][]float32, c []float32) float64 {
		return none(func() { SGDNesterov(s[0], s[1], s[2], s[3], &SGDCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5]}) })
	}},
	{"Adam", 5, 8, func(s [][]float32, c []float32) float64 {
		return none(func() {
			Adam(s[0], s[1], s[2], s[3], s[4], &AdamCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]})
		})
	}},
	{"AdamW", 5, 8, func(s [][]float32, c []float32) float64 {
		return none(func() {
			AdamW(s[0], s[1], s[2], s[3], s[4], &AdamCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]})
		})
	}},
	{"Yogi", 5, 5, func(s [][]float32, c []float32) float64 {
		return none(func() { Yogi(s[0], s[1], s[2], s[3], s[4], &YogiCoef[float32]{c[0], c[1], c[2], c[3], c[4]}) })
	}},
	{"EXAdam", 5, 10, func(s [][]float32, c []float32) float64 {
		return none(func() {
			EXAdam(s[0], s[1], s[2], s[3], s[4], &EXAdamCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9]})
		})
	}},
	{"Adagrad", 4, 3, func(s [][]float32, c []float32) float64 {
		return none(func() { Adagrad(s[0], s[1], s[2], s[3], &AdagradCoef[float32]{c[0], c[1], c[2]}) })
	}},
	{"Lion", 4, 6, func(s [][]float32, c []float32) float64 {
		return none(func() { Lion(s[0], s[1], s[2], s[3], &LionCoef[float32]{c[0], c[1], c[2], c[3], c[4], c[5]}) })
	}},
	{"DecodeHalf", 2, 0, func(s [][]float32, c []float32) float64 {
		return none(func() { DecodeHalf(s[0], halves(s[1])) })
	}},
	{"EncodeHalf", 2, 0, func(s [][]float32, c []float32) float64 {
		h := make([]uint16, len(s[0]))
		EncodeHalf(h, s[1])
		for i := range h {
			s[0][i] = fromHalf(h[i])
		}
		return 0
	}},
}

// halves are the upper halves of x, without rounding.
func halves(x []float32) []uint16 {
	h := make([]uint16, len(x))
	for i, v := range x {
		h[i] = uint16(math.Float32bits(v) >> 16)
	}
	return h
}

var awkward = []float32{
	0, float32(math.Copysign(0, -1)), 1, -1, math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32,
	math.MaxFloat32, -math.MaxFloat32, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 1e-40, 1e-20, -1e20,
	math.Float32frombits(0x3f808000), math.Float32frombits(0x3f818000), math.Float32frombits(0x7f7fffff),
}

// number is an ordinary number, or, with one of so many, an awkward one.
func number(r *rand.Rand, oneOf int) float32 {
	if r.IntN(oneOf) == 0 {
		return awkward[r.IntN(len(awkward))]
	}
	return float32(r.NormFloat64() * math.Pow(10, float64(r.IntN(9)-4)))
}

func numbers(r *rand.Rand, n, oneOf int) []float32 {
	off := r.IntN(17)
	x := make([]float32, off+n)[off:]
	for i := range x {
		x[i] = number(r, oneOf)
	}
	return x
}

func sameBits(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func clone(s [][]float32) [][]float32 {
	c := make([][]float32, len(s))
	for i, x := range s {
		c[i] = slices.Clone(x)
	}
	return c
}

// Every loop gives the bits of the portable one, wherever its slices begin and
// end, also if the destination is a source.
func TestPathsAgree(t *testing.T) {
	for _, p := range assembly(t) {
		for _, l := range loops {
			t.Run(fmt.Sprint(p, "/", l.name), func(t *testing.T) {
				r := rand.New(rand.NewPCG(1, 2))
				for n := 0; n <= 300; n++ {
					for _, oneOf := range []int{2, 1000} {
						s := make([][]float32, l.slices)
						for i := range s {
							s[i] = numbers(r, n, oneOf)
						}
						checkPath(t, p, l, s, numbers(r, l.scalars, 8*oneOf))
					}
				}
			})
		}
	}
}

func checkPath(t *testing.T, p Path, l loop, s [][]float32, c []float32) {
	t.Helper()
	for _, inPlace := range []bool{false, true} {
		want, got := clone(s), s
		s = clone(s)
		if inPlace && len(s) > 1 {
			want[0], got[0] = want[1], got[1]
		}
		force(t, Portable)
		w := l.run(want, c)
		force(t, p)
		g := l.run(got, c)
		if math.Float64bits(w) != math.Float64bits(g) && (w == w || g == g) {
			t.Fatalf("%d elements: %v, portable %v", len(s[0]), g, w)
		}
		for i := range want {
			for j := range want[i] {
				if !sameBits(want[i][j], got[i][j]) {
					t.Fatalf("%d elements, in place %v, slice %d, element %d: %v, portable %v", len(want[i]), inPlace, i, j, got[i][j], want[i][j])
				}
			}
		}
	}
}

// A slice longer than a block is worked on in several calls.
func TestManyBlocks(t *testing.T) {
	for _, p := range assembly(t) {
		r := rand.New(rand.NewPCG(3, 4))
		for _, l := range loops {
			s := make([][]float32, l.slices)
			for i := range s {
				s[i] = numbers(r, block+block/2+13, 1<<40)
			}
			checkPath(t, p, l, s, numbers(r, l.scalars, 1<<40))
		}
		in := make([][]float32, 3)
		for i := range in {
			in[i] = numbers(r, block+block/2+13, 1<<40)
		}
		checkCombine(t, p, in, []float64{0.25, 0.5, 0.3})
	}
}

func TestCombine(t *testing.T) {
	for _, p := range append(assembly(t), Portable) {
		r := rand.New(rand.NewPCG(5, 6))
		for n := 0; n <= 300; n++ {
			k := r.IntN(6)
			if n%10 == 0 {
				k = r.IntN(3*group + 1)
			}
			in, w := make([][]float32, k), make([]float64, k)
			for i := range in {
				if r.IntN(5) > 0 {
					in[i] = numbers(r, n, 20)
				}
				w[i] = float64(number(r, 50))
			}
			checkCombine(t, p, in, w)
		}
	}
}

// checkCombine compares Combine and CombineHalf with a plain sum.
func checkCombine(t *testing.T, p Path, in [][]float32, w []float64) {
	t.Helper()
	n := 0
	half, rounded := make([][]uint16, len(in)), make([][]float32, len(in))
	for i, x := range in {
		if x != nil {
			n = len(x)
			half[i] = halves(x)
			rounded[i] = make([]float32, n)
			for j, h := range half[i] {
				rounded[i][j] = fromHalf(h)
			}
		}
	}
	plain := func(in [][]float32) []float32 {
		sum := make([]float32, n)
		first := true
		for i, x := range in {
			for j, v := range x {
				if v = float32(float32(w[i]) * v); !first {
					v += sum[j]
				}
				sum[j] = v
			}
			first = first && x == nil
		}
		return sum
	}
	force(t, p)
	got := numbers(rand.New(rand.NewPCG(7, 8)), n, 5)
	for _, c := range []struct {
		name string
		want []float32
		run  func()
	}{
		{"Combine", plain(in), func() { Combine(got, in, w) }},
		{"CombineHalf", plain(rounded), func() { CombineHalf(got, half, w) }},
	} {
		c.run()
		for j := range got {
			if !sameBits(got[j], c.want[j]) {
				t.Fatalf("%v %s of %d × %d, element %d: %v, want %v", p, c.name, len(in), n, j, got[j], c.want[j])
			}
		}
	}
}

func TestAddSquares(t *testing.T) {
	for _, p := range append(assembly(t), Portable) {
		force(t, p)
		r := rand.New(rand.NewPCG(12, 13))
		for n := range 100 {
			x := numbers(r, n, 1000)
			dst, want := make([]float64, n), make([]float64, n)
			for i, v := range x {
				dst[i] = r.NormFloat64()
				want[i] = dst[i] + float64(float64(v)*float64(v))
			}
			if AddSquares(dst, x); !slices.Equal(dst, want) {
				t.Fatalf("%v: %d elements: %v, want %v", p, n, dst, want)
			}
		}
	}
}

// Elements of 64 bits, and of types of one's own, are computed as well.
func TestOtherTypes(t *testing.T) {
	type mine float32
	x, y := []mine{1, 2, 3, 4, 5, 6, 7, 8, 9}, make([]mine, 9)
	AddScaled(y, x, 2, x)
	if y[8] != 27 || y[0] != 3 {
		t.Errorf("x + 2x = %v", y)
	}
	d := make([]float64, 9)
	AddConst(d, []float64{1, 2, 3, 4, 5, 6, 7, 8, 1e300}, 1)
	if d[0] != 2 || d[8] != 1e300 {
		t.Errorf("x + 1 = %v", d)
	}
	if got := Dot(d[:2], d[:2]); got != 13 {
		t.Errorf("Dot = %v, want 13", got)
	}
	Combine(d, [][]float64{nil, {1, 2, 3, 4, 5, 6, 7, 8, 9}}, []float64{1, 0.5})
	if d[8] != 4.5 {
		t.Errorf("Combine = %v", d)
	}
}

func TestLengthsMustAgree(t *testing.T) {
	for _, p := range []Path{Portable, best()} {
		force(t, p)
		for _, l := range loops {
			for short := range l.slices {
				if l.slices == 1 || l.name == "EncodeHalf" && short == 0 {
					continue
				}
				s := make([][]float32, l.slices)
				for i := range s {
					s[i] = make([]float32, 32)
				}
				s[short] = s[short][:31]
				func() {
					defer func() {
						if recover() == nil {
							t.Errorf("%v %s: slice %d may be too short", p, l.name, short)
						}
					}()
					l.run(s, make([]float32, l.scalars))
				}()
			}
		}
		for name, f := range map[string]func(){
			"lengths": func() { Combine(make([]float32, 4), [][]float32{nil, make([]float32, 3)}, []float64{1, 1}) },
			"weights": func() { CombineHalf(make([]float32, 4), [][]uint16{nil, make([]uint16, 4)}, []float64{1}) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("Combine: %s may differ", name)
					}
				}()
				f()
			}()
		}
	}
}

func TestNoAllocations(t *testing.T) {
	for _, p := range []Path{Portable, best()} {
		force(t, p)
		in, half := [][]float32{make([]float32, 100), make([]float32, 100)}, [][]uint16{make([]uint16, 100)}
		if n := testing.AllocsPerRun(10, func() {
			var x, y [100]float32
			Add(x[:], x[:], y[:])
			_ = Dot(x[:], y[:]) + MaxAbs(x[:]) + float64(CountPositive(x[:], y[:]))
			AdamW(x[:], x[:], y[:], x[:], y[:], &AdamCoef[float32]{B1: 1})
			Yogi(x[:], x[:], y[:], x[:], y[:], &YogiCoef[float32]{B1: 1})
			Combine(x[:], in, []float64{1, 2})
			var h [100]uint16
			EncodeHalf(h[:], x[:])
			CombineHalf(x[:], half, []float64{1})
		}); n != 0 {
			t.Errorf("%v: %v allocations", p, n)
		}
	}
}

func TestChoosePath(t *testing.T) {
	for _, c := range []struct {
		name       string
		top, want  Path
		complaints int
	}{
		{"", AVX512, AVX512, 0},
		{"", Portable, Portable, 0},
		{"portable", AVX512, Portable, 0},
		{"avx2", AVX512, AVX2, 0},
		{"avx512", AVX2, Portable, 1},
		{"sse", AVX2, Portable, 1},
	} {
		n := 0
		if got := choosePath(c.name, c.top, func(string) { n++ }); got != c.want || n != c.complaints {
			t.Errorf("%q of %v: %v with %d complaints, want %v with %d", c.name, c.top, got, n, c.want, c.complaints)
		}
	}
}

func FuzzAdamW(f *testing.F) {
	f.Add(uint64(1), uint16(37), uint16(3))
	i := slices.IndexFunc(loops, func(l loop) bool { return l.name == "AdamW" })
	f.Fuzz(func(t *testing.T, seed uint64, n, oneOf uint16) {
		r := rand.New(rand.NewPCG(seed, 0))
		for _, p := range assembly(t) {
			s := make([][]float32, 5)
			for i := range s {
				s[i] = numbers(r, int(n)%1000, 1+int(oneOf))
			}
			checkPath(t, p, loops[i], s, numbers(r, 8, 1+int(oneOf)))
		}
	})
}

func TestImports(t *testing.T) { deptest.Ours(t) }
