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

// layer is one step of a network. x and dx have n·(length of an input)
// elements, y and dy n·outLen(), all row by row.
type layer interface {
	// outLen is the number of elements an example has after the layer.
	outLen() int

	// reserve allocates the layer's workspace for n examples.
	reserve(n int)

	// forward overwrites y.
	forward(params, x, y []float32, n int)

	// backward adds to grad, the whole gradient, and overwrites dx unless it
	// is nil. It follows forward on the same x and y and may overwrite dy.
	backward(params, grad, x, y, dy, dx []float32, n int)
}

// network is a chain of layers followed by the cross-entropy of a softmax.
type network struct {
	name         string
	dim, classes int
	layers       []layer
	tensors      []layout.Tensor
	params       int

	// Workspace for room examples: what each layer puts out, and the
	// gradient of the loss by it.
	room    int
	act, by [][]float32
}

// Name implements [Model].
func (m *network) Name() string { return m.name }

// Tensors implements [Model].
func (m *network) Tensors() []layout.Tensor { return m.tensors }

// Grad implements [Model].
func (m *network) Grad(params, x []float32, y []int32, n int, grad []float32) (float64, int) {
	if len(grad) != m.params {
		panic(fmt.Sprintf("train: gradient of length %d for %d parameters", len(grad), m.params))
	}
	clear(grad)
	return m.run(params, x, y, n, grad)
}

// Eval implements [Model].
func (m *network) Eval(params, x []float32, y []int32, n int) (float64, int) {
	return m.run(params, x, y, n, nil)
}

// run goes through the n examples chunk by chunk and adds to grad unless it is
// nil.
func (m *network) run(params, x []float32, y []int32, n int, grad []float32) (loss float64, correct int) {
	if len(params) != m.params || len(x) != n*m.dim || len(y) != n {
		panic(fmt.Sprintf("train: %d parameters, %d inputs and %d labels: want %d, %d and %d",
			len(params), len(x), len(y), m.params, n*m.dim, n))
	}
	if n == 0 {
		return 0, 0
	}
	m.reserve(min(n, chunk))
	for lo := 0; lo < n; lo += chunk {
		hi := min(lo+chunk, n)
		xs, ys := x[lo*m.dim:hi*m.dim], y[lo:hi]
		scores := m.forward(params, xs, len(ys))
		var by []float32
		if grad != nil {
			by = m.by[len(m.by)-1][:len(scores)]
		}
		l, c := crossEntropy(scores, ys, m.classes, by, 1/float64(n))
		loss += l
		correct += c
		if grad != nil {
			m.backward(params, grad, xs, len(ys))
		}
	}
	return loss / float64(n), correct
}

// reserve makes room for n examples. The workspaces are rounded up to 32
// elements, see [addMulT].
func (m *network) reserve(n int) {
	if n <= m.room {
		return
	}
	m.room, m.act, m.by = n, nil, nil
	for _, l := range m.layers {
		m.act = append(m.act, workspace(n*l.outLen()))
		m.by = append(m.by, workspace(n*l.outLen()))
		l.reserve(n)
	}
}

// forward returns the scores of n examples, n×classes.
func (m *network) forward(params, x []float32, n int) []float32 {
	for i, l := range m.layers {
		y := m.act[i][:n*l.outLen()]
		l.forward(params, x, y, n)
		x = y
	}
	return x
}

func (m *network) backward(params, grad, x []float32, n int) {
	for i := len(m.layers) - 1; i >= 0; i-- {
		l := m.layers[i]
		size := n * l.outLen()
		in, dx := x, []float32(nil)
		if i > 0 {
			k := n * m.layers[i-1].outLen()
			in, dx = m.act[i-1][:k], m.by[i-1][:k]
		}
		l.backward(params, grad, in, m.act[i][:size], m.by[i][:size], dx, n)
	}
}

// crossEntropy returns the sum of −ln softmax(scores)[label] over the rows of
// scores, and how many rows have their greatest score, the first one if there
// are several, at the label. Unless by is nil it overwrites by with scale
// times the gradient of the sum, scale·(softmax(scores) − onehot(label)).
// Sums are float64; the greatest score is subtracted first, so that no
// exponential overflows. A NaN score makes the loss NaN.
func crossEntropy(scores []float32, labels []int32, classes int, by []float32, scale float64) (loss float64, correct int) {
	for i, label := range labels {
		z := scores[i*classes : (i+1)*classes]
		best := 0
		for j, v := range z {
			if v > z[best] {
				best = j
			}
		}
		if best == int(label) {
			correct++
		}
		top, sum := float64(z[best]), 0.0
		for _, v := range z {
			sum += math.Exp(float64(v) - top)
		}
		loss += math.Log(sum) + top - float64(z[label])
		if by == nil {
			continue
		}
		d := by[i*classes : (i+1)*classes]
		for j, v := range z {
			d[j] = float32(scale * math.Exp(float64(v)-top) / sum)
		}
		d[label] = float32(scale * (math.Exp(float64(z[label])-top)/sum - 1))
	}
	return loss, correct
}

// kaiming is half the width of the interval that weights with fanIn inputs are
// drawn from. He et al., "Delving deep into rectifiers", ICCV 2015, with the
// gain of 1/√3 that PyTorch uses for its linear and convolution layers.
func kaiming(fanIn int) float64 { return 1 / math.Sqrt(float64(fanIn)) }
