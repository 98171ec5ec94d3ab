package optim

import "math"

// The scalars of a step must have the same bits on every platform, so powers
// and cosines here are our own, with every product rounded explicitly: the
// conversion float64(a*b) forbids a fused multiply-add (docs/consistency.md, C18).

// powInt is b to the power t by repeated squaring; powInt(b, 0) is 1.
func powInt(b float64, t uint64) float64 {
	p := 1.0
	for ; t > 0; t >>= 1 {
		if t&1 != 0 {
			p = float64(p * b)
		}
		b = float64(b * b)
	}
	return p
}

// biasCorrection is 1 − bᵗ.
func biasCorrection(b float64, t uint64) float64 { return 1 - powInt(b, t) }

// cosPi is cos(πx) for 0 ≤ x ≤ 1 with an error below 3e-16. The reduction to
// [0, π/4] is exact because both subtractions are.
func cosPi(x float64) float64 {
	if x > 0.5 {
		return -cosPi(1 - x)
	}
	if x > 0.25 {
		return sinSeries(float64(math.Pi * (0.5 - x)))
	}
	return cosSeries(float64(math.Pi * x))
}

// cosSeries is the Taylor series of cos up to y¹⁶, by Horner's rule. On
// [0, π/4] the first omitted term is below 3e-18.
func cosSeries(y float64) float64 {
	z := float64(y * y)
	s := 1.0 / 20922789888000 // 16!
	for _, c := range [...]float64{-1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24, -1.0 / 2, 1} {
		s = float64(s*z) + c
	}
	return s
}

// sinSeries is the Taylor series of sin up to y¹⁷.
func sinSeries(y float64) float64 {
	z := float64(y * y)
	s := 1.0 / 355687428096000 // 17!
	for _, c := range [...]float64{-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6, 1} {
		s = float64(s*z) + c
	}
	return float64(s * y)
}

// powReal is x to the power y for x ≥ 0, with a relative error below
// (2 + |y|)·2⁻⁵²; powReal(x, 0) is 1, and x below 0 or NaN gives NaN. With
// x = 2ᵉ·m and n the integer next to y·log₂x it is 2ⁿ·exp((y·e − n)·ln 2 + y·ln m).
func powReal(x, y float64) float64 {
	switch {
	case y == 0 || x == 1:
		return 1
	case x != x || y != y || x < 0:
		return math.NaN()
	case x == 0 || math.IsInf(x, 1):
		if (x == 0) == (y > 0) {
			return 0
		}
		return math.Inf(1)
	}
	m, exp := math.Frexp(x)
	if m < math.Sqrt2/2 {
		m, exp = m+m, exp-1
	}
	e := float64(exp)
	// The upper half of y times e, which has 11 bits, is exact, and so is what
	// is left of it without n: hence no digit is lost to the size of the power.
	high := float64(float32(y))
	ylogm := float64(y * logNear1(m))
	n := math.Floor(float64(y*e) + float64(ylogm*(1/math.Ln2)) + 0.5)
	if !(n > -1200 && n < 1200) { // beyond the range of float64
		if n > 0 {
			return math.Inf(1)
		}
		return 0
	}
	rest := (float64(high*e) - n) + float64((y-high)*e)
	return math.Ldexp(expSmall(float64(rest*math.Ln2)+ylogm), int(n))
}

// logNear1 is ln m for m within a factor √2 of 1: 2·artanh s with
// s = (m−1)/(m+1), by its series up to s²³, whose first omitted term is below
// 1e-18 of the result.
func logNear1(m float64) float64 {
	s := (m - 1) / (m + 1)
	z := float64(s * s)
	sum := 1.0 / 23
	for _, c := range [...]float64{1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3} {
		sum = float64(sum*z) + c
	}
	return float64(2 * (s + float64(s*float64(z*sum))))
}

// expSmall is eˣ for |x| ≤ ½·ln 2 by its Taylor series up to x¹⁴, whose first
// omitted term is below 2e-19.
func expSmall(x float64) float64 {
	sum := 1.0 / 87178291200 // 14!
	for _, c := range [...]float64{1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1, 1} {
		sum = float64(sum*x) + c
	}
	return sum
}
