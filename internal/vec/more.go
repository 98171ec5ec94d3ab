package vec

// ScaleAddConst is dst = a·x + c.
func ScaleAddConst[T Float](dst []T, a T, x []T, c T) {
	same(len(dst), len(x))
	for i := range dst {
		dst[i] = T(a*x[i]) + c
	}
}

// Clamp is dst = x within [lo, hi], for lo ≤ hi; a NaN stays one.
func Clamp[T Float](dst, x []T, lo, hi T) {
	same(len(dst), len(x))
	for i := range dst {
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
	for i := range dst {
		dst[i] = x[i] / (x[i] + c)
	}
}
