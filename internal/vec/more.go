package vec

// ScaleAddConst is dst = a·x + c.
func ScaleAddConst[T Float](dst []T, a T, x []T, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = scaleAddConst32(f32(dst), f32(x), float32(a), float32(c))
	}
	for ; i < len(dst); i++ {
		dst[i] = T(a*x[i]) + c
	}
}

// Clamp is dst = x within [lo, hi], for lo ≤ hi; a NaN stays one.
func Clamp[T Float](dst, x []T, lo, hi T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = clamp32(f32(dst), f32(x), float32(lo), float32(hi))
	}
	for ; i < len(dst); i++ {
		v := x[i]
		if v > hi {
			v = hi
		}
		if v < lo {
			v = lo
		}
		dst[i] = v
	}
}

// Saturate is dst = x/(x + c): how far x stands above c, from 0 to 1.
func Saturate[T Float](dst, x []T, c T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = saturate32(f32(dst), f32(x), float32(c))
	}
	for ; i < len(dst); i++ {
		dst[i] = x[i] / (x[i] + c)
	}
}

// AddSquares is dst = dst + x², in float64, in which the squares of float32 are
// exact.
func AddSquares[T Float](dst []float64, x []T) {
	same(len(dst), len(x))
	i := 0
	if short[T]() {
		i = addSquares32(dst, f32(x))
	}
	for ; i < len(x); i++ {
		dst[i] += float64(float64(x[i]) * float64(x[i]))
	}
}
