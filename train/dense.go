package train

import (
	"gonum.org/v1/gonum/blas/blas32"

	"tributary/layout"
)

// dense is y = x·Wᵀ + b, with ReLU if asked for. W is out×in, b has length
// out; weight and bias say where they lie in the parameter vector.
type dense struct {
	in, out      int
	relu         bool
	weight, bias layout.Range

	wt []float32 // Wᵀ, in×out
}

func (d *dense) outLen() int { return d.out }

func (d *dense) reserve(int) {
	if d.wt == nil {
		d.wt = workspace(d.in * d.out)
	}
}

// forward transposes W first: the product with Wᵀ itself would be a sum of dot
// products, whose bits depend on where the parameters lie in memory (see
// [addMulT]).
func (d *dense) forward(params, x, y []float32, n int) {
	transpose(d.wt, params[d.weight.Lo:d.weight.Hi], d.out, d.in)
	b := params[d.bias.Lo:d.bias.Hi]
	for i := range n {
		copy(y[i*d.out:(i+1)*d.out], b)
	}
	addMul(matrix(y, n, d.out), matrix(x, n, d.in), matrix(d.wt, d.in, d.out))
	if d.relu {
		rectify(y)
	}
}

// backward: dW += dyᵀ·x, db += Σ dy, dx = dy·W.
func (d *dense) backward(params, grad, x, y, dy, dx []float32, n int) {
	if d.relu {
		mask(dy, y)
	}
	by := matrix(dy, n, d.out)
	addTMul(matrix(grad[d.weight.Lo:d.weight.Hi], d.out, d.in), by, matrix(x, n, d.in))
	one := blas32.Vector{N: d.out, Inc: 1, Data: grad[d.bias.Lo:d.bias.Hi]}
	for i := range n {
		blas32.Axpy(1, blas32.Vector{N: d.out, Inc: 1, Data: dy[i*d.out : (i+1)*d.out]}, one)
	}
	if dx != nil {
		clear(dx)
		addMul(matrix(dx, n, d.in), by, matrix(params[d.weight.Lo:d.weight.Hi], d.out, d.in))
	}
}

// rectify is ReLU in place. A NaN stays, so that it reaches the loss.
func rectify(y []float32) {
	for i, v := range y {
		if v < 0 {
			y[i] = 0
		}
	}
}

// mask is the derivative of ReLU in place: dy becomes 0 where the output y is
// 0.
func mask(dy, y []float32) {
	for i, v := range y {
		if v == 0 {
			dy[i] = 0
		}
	}
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
