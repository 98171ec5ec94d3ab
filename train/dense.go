package train

// dense is the product x·Wᵀ. W is out×in.
type dense struct {
	in, out int

	wt []float32 // Wᵀ, in×out
}

func (d *dense) reserve() {
	if d.wt == nil {
		d.wt = workspace(d.in * d.out)
	}
}

// product transposes W first: the product with Wᵀ itself would be a sum of dot
// products, whose bits depend on where the parameters lie in memory (see
// [addMulT]).
func (d *dense) product(w, x, y []float32, n int) {
	transpose(d.wt, w, d.out, d.in)
	addMul(matrix(y, n, d.out), matrix(x, n, d.in), matrix(d.wt, d.in, d.out))
}

// byWeight: dW += dyᵀ·x.
func (d *dense) byWeight(dw, x, dy []float32, n int) {
	addTMul(matrix(dw, d.out, d.in), matrix(dy, n, d.out), matrix(x, n, d.in))
}

// byInput: dx += dy·W.
func (d *dense) byInput(w, dy, dx []float32, n int) {
	addMul(matrix(dx, n, d.in), matrix(dy, n, d.out), matrix(w, d.out, d.in))
}

// transpose overwrites dst, cols×rows, with the transpose of src, rows×cols.
func transpose(dst, src []float32, rows, cols int) {
	const side = 16 // one cache line of src a row
	for i0 := 0; i0 < rows; i0 += side {
		for j0 := 0; j0 < cols; j0 += side {
			for i := i0; i < min(i0+side, rows); i++ {
				for j := j0; j < min(j0+side, cols); j++ {
					dst[j*rows+i] = src[i*cols+j]
				}
			}
		}
	}
}
