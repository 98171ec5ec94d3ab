package train

import (
	"tributary/layout"
)

// RowSparse is implemented by models that can tell where the gradient of a
// batch is not 0 before they compute it, so that only those rows of a large
// table need to travel. So far that is the kind "sparse".
type RowSparse interface {
	// Touched appends to dst the runs of the parameter vector outside of
	// which the gradient of any loss over the n examples is 0: in ascending
	// order, without overlap, and merged where one ends at the start of the
	// next. There are none with n = 0. It does not allocate but for dst.
	Touched(x []float32, n int, dst []layout.Range) []layout.Range
}

// sparse is softmax regression with one row of its table for each feature. The
// row of a feature that is 0 in all examples of a batch is neither read nor
// does it have a gradient. Data are sparse after scaling if they were before
// and had no negative values: [Source.Load] maps a feature's minimum to 0.
type sparse struct {
	network
	seen []bool // workspace of Touched, one for each feature
}

// Touched implements [RowSparse].
func (m *sparse) Touched(x []float32, n int, dst []layout.Range) []layout.Range {
	want("inputs", len(x), n*m.dim)
	if n == 0 {
		return dst
	}
	clear(m.seen)
	for ; len(x) > 0; x = x[m.dim:] {
		for f, v := range x[:m.dim] {
			if v != 0 {
				m.seen[f] = true
			}
		}
	}
	first := len(dst)
	add := func(r layout.Range) {
		if last := len(dst) - 1; last >= first && dst[last].Hi == r.Lo {
			dst[last].Hi = r.Hi
		} else {
			dst = append(dst, r)
		}
	}
	for f, seen := range m.seen {
		if seen {
			add(layout.Range{Lo: f * m.classes, Hi: (f + 1) * m.classes})
		}
	}
	add(layout.Range{Lo: m.dim * m.classes, Hi: m.params})
	return dst
}

// table is the product x·W, with W in×out: what [dense] does, but the weights
// of one input lie together. Products skip the inputs that are 0.
type table struct{ in, out int }

func (t *table) reserve() {}

func (t *table) product(w, x, y []float32, n int) {
	addMul(matrix(y, n, t.out), matrix(x, n, t.in), matrix(w, t.in, t.out))
}

func (t *table) byWeight(dw, x, dy []float32, n int) {
	addTMul(matrix(dw, t.in, t.out), matrix(x, n, t.in), matrix(dy, n, t.out))
}

func (t *table) byInput(w, dy, dx []float32, n int) {
	for i := range n {
		for f := range t.in {
			for c, v := range w[f*t.out : (f+1)*t.out] {
				dx[i*t.in+f] += float32(v * dy[i*t.out+c])
			}
		}
	}
}
