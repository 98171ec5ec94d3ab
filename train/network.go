package train

import (
	"fmt"
	"math"

	"tributary/layout"
)

// chunk is the number of examples computed at a time. A larger n is cut, so
// that evaluating a whole data set needs no more memory than a batch, and that
// every matrix has few enough rows for [addMul].
const chunk = 64

// dual is a quantity v and, in a Hessian-vector product, its derivative along
// the direction in question: R{v} in Pearlmutter's notation. r is nil outside
// of such products, and for what does not depend on the parameters.
type dual struct{ v, r []float32 }

// cut is the given part of d.
func (d dual) cut(part layout.Range) dual {
	d.v = d.v[part.Lo:part.Hi]
	if d.r != nil {
		d.r = d.r[part.Lo:part.Hi]
	}
	return d
}

// layer is one step of a network. x and dx have n·(length of an input)
// elements, y and dy n·outLen(), all row by row; p is all parameters. With
// p.r every method computes derivatives along p.r as well. All have an r then
// but for the first layer's x.
type layer interface {
	// outLen is the number of elements an example has after the layer.
	outLen() int

	// reserve allocates the layer's workspace for n examples.
	reserve(n int)

	// forward overwrites y.
	forward(p, x, y dual, n int)

	// backward overwrites dx, unless dx.v is nil, and adds to the layer's part
	// of grad the gradient, or with p.r its derivative. It follows forward on
	// the same p, x and y, and may overwrite dy.
	backward(p, x, y, dy, dx dual, grad []float32, n int)
}

// network is a chain of layers followed by the cross-entropy of a softmax.
type network struct {
	name         string
	dim, classes int
	layers       []layer
	tensors      []layout.Tensor
	params       int

	// Workspace for room examples: what each layer puts out, and the gradient
	// of the loss by it. Each r is nil until the first Hessian-vector product.
	room    int
	act, by []dual
}

// Name implements [Model].
func (m *network) Name() string { return m.name }

// Tensors implements [Model].
func (m *network) Tensors() []layout.Tensor { return m.tensors }

// Grad implements [Model].
func (m *network) Grad(params, x []float32, y []int32, n int, grad []float32) (loss float64, correct int) {
	want("elements of the gradient", len(grad), m.params)
	clear(grad)
	return m.crossEntropy(params, x, y, n, grad)
}

// Eval implements [Model].
func (m *network) Eval(params, x []float32, y []int32, n int) (loss float64, correct int) {
	return m.crossEntropy(params, x, y, n, nil)
}

// crossEntropy is Grad or, with a nil grad, Eval.
func (m *network) crossEntropy(params, x []float32, y []int32, n int, grad []float32) (loss float64, correct int) {
	want("labels", len(y), n)
	m.run(dual{v: params}, x, n, grad, func(lo, hi int, scores, by dual) {
		l, c := crossEntropy(scores.v, y[lo:hi], m.classes, by.v, 1/float64(n))
		loss += l
		correct += c
	})
	return loss / math.Max(1, float64(n)), correct
}

// HVP implements [Model].
func (m *network) HVP(params, v, x []float32, y []int32, n int, out []float32) {
	want("elements of the vector", len(v), m.params)
	want("elements of the product", len(out), m.params)
	want("labels", len(y), n)
	clear(out)
	m.run(dual{params, v}, x, n, out, func(lo, hi int, scores, by dual) {
		crossEntropy(scores.v, y[lo:hi], m.classes, by.v, 1/float64(n))
		softmaxAlong(scores, m.classes, by.r, 1/float64(n))
	})
}

// run goes through the n examples chunk by chunk. For each chunk top gets the
// numbers of its examples, from lo to hi, and their scores. Unless grad is nil
// top must overwrite by with the gradient of the loss by the scores, from
// where it is propagated back and added to grad. With p.r all have derivatives
// along it, and grad gets the gradient's.
func (m *network) run(p dual, x []float32, n int, grad []float32, top func(lo, hi int, scores, by dual)) {
	want("parameters", len(p.v), m.params)
	want("inputs", len(x), n*m.dim)
	m.reserve(min(n, chunk), p.r != nil)
	for lo := 0; lo < n; lo += chunk {
		hi := min(lo+chunk, n)
		xs := dual{v: x[lo*m.dim : hi*m.dim]}
		scores, by := m.forward(p, xs, hi-lo), dual{}
		if grad == nil {
			top(lo, hi, scores, by)
			continue
		}
		by = m.rows(m.by, len(m.layers)-1, hi-lo, p)
		top(lo, hi, scores, by)
		m.backward(p, xs, grad, hi-lo)
	}
}

// want panics unless a slice has the length it must have.
func want(what string, got, want int) {
	if got != want {
		panic(fmt.Sprintf("train: %d %s, want %d", got, what, want))
	}
}

// reserve makes room for n examples, and for derivatives if along is true. The
// workspaces are rounded up to 32 elements, see [addMulT].
func (m *network) reserve(n int, along bool) {
	if n > m.room {
		m.room, m.act, m.by = n, make([]dual, len(m.layers)), make([]dual, len(m.layers))
		for i, l := range m.layers {
			m.act[i].v, m.by[i].v = workspace(n*l.outLen()), workspace(n*l.outLen())
			l.reserve(n)
		}
	}
	if along && m.room > 0 && m.act[0].r == nil {
		for i, l := range m.layers {
			m.act[i].r, m.by[i].r = workspace(m.room*l.outLen()), workspace(m.room*l.outLen())
		}
	}
}

// rows is the part of layer i's workspace that n examples take, with
// derivatives only if p has some.
func (m *network) rows(work []dual, i, n int, p dual) dual {
	d := work[i]
	if p.r == nil {
		d.r = nil
	}
	return d.cut(layout.Range{Hi: n * m.layers[i].outLen()})
}

// forward returns the scores of n examples, n×classes.
func (m *network) forward(p, x dual, n int) dual {
	for i, l := range m.layers {
		y := m.rows(m.act, i, n, p)
		l.forward(p, x, y, n)
		x = y
	}
	return x
}

func (m *network) backward(p, x dual, grad []float32, n int) {
	for i := len(m.layers) - 1; i >= 0; i-- {
		in, dx := x, dual{}
		if i > 0 {
			in, dx = m.rows(m.act, i-1, n, p), m.rows(m.by, i-1, n, p)
		}
		m.layers[i].backward(p, in, m.rows(m.act, i, n, p), m.rows(m.by, i, n, p), dx, grad, n)
	}
}

// kaiming is half the width of the interval that weights with fanIn inputs are
// drawn from. He et al., "Delving deep into rectifiers", ICCV 2015, with the
// gain of 1/√3 that PyTorch uses for its linear and convolution layers.
func kaiming(fanIn int) float64 { return 1 / math.Sqrt(float64(fanIn)) }
