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
	for i := range dst {
		dst[i] = x[i] + y[i]
	}
}

// Sub is dst = x − y.
func Sub[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = x[i] - y[i]
	}
}

// Mul is dst = x·y.
func Mul[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = x[i] * y[i]
	}
}

// Div is dst = x/y.
func Div[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = x[i] / y[i]
	}
}

// Max is dst = x where x > y, else y: of a NaN and a number it is y.
func Max[T Float](dst, x, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
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
	for i := range dst {
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
	for i := range dst {
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
	for i := range dst {
		dst[i] = a * x[i]
	}
}

// AddConst is dst = x + a.
func AddConst[T Float](dst, x []T, a T) {
	same(len(dst), len(x))
	for i := range dst {
		dst[i] = x[i] + a
	}
}

// AddScaled is dst = x + a·y.
func AddScaled[T Float](dst, x []T, a T, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = x[i] + T(a*y[i])
	}
}

// SubScaled is dst = x − a·y.
func SubScaled[T Float](dst, x []T, a T, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = x[i] - T(a*y[i])
	}
}

// Axpby is dst = a·x + b·y: an exponential moving average with b = 1 − a.
func Axpby[T Float](dst []T, a T, x []T, b T, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = T(a*x[i]) + T(b*y[i])
	}
}

// AxpbySquare is dst = a·x + (b·y)·y: the moving average of a square.
func AxpbySquare[T Float](dst []T, a T, x []T, b T, y []T) {
	same(len(dst), len(x), len(y))
	for i := range dst {
		dst[i] = T(a*x[i]) + T(T(b*y[i])*y[i])
	}
}

// MulAdd is dst = x + y·z.
func MulAdd[T Float](dst, x, y, z []T) {
	same(len(dst), len(x), len(y), len(z))
	for i := range dst {
		dst[i] = x[i] + T(y[i]*z[i])
	}
}

// SubQuotient is dst = x − (a·y)/z: the step of an adaptive rule.
func SubQuotient[T Float](dst, x []T, a T, y, z []T) {
	same(len(dst), len(x), len(y), len(z))
	for i := range dst {
		dst[i] = x[i] - T(a*y[i])/z[i]
	}
}

// Sqrt is dst = √x.
func Sqrt[T Float](dst, x []T) {
	same(len(dst), len(x))
	for i := range dst {
		dst[i] = T(math.Sqrt(float64(x[i])))
	}
}

// RootScaled is dst = √x·a + c: the denominator of an adaptive rule.
func RootScaled[T Float](dst, x []T, a, c T) {
	same(len(dst), len(x))
	for i := range dst {
		dst[i] = T(T(math.Sqrt(float64(x[i])))*a) + c
	}
}

// RootOfScaled is dst = √(x·a) + c.
func RootOfScaled[T Float](dst, x []T, a, c T) {
	same(len(dst), len(x))
	for i := range dst {
		dst[i] = T(math.Sqrt(float64(T(x[i]*a)))) + c
	}
}

// Abs is dst = |x|.
func Abs[T Float](dst, x []T) {
	same(len(dst), len(x))
	for i := range dst {
		dst[i] = T(math.Abs(float64(x[i])))
	}
}

// Sign is dst = −1, 0 or 1 with the sign of x; a zero of either sign gives +0
// and a NaN stays one.
func Sign[T Float](dst, x []T) {
	same(len(dst), len(x))
	for i := range dst {
		switch v := x[i]; {
		case v > 0:
			dst[i] = 1
		case v < 0:
			dst[i] = -1
		case v == 0:
			dst[i] = 0
		default:
			dst[i] = v
		}
	}
}

// Select is dst = x where c > 0, else y.
func Select[T Float](dst, c, x, y []T) {
	same(len(dst), len(c), len(x), len(y))
	for i := range dst {
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
	for i := range dst {
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
	for i := range x {
		lane[i%Lanes] += float64(float64(x[i]) * float64(y[i]))
	}
	return fold(&lane)
}

// Sum is Σ x in float64.
func Sum[T Float](x []T) float64 {
	var lane [Lanes]float64
	for i := range x {
		lane[i%Lanes] += float64(x[i])
	}
	return fold(&lane)
}

// MaxAbs is the greatest |x|, at least 0; NaN if any x is.
func MaxAbs[T Float](x []T) float64 {
	top := 0.0
	for _, v := range x {
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
	n := 0
	for i := range x {
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
