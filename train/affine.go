package train

import (
	"gonum.org/v1/gonum/blas/blas32"

	"tributary/layout"
)

// bilinear is the product W∘x of a weight and inputs: what tells one affine
// layer from another. It is linear in W and in x, so that its derivatives are
// products as well. x and dx have n inputs row by row, y and dy n outputs. All
// methods add to their result, which no other argument may overlap.
type bilinear interface {
	// reserve allocates workspace.
	reserve()

	// product does y ← y + W∘x.
	product(w, x, y []float32, n int)

	// byWeight does dw ← dw + ∂⟨dy, W∘x⟩/∂W.
	byWeight(dw, x, dy []float32, n int)

	// byInput does dx ← dx + ∂⟨dy, W∘x⟩/∂x.
	byInput(w, dy, dx []float32, n int)
}

// affine is the layer y = W∘x + b, with ReLU if asked for. Each example of y
// is rows×area, with one element of b a row; weight and bias say where W and b
// lie in the parameter vector.
type affine struct {
	bilinear
	rows, area   int
	relu         bool
	weight, bias layout.Range
}

func (a *affine) outLen() int { return a.rows * a.area }

func (a *affine) reserve(int) { a.bilinear.reserve() }

// forward: R{y} = V∘x + W∘R{x} + R{b}, where ReLU is on, with V = R{W}.
func (a *affine) forward(p, x, y dual, n int) {
	w, b := p.cut(a.weight), p.cut(a.bias)
	a.spread(b.v, y.v)
	a.product(w.v, x.v, y.v, n)
	if a.relu {
		rectify(y.v)
	}
	if p.r == nil {
		return
	}
	a.spread(b.r, y.r)
	a.product(w.r, x.v, y.r, n)
	if x.r != nil {
		a.product(w.v, x.r, y.r, n)
	}
	if a.relu {
		mask(y.r, y.v)
	}
}

// backward applies R to the three results of back-propagation, each a product.
func (a *affine) backward(p, x, y, dy, dx dual, grad []float32, n int) {
	w, dw, db := p.cut(a.weight), grad[a.weight.Lo:a.weight.Hi], grad[a.bias.Lo:a.bias.Hi]
	if a.relu {
		mask(dy.v, y.v)
		if p.r != nil {
			mask(dy.r, y.v)
		}
	}
	if p.r == nil {
		a.byWeight(dw, x.v, dy.v, n)
		a.collect(db, dy.v)
	} else {
		a.byWeight(dw, x.v, dy.r, n)
		if x.r != nil {
			a.byWeight(dw, x.r, dy.v, n)
		}
		a.collect(db, dy.r)
	}
	if dx.v == nil {
		return
	}
	clear(dx.v)
	a.byInput(w.v, dy.v, dx.v, n)
	if p.r != nil {
		clear(dx.r)
		a.byInput(w.v, dy.r, dx.r, n)
		a.byInput(w.r, dy.v, dx.r, n)
	}
}

// spread overwrites each row of y with its bias.
func (a *affine) spread(b, y []float32) {
	for ; len(y) > 0; y = y[a.outLen():] {
		if a.area == 1 {
			copy(y, b)
			continue
		}
		for r, v := range b {
			fill(y[r*a.area:(r+1)*a.area], v)
		}
	}
}

// collect adds the sum of each row of dy to its element of db.
func (a *affine) collect(db, dy []float32) {
	for ; len(dy) > 0; dy = dy[a.outLen():] {
		if a.area == 1 {
			blas32.Axpy(1, blas32.Vector{N: a.rows, Inc: 1, Data: dy}, blas32.Vector{N: a.rows, Inc: 1, Data: db})
			continue
		}
		for r := range db {
			db[r] += sum(dy[r*a.area : (r+1)*a.area])
		}
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

func fill(x []float32, v float32) {
	for i := range x {
		x[i] = v
	}
}

// sum adds in four strands, which is faster and more exact than one.
func sum(x []float32) float32 {
	var s [4]float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		s[0] += x[i]
		s[1] += x[i+1]
		s[2] += x[i+2]
		s[3] += x[i+3]
	}
	for ; i < len(x); i++ {
		s[0] += x[i]
	}
	return (s[0] + s[1]) + (s[2] + s[3])
}
