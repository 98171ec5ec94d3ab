// Package vec holds the inner loops of the update rules: arithmetic on slices
// of float32 or float64, element by element.
//
// Every product, quotient, sum and root is rounded to the precision of the
// elements where it stands; nothing is fused and nothing is reordered, so that
// all implementations of a loop, portable or assembly, give the same bits
// (docs/consistency.md, C18). Sums are float64 in eight lanes, lane i%8 taking
// element i, added in the fixed order of [fold].
//
// In every function dst may be one of the sources; other overlaps are not
// allowed. All slices must have the length of dst, or of the first source where
// there is no dst; functions panic if they do not. Nothing here allocates.
package vec

import (
	"fmt"
	"math"
	"slices"
)

// Float is the precision of the elements.
type Float interface{ ~float32 | ~float64 }

// Lanes is the number of partial sums that a float64 sum runs in.
const Lanes = 8

func same(n int, lens ...int) {
	for _, l := range lens {
		if l != n {
			panic(fmt.Sprintf("vec: slices of %d and %d elements", n, l))
		}
	}
}

// Add is dst = x + y.
func Add[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = add32(f32(dst), f32(x), f32(y))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] + y[i]
	}
}

// Sub is dst = x − y.
func Sub[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = sub32(f32(dst), f32(x), f32(y))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] - y[i]
	}
}

// Mul is dst = x·y.
func Mul[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = mul32(f32(dst), f32(x), f32(y))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(x[i] * y[i])
	}
}

// Div is dst = x/y.
func Div[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = div32(f32(dst), f32(x), f32(y))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] / y[i]
	}
}

// Max is dst = x where x > y, else y: of a NaN and a number it is y.
func Max[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = max32(f32(dst), f32(x), f32(y))
	}
	for ; i < len(dst); i++ {
		v := y[i]
		if x[i] > v {
			v = x[i]
		}
		dst[i] = v
	}
}

// MaxConst is dst = c where c > x, else x: a NaN in x stays one.
func MaxConst[T Float](dst, x []T, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = maxConst32(f32(dst), f32(x), float32(c))
	}
	for ; i < len(dst); i++ {
		v := x[i]
		if c > v {
			v = c
		}
		dst[i] = v
	}
}

// MinConst is dst = c where c < x, else x: a NaN in x stays one.
func MinConst[T Float](dst, x []T, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = minConst32(f32(dst), f32(x), float32(c))
	}
	for ; i < len(dst); i++ {
		v := x[i]
		if c < v {
			v = c
		}
		dst[i] = v
	}
}

// Scale is dst = a·x.
func Scale[T Float](dst []T, a T, x []T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = scale32(f32(dst), f32(x), float32(a))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(a * x[i])
	}
}

// AddConst is dst = x + a.
func AddConst[T Float](dst, x []T, a T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = addConst32(f32(dst), f32(x), float32(a))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] + a
	}
}

// AddScaled is dst = x + a·y.
func AddScaled[T Float](dst, x []T, a T, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = addScaled32(f32(dst), f32(x), f32(y), float32(a))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] + T(a*y[i])
	}
}

// SubScaled is dst = x − a·y.
func SubScaled[T Float](dst, x []T, a T, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = subScaled32(f32(dst), f32(x), f32(y), float32(a))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] - T(a*y[i])
	}
}

// Axpby is dst = a·x + b·y: an exponential moving average with b = 1 − a.
func Axpby[T Float](dst []T, a T, x []T, b T, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = axpby32(f32(dst), f32(x), f32(y), float32(a), float32(b))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(a*x[i]) + T(b*y[i])
	}
}

// AxpbySquare is dst = a·x + (b·y)·y: the moving average of a square.
func AxpbySquare[T Float](dst []T, a T, x []T, b T, y []T) {
	same(len(dst), len(x), len(y))
	i := 0
	if short[T]() {
		i = axpbySquare32(f32(dst), f32(x), f32(y), float32(a), float32(b))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(a*x[i]) + T(T(b*y[i])*y[i])
	}
}

// MulAdd is dst = x + y·z.
func MulAdd[T Float](dst, x, y, z []T) {
	same(len(dst), len(x), len(y), len(z))
	i := 0
	if short[T]() {
		i = mulAdd32(f32(dst), f32(x), f32(y), f32(z))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] + T(y[i]*z[i])
	}
}

// SubQuotient is dst = x − (a·y)/z: the step of an adaptive rule.
func SubQuotient[T Float](dst, x []T, a T, y, z []T) {
	same(len(dst), len(x), len(y), len(z))
	i := 0
	if short[T]() {
		i = subQuotient32(f32(dst), f32(x), f32(y), f32(z), float32(a))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] - T(a*y[i])/z[i]
	}
}

// Sqrt is dst = √x.
func Sqrt[T Float](dst, x []T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = sqrt32(f32(dst), f32(x))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(math.Sqrt(float64(x[i])))
	}
}

// RootScaled is dst = √x·a + c: the denominator of an adaptive rule.
func RootScaled[T Float](dst, x []T, a, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = rootScaled32(f32(dst), f32(x), float32(a), float32(c))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(T(math.Sqrt(float64(x[i])))*a) + c
	}
}

// RootOfScaled is dst = √(x·a) + c.
func RootOfScaled[T Float](dst, x []T, a, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = rootOfScaled32(f32(dst), f32(x), float32(a), float32(c))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(math.Sqrt(float64(T(x[i]*a)))) + c
	}
}

// Abs is dst = |x|.
func Abs[T Float](dst, x []T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = abs32(f32(dst), f32(x))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(math.Abs(float64(x[i])))
	}
}

// Sign is dst = −1, 0 or 1 with the sign of x; a zero of either sign gives +0
// and a NaN stays one.
func Sign[T Float](dst, x []T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = sign32(f32(dst), f32(x))
	}
	for ; i < len(dst); i++ {
		dst[i] = sign(x[i])
	}
}

func sign[T Float](x T) T {
	switch {
	case x > 0:
		return 1
	case x < 0:
		return -1
	case x == 0:
		return 0
	}
	return x
}

// Select is dst = x where c > 0, else y.
func Select[T Float](dst, c, x, y []T) {
	same(len(dst), len(c), len(x), len(y))
	i := 0
	if short[T]() {
		i = choose32(f32(dst), f32(c), f32(x), f32(y))
	}
	for ; i < len(dst); i++ {
		v := y[i]
		if c[i] > 0 {
			v = x[i]
		}
		dst[i] = v
	}
}

// SoftThreshold is dst = sign(x)·max(|x| − c, 0), for c ≥ 0: x − c above c,
// x + c below −c, +0 between, and NaN for NaN.
func SoftThreshold[T Float](dst, x []T, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = softThreshold32(f32(dst), f32(x), float32(c))
	}
	for ; i < len(dst); i++ {
		switch v := x[i]; {
		case v > c:
			dst[i] = v - c
		case v < -c:
			dst[i] = v + c
		case v == v:
			dst[i] = 0
		default:
			dst[i] = v
		}
	}
}

// Dot is Σ x·y in float64; the products are exact for float32.
func Dot[T Float](x, y []T) float64 {
	same(len(x), len(y))
	var lane [Lanes]float64
	i := 0
	if short[T]() {
		i = dot32(f32(x), f32(y), &lane)
	}
	for ; i < len(x); i++ {
		lane[i%Lanes] += float64(float64(x[i]) * float64(y[i]))
	}
	return fold(&lane)
}

// Sum is Σ x in float64.
func Sum[T Float](x []T) float64 {
	var lane [Lanes]float64
	i := 0
	if short[T]() {
		i = sum32(f32(x), &lane)
	}
	for ; i < len(x); i++ {
		lane[i%Lanes] += float64(x[i])
	}
	return fold(&lane)
}

// MaxAbs is the greatest |x|, at least 0; NaN if any x is.
func MaxAbs[T Float](x []T) float64 {
	top, done := 0.0, 0
	if short[T]() {
		var lane [widest]uint32
		done = maxAbs32(f32(x), &lane)
		top = float64(math.Float32frombits(slices.Max(lane[:])))
		if top != top {
			return top
		}
	}
	for _, v := range x[done:] {
		if a := math.Abs(float64(v)); a > top || a != a {
			top = a
			if a != a {
				break
			}
		}
	}
	return top
}

// CountPositive is the number of elements with x·y > 0, the product rounded.
func CountPositive[T Float](x, y []T) int {
	same(len(x), len(y))
	i, n := 0, 0
	if short[T]() {
		var lane [widest]uint32
		i = countPositive32(f32(x), f32(y), &lane)
		for _, c := range lane {
			n += int(c)
		}
	}
	for ; i < len(x); i++ {
		if T(x[i]*y[i]) > 0 {
			n++
		}
	}
	return n
}

// fold adds the lanes: each of the first four to the one four above, then two
// above, then the neighbour.
func fold(l *[Lanes]float64) float64 {
	return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}
