package train

import (
	"hash/fnv"
	"math"
	"slices"

	"tributary/internal/rng"
	"tributary/layout"
)

// twin is the loss of a model in float64, by the definitions and with no
// regard for speed: an oracle for loss and, by differences, for gradients.
type twin struct {
	spec  ModelSpec
	shape Shape
}

// pieces names the linear piece of each ReLU and maximum that is active on the
// examples: two points of equal pieces have, in all likelihood, no kink
// between them.
func (t twin) pieces(params []float64, x []float32) uint64 {
	hash := fnv.New64a()
	for ; len(x) > 0; x = x[t.shape.Dim:] {
		t.trace(params, x[:t.shape.Dim], func(active int) { hash.Write([]byte{byte(active)}) })
	}
	return hash.Sum64()
}

// loss is the mean cross-entropy and the number of right answers.
func (t twin) loss(params []float64, x []float32, y []int32) (mean float64, correct int) {
	for i, label := range y {
		z := t.scores(params, x[i*t.shape.Dim:(i+1)*t.shape.Dim])
		best, total := 0, 0.0
		for j, v := range z {
			if v > z[best] {
				best = j
			}
			total += math.Exp(v)
		}
		mean += math.Log(total) - z[label]
		if best == int(label) {
			correct++
		}
	}
	return mean / float64(len(y)), correct
}

func (t twin) scores(params []float64, example []float32) []float64 {
	return t.trace(params, example, func(int) {})
}

// trace is scores and calls active with the piece of every unit.
func (t twin) trace(params []float64, example []float32, active func(int)) []float64 {
	x := make([]float64, len(example))
	for i, v := range example {
		x[i] = float64(v)
	}
	take := func(n int) []float64 {
		out := params[:n]
		params = params[n:]
		return out
	}
	cin, h, w := 1, t.shape.Height, t.shape.Width
	for _, cout := range t.spec.Channels {
		x = twinReLU(twinConv(x, take(cout*cin*9), take(cout), cin, cout, h, w), active)
		x = twinPool(x, cout, h, w, active)
		cin, h, w = cout, h/2, w/2
	}
	for _, width := range t.spec.Hidden {
		x = twinReLU(twinDense(x, take(width*len(x)), take(width)), active)
	}
	weight, bias := take(t.shape.Classes*len(x)), take(t.shape.Classes)
	if t.spec.Kind == "sparse" {
		weight = transposed(weight, len(x), t.shape.Classes)
	}
	out := twinDense(x, weight, bias)
	if len(params) != 0 {
		panic("parameters left over")
	}
	return out
}

func twinDense(x, weight, bias []float64) []float64 {
	y := make([]float64, len(bias))
	for o := range y {
		y[o] = bias[o]
		for i, v := range x {
			y[o] += weight[o*len(x)+i] * v
		}
	}
	return y
}

// transposed is the transpose of a rows×cols matrix.
func transposed[T any](x []T, rows, cols int) (out []T) {
	for j := range cols {
		for i := range rows {
			out = append(out, x[i*cols+j])
		}
	}
	return out
}

func twinReLU(x []float64, active func(int)) []float64 {
	for i, v := range x {
		if x[i] = max(v, 0); v > 0 {
			active(1)
		} else {
			active(0)
		}
	}
	return x
}

func twinConv(x, weight, bias []float64, cin, cout, h, w int) []float64 {
	y := make([]float64, cout*h*w)
	for o := range cout {
		for r := range h {
			for s := range w {
				v := bias[o]
				for c := range cin {
					for ky := range 3 {
						for kx := range 3 {
							if a, b := r+ky-1, s+kx-1; a >= 0 && a < h && b >= 0 && b < w {
								v += weight[((o*cin+c)*3+ky)*3+kx] * x[(c*h+a)*w+b]
							}
						}
					}
				}
				y[(o*h+r)*w+s] = v
			}
		}
	}
	return y
}

func twinPool(x []float64, c, h, w int, active func(int)) []float64 {
	var y []float64
	for ch := range c {
		for r := 0; r+1 < h; r += 2 {
			for s := 0; s+1 < w; s += 2 {
				at := (ch*h+r)*w + s
				square := []float64{x[at], x[at+1], x[at+w], x[at+w+1]}
				y = append(y, slices.Max(square))
				active(slices.Index(square, slices.Max(square)))
			}
		}
	}
	return y
}

// start returns the initial parameters of m.
func start(m Model, seed uint64) []float32 {
	l, err := layout.New(m.Tensors(), 0)
	if err != nil {
		panic(err)
	}
	p := make([]float32, l.P)
	l.InitParams(seed, layout.Range{Lo: 0, Hi: l.P}, p)
	return p
}

// noise returns n examples drawn at random, a third of the features being 0 as
// in images.
func noise(s Shape, n int, seed uint64) (x []float32, y []int32) {
	k := rng.New(seed, "noise")
	x, y = make([]float32, n*s.Dim), make([]int32, n)
	for i := range x {
		x[i] = float32(max(0, 1.5*k.Float64(uint64(i))-0.5))
	}
	for i := range y {
		y[i] = int32(k.With(1).IntN(uint64(i), s.Classes))
	}
	return x, y
}

func widen(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}
