// Package train holds what the built-in jobs train: data sets, the order in
// which ranks see the examples, models with their gradients, and the picture
// of a finished run.
//
// It knows nothing of servers: a worker pulls a parameter vector, asks a
// [Sampler] which examples its rank sees at a step, lets a [Model] turn both
// into a gradient, and pushes that. All of it is deterministic: the same
// parameters, seed, rank and step give the same gradient, bit for bit, on the
// same kind of machine.
//
// Models are dense float32 networks on one core. They exist to exercise and to
// demonstrate the parameter server; larger models belong in a worker of one's
// own.
package train

import (
	"errors"
	"fmt"

	"tributary/layout"
)

// Model computes loss and gradient of one architecture. The parameters are not
// part of it: they arrive with each call as one flat vector in the order of
// Tensors. A model holds workspace, so one value serves one goroutine.
//
// x holds n examples row by row, y their classes, each in [0, Classes) of the
// [Shape] the model was made for. Slices of another length are a programmer's
// mistake and panic. Arguments are only read, but for those a method says it
// overwrites.
//
// A NaN or Inf in parameters or inputs reaches the loss, unless it only meets
// zeros: products skip them, so a NaN weight of a hidden unit that is off for
// all n examples goes unseen.
type Model interface {
	// Name says what the model is, as in "mlp 64-128-10".
	Name() string

	// Tensors describes the parameters, ready for [layout.New]. Offset and
	// Len are set. The caller must not change the slice.
	Tensors() []layout.Tensor

	// Grad overwrites grad with the gradient of the mean cross-entropy over
	// the n examples, in nats, and returns that mean and the number of
	// examples whose likeliest class is the right one. With n = 0 all are 0.
	// It does not allocate once it has seen as large an n, or 64 examples.
	Grad(params, x []float32, y []int32, n int, grad []float32) (loss float64, correct int)

	// Eval is Grad without the gradient.
	Eval(params, x []float32, y []int32, n int) (loss float64, correct int)

	// HVP overwrites out with H·v, the Hessian of the mean cross-entropy over
	// the n examples times a vector of as many elements as there are
	// parameters. It is exact up to rounding, by the R-operator: the
	// derivative along v of every step of forward and back-propagation, for
	// two to three times the work of Grad. ReLU and maximum count as the linear
	// piece that is active, so their second derivative is 0. out is 0 with
	// n = 0; out and v must not overlap. As to allocation see Grad.
	//
	// Pearlmutter, "Fast exact multiplication by the Hessian", Neural
	// Computation 6 (1994).
	HVP(params, v, x []float32, y []int32, n int, out []float32)

	// Scores overwrites out, n×Classes, with the scores (logits) of the n
	// examples, whose softmax the model takes for the classes' probabilities.
	// As to allocation see Grad.
	Scores(params, x []float32, n int, out []float32)

	// SampleLabels overwrites each y[i] with a class drawn from the model's
	// own distribution at example i: the inverse distribution function at
	// u(i), a uniform number in [0, 1). u is called once for each i, in
	// ascending order. With the gradient g by such labels n·g² estimates the
	// diagonal of the Hessian's Gauss-Newton part. With NaN among the scores
	// y[i] is a class, but any. As to allocation see Grad.
	//
	// Liu et al., "Sophia", ICLR 2024, Algorithm 2, arXiv:2305.14342.
	SampleLabels(params, x []float32, n int, u func(i int) float64, y []int32)

	// GradSoft is Grad with a teacher in the place of labels. targets, n×Classes,
	// are the teacher's scores; the loss is the mean over the n examples of
	//
	//	T²·KL(softmax(targets/T) ‖ softmax(scores/T))
	//
	// in nats, with T = temperature, which must be positive and finite. T²
	// keeps the gradient's size when T changes. The loss is 0 where student and
	// teacher agree, its gradient by the scores T·(softmax(scores/T) −
	// softmax(targets/T)) of each example.
	//
	// Hinton, Vinyals and Dean, "Distilling the knowledge in a neural
	// network", 2015, section 2, arXiv:1503.02531.
	GradSoft(params, x, targets []float32, temperature float64, n int, grad []float32) (loss float64)
}

// ModelSpec chooses an architecture.
type ModelSpec struct {
	Kind     string // softmax, sparse, mlp or cnn
	Hidden   []int  // widths of the hidden layers of an mlp, and of the dense part of a cnn
	Channels []int  // of each convolution of a cnn
}

// Shape is what a model must know of its data set.
type Shape struct {
	Dim, Classes  int
	Height, Width int // of images, Height·Width = Dim; 0 for other data
}

// ErrModel is wrapped by every error of [NewModel].
var ErrModel = errors.New("bad model")

const (
	maxWidth       = 1 << 20
	maxModelParams = 1 << 28 // 1 GiB of float32
)

// NewModel makes the model that spec describes for data of shape s.
//
//   - softmax: one dense layer, the classes' scores being linear in x.
//   - sparse: softmax with the weights of each feature in a row of their own,
//     "table.weight" of Dim×Classes; the model is a [RowSparse].
//   - mlp: dense layers with ReLU between them.
//   - cnn: for each channel count a 3×3 convolution with padding 1, ReLU and a
//     2×2 maximum; then an mlp, of one layer unless Hidden is given.
//
// Weights and biases start uniform in ±1/√fan-in, PyTorch's default. Biases
// are exempt from weight decay.
func NewModel(spec ModelSpec, s Shape) (Model, error) {
	if err := spec.check(s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, err)
	}
	b := builder{c: 1, h: s.Height, w: s.Width}
	if spec.Kind == "sparse" {
		if err := b.tabulate(s.Dim, s.Classes); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrModel, err)
		}
		return &sparse{b.network(spec, s), make([]bool, s.Dim)}, nil
	}
	for i, c := range spec.Channels {
		if err := b.convolve(i+1, c); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrModel, err)
		}
	}
	in := s.Dim
	if len(spec.Channels) > 0 {
		in = b.c * b.h * b.w
	}
	for i, width := range append(spec.Hidden[:len(spec.Hidden):len(spec.Hidden)], s.Classes) {
		if err := b.connect(i+1, in, width, i < len(spec.Hidden)); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrModel, err)
		}
		in = width
	}
	m := b.network(spec, s)
	return &m, nil
}

func (m ModelSpec) check(s Shape) error {
	if s.Dim < 1 || s.Classes < 2 {
		return fmt.Errorf("data with %d features and %d classes: want at least 1 and 2", s.Dim, s.Classes)
	}
	switch m.Kind {
	case "softmax", "sparse":
		if len(m.Hidden)+len(m.Channels) > 0 {
			return fmt.Errorf("%s has neither hidden layers nor channels", m.Kind)
		}
	case "mlp":
		if len(m.Hidden) == 0 || len(m.Channels) > 0 {
			return errors.New("mlp wants hidden layers and no channels")
		}
	case "cnn":
		if len(m.Channels) == 0 {
			return errors.New("cnn wants channels")
		}
		if s.Height < 1 || s.Width < 1 || s.Height*s.Width != s.Dim {
			return errors.New("cnn wants images, and these data are not")
		}
	default:
		return fmt.Errorf("kind %q: want softmax, sparse, mlp or cnn", m.Kind)
	}
	for _, w := range append(m.Hidden[:len(m.Hidden):len(m.Hidden)], m.Channels...) {
		if w < 1 || w > maxWidth {
			return fmt.Errorf("layer of width %d: want 1 to %d", w, maxWidth)
		}
	}
	return nil
}

func (m ModelSpec) name(s Shape) string {
	name := fmt.Sprintf("%s %d", m.Kind, s.Dim)
	for _, c := range m.Channels {
		name += fmt.Sprintf("-%dc", c)
	}
	for _, h := range m.Hidden {
		name += fmt.Sprintf("-%d", h)
	}
	return fmt.Sprintf("%s-%d", name, s.Classes)
}

// builder collects layers and lays out their tensors one after the other.
type builder struct {
	layers  []layer
	tensors []layout.Tensor
	params  int
	c, h, w int // channels, height and width after the convolutions so far
}

func (b *builder) convolve(number, channels int) error {
	if b.h < 2 || b.w < 2 {
		return fmt.Errorf("convolution %d: an image of %d×%d cannot be halved", number, b.h, b.w)
	}
	l := &affine{bilinear: &conv{cin: b.c, cout: channels, h: b.h, w: b.w}, rows: channels, area: b.h * b.w, relu: true}
	var err error
	l.weight, l.bias, err = b.place(fmt.Sprintf("conv%d", number), channels, b.c*9, channels, b.c, 3, 3)
	b.layers = append(b.layers, l, &pool{c: channels, h: b.h, w: b.w})
	b.c, b.h, b.w = channels, b.h/2, b.w/2
	return err
}

func (b *builder) connect(number, in, out int, relu bool) error {
	l := &affine{bilinear: &dense{in: in, out: out}, rows: out, area: 1, relu: relu}
	var err error
	l.weight, l.bias, err = b.place(fmt.Sprintf("fc%d", number), out, in, out, in)
	b.layers = append(b.layers, l)
	return err
}

func (b *builder) tabulate(in, out int) error {
	l := &affine{bilinear: &table{in, out}, rows: out, area: 1}
	var err error
	l.weight, l.bias, err = b.place("table", out, in, in, out)
	b.layers = append(b.layers, l)
	return err
}

// place appends the weight of an affine layer, of the given shape, and its
// bias of units elements, each the sum of fanIn products.
func (b *builder) place(name string, units, fanIn int, shape ...int) (weight, bias layout.Range, err error) {
	if units > (maxModelParams-b.params)/(fanIn+1) {
		return weight, bias, fmt.Errorf("%s: more than %d parameters", name, maxModelParams)
	}
	start := layout.Init{Kind: layout.Uniform, Scale: kaiming(fanIn)}
	weight = layout.Range{Lo: b.params, Hi: b.params + units*fanIn}
	bias = layout.Range{Lo: weight.Hi, Hi: weight.Hi + units}
	b.params = bias.Hi
	b.tensors = append(b.tensors,
		layout.Tensor{Name: name + ".weight", Shape: shape, Init: start, Offset: weight.Lo, Len: weight.Len()},
		layout.Tensor{Name: name + ".bias", Shape: []int{units}, NoDecay: true, Init: start, Offset: bias.Lo, Len: units})
	return weight, bias, nil
}

// network is the chain of all layers so far.
func (b *builder) network(spec ModelSpec, s Shape) network {
	return network{
		name: spec.name(s), dim: s.Dim, classes: s.Classes,
		layers: b.layers, tensors: b.tensors, params: b.params,
	}
}
