package optim

import (
	"math"

	"tributary/internal/vec"
)

// newtonSchulz finds the orthogonal factor of matrices, roughly: U·Vᵀ of
// G = U·Σ·Vᵀ, with singular values between about 0.7 and 1.2 in place of ones.
// With X = G/(‖G‖ + 1e-7), transposed if that makes it wide, it does five times
//
//	A = X·Xᵀ,  X ← a·X + (b·A + c·A·A)·X
//
// in the precision of T. Every element of a product is summed up in ascending
// order of the inner index, whatever the blocks, without fused operations; so the
// bits are the same on every server.
//
// The zero value is ready for use. It keeps its memory from call to call, which
// is about three times that of the matrix, and allocates only for one that is
// larger than all before.
//
// Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
// which has the coefficients; KellerJordan/Muon muon.py, in bfloat16 there.
type newtonSchulz[T Float] struct {
	x, y, t []T // X, the next X, and Xᵀ
	a, aa   []T // A; A·A
	rows    [][]T
	weights []float64
}

const (
	newtonA     = 3.4445
	newtonB     = -4.7750
	newtonC     = 2.0315
	newtonSteps = 5
	newtonEps   = 1e-7
)

// newtonCols is how many columns of a product are computed at a time: so short
// pieces of the right factor stay in cache while all rows of the left go by.
const newtonCols = 256

// run computes the factor of g, which is rows × cols and row-major. The result
// has the same shape and is valid until the next call; g stays.
func (ns *newtonSchulz[T]) run(g []float64, rows, cols int) []T {
	wide := rows <= cols
	m, n := min(rows, cols), max(rows, cols)
	ns.grow(m, n)
	norm := math.Sqrt(vec.Dot(g, g)) + newtonEps
	x, y := ns.x[:m*n], ns.y[:m*n]
	for i, v := range g {
		at := i
		if !wide {
			at = i%cols*rows + i/cols
		}
		x[at] = T(v / norm)
	}
	a, aa, t := ns.a[:m*m], ns.aa[:m*m], ns.t[:m*n]
	for range newtonSteps {
		transpose(t, x, m, n)
		ns.symmetric(a, x, t, m, n)
		ns.symmetric(aa, a, a, m, m)
		vec.Axpby(a, newtonB, a, newtonC, aa)
		// The unit matrix times a joins b·A + c·A·A, which saves a sweep.
		for i := 0; i < m*m; i += m + 1 {
			a[i] += newtonA
		}
		ns.product(y, a, x, m, m, n)
		x, y = y, x
	}
	if wide {
		return x
	}
	transpose(t, x, m, n)
	return t
}

// grow makes room for a matrix of m × n.
func (ns *newtonSchulz[T]) grow(m, n int) {
	if cap(ns.x) < m*n {
		ns.x, ns.y, ns.t = make([]T, m*n), make([]T, m*n), make([]T, m*n)
	}
	if cap(ns.a) < m*m {
		ns.a, ns.aa = make([]T, m*m), make([]T, m*m)
	}
	if cap(ns.rows) < n {
		ns.rows, ns.weights = make([][]T, n), make([]float64, n)
	}
}

// product is dst = x·y, of m × p and p × n.
func (ns *newtonSchulz[T]) product(dst, x, y []T, m, p, n int) {
	for lo := 0; lo < n; lo += newtonCols {
		ns.columns(dst, x, y, m, p, n, lo, min(lo+newtonCols, n))
	}
}

// symmetric is product with m = n where dst is known to be symmetric, as are the
// products here, bit by bit: what lies on the left of the blocks on the diagonal
// is copied from the right.
func (ns *newtonSchulz[T]) symmetric(dst, x, y []T, m, p int) {
	for lo := 0; lo < m; lo += newtonCols {
		hi := min(lo+newtonCols, m)
		ns.columns(dst, x, y, hi, p, m, lo, hi)
	}
	for i := newtonCols; i < m; i++ {
		for j := range i / newtonCols * newtonCols {
			dst[i*m+j] = dst[j*m+i]
		}
	}
}

// columns computes columns lo to hi−1 of the first m rows of dst = x·y, whose
// rows have n elements, and those of x p.
func (ns *newtonSchulz[T]) columns(dst, x, y []T, m, p, n, lo, hi int) {
	rows, weights := ns.rows[:p], ns.weights[:p]
	for k := range rows {
		rows[k] = y[k*n+lo : k*n+hi]
	}
	for i := range m {
		for k, v := range x[i*p : (i+1)*p] {
			weights[k] = float64(v)
		}
		vec.Combine(dst[i*n+lo:i*n+hi], rows, weights)
	}
}

// transpose is dst = xᵀ of an x of m × n, in blocks that fit the cache.
func transpose[T Float](dst, x []T, m, n int) {
	const block = 32
	for i0 := 0; i0 < m; i0 += block {
		for j0 := 0; j0 < n; j0 += block {
			for i := i0; i < min(i0+block, m); i++ {
				for j := j0; j < min(j0+block, n); j++ {
					dst[j*m+i] = x[i*n+j]
				}
			}
		}
	}
}
