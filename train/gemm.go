package train

import (
	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas32"
)

// gonum multiplies matrices in blocks of 64×64 and starts goroutines, which
// allocates, once the product has four blocks. Tiles of at most three blocks
// keep it on one goroutine; their depth keeps a tile of each factor in the
// cache. Tiles depend on the shapes alone, and so do the bits of the result.
const (
	tileRows  = 64
	tileCols  = 192
	tileDepth = 128
)

// matrix is data as a rows×cols matrix, row by row without gaps.
func matrix(data []float32, rows, cols int) blas32.General {
	return blas32.General{Rows: rows, Cols: cols, Stride: cols, Data: data}
}

// workspace allocates n elements on a 16-byte boundary, which the Go runtime
// gives to every allocation of a multiple of 32 elements.
func workspace(n int) []float32 {
	return make([]float32, (n+31)&^31)
}

// addMul does C ← C + A·B. It skips elements of A that are 0, so an infinite
// or NaN element of B that only meets zeros is not seen.
func addMul(c, a, b blas32.General) {
	gemm(blas.NoTrans, blas.NoTrans, c, a, b, a.Cols)
}

// addTMul does C ← C + Aᵀ·B, with the remark at [addMul].
func addTMul(c, a, b blas32.General) {
	gemm(blas.Trans, blas.NoTrans, c, a, b, a.Rows)
}

// addMulT does C ← C + A·Bᵀ. gonum computes this one as dot products that
// start at the first 16-byte boundary in B: the same numbers at another
// address give other bits. So B must lie in a [workspace].
func addMulT(c, a, b blas32.General) {
	gemm(blas.NoTrans, blas.Trans, c, a, b, a.Cols)
}

func gemm(ta, tb blas.Transpose, c, a, b blas32.General, depth int) {
	for i := 0; i < c.Rows; i += tileRows {
		m := min(tileRows, c.Rows-i)
		for j := 0; j < c.Cols; j += tileCols {
			n := min(tileCols, c.Cols-j)
			for l := 0; l < depth; l += tileDepth {
				k := min(tileDepth, depth-l)
				blas32.Gemm(ta, tb, 1, part(ta, a, i, l, m, k), part(tb, b, l, j, k, n), 1,
					part(blas.NoTrans, c, i, j, m, n))
			}
		}
	}
}

// part is the r×s part of m, or of its transpose, that starts at row i and
// column j.
func part(t blas.Transpose, m blas32.General, i, j, r, s int) blas32.General {
	if t == blas.Trans {
		i, j, r, s = j, i, s, r
	}
	return blas32.General{Rows: r, Cols: s, Stride: m.Stride, Data: m.Data[i*m.Stride+j : (i+r-1)*m.Stride+j+s]}
}
