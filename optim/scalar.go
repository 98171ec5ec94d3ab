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
