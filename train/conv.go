package train

import (
	"tributary/layout"
)

// conv is a 3×3 convolution with padding 1, followed by ReLU. An image is
// cin×h×w before and cout×h×w after. W is cout×cin×3×3. As in every deep
// learning library it is a correlation: the kernel is not flipped.
//
// It computes one image at a time: unfolded into a matrix of 9·cin rows of h·w
// elements, the convolution is a product with W.
type conv struct {
	cin, cout, h, w int
	weight, bias    layout.Range

	cols, dcols []float32 // 9·cin × h·w
}

func (v *conv) outLen() int { return v.cout * v.h * v.w }

func (v *conv) reserve(int) {
	if v.cols == nil {
		v.cols = workspace(9 * v.cin * v.h * v.w)
		v.dcols = workspace(9 * v.cin * v.h * v.w)
	}
}

func (v *conv) forward(params, x, y []float32, n int) {
	area := v.h * v.w
	weight, bias := matrix(params[v.weight.Lo:v.weight.Hi], v.cout, 9*v.cin), params[v.bias.Lo:v.bias.Hi]
	cols := matrix(v.cols, 9*v.cin, area)
	for i := range n {
		in, out := x[i*v.cin*area:(i+1)*v.cin*area], y[i*v.cout*area:(i+1)*v.cout*area]
		for c, b := range bias {
			fill(out[c*area:(c+1)*area], b)
		}
		unfold(v.cols, in, v.cin, v.h, v.w)
		addMul(matrix(out, v.cout, area), weight, cols)
	}
	rectify(y)
}

// backward unfolds each image again: that costs less than keeping nine times
// the input.
func (v *conv) backward(params, grad, x, y, dy, dx []float32, n int) {
	mask(dy, y)
	area := v.h * v.w
	weight := matrix(params[v.weight.Lo:v.weight.Hi], v.cout, 9*v.cin)
	dweight, dbias := matrix(grad[v.weight.Lo:v.weight.Hi], v.cout, 9*v.cin), grad[v.bias.Lo:v.bias.Hi]
	cols, dcols := matrix(v.cols, 9*v.cin, area), matrix(v.dcols, 9*v.cin, area)
	for i := range n {
		out := dy[i*v.cout*area : (i+1)*v.cout*area]
		by := matrix(out, v.cout, area)
		unfold(v.cols, x[i*v.cin*area:(i+1)*v.cin*area], v.cin, v.h, v.w)
		addMulT(dweight, by, cols)
		for c := range dbias {
			dbias[c] += sum(out[c*area : (c+1)*area])
		}
		if dx != nil {
			clear(v.dcols)
			addTMul(dcols, weight, by)
			fold(dx[i*v.cin*area:(i+1)*v.cin*area], v.dcols, v.cin, v.h, v.w)
		}
	}
}

// unfold overwrites cols, 9c × h·w, with the nine shifts of each channel of
// img, c×h×w, by one pixel up to all sides, 0 outside the image:
//
//	cols[9·ch + 3·ky + kx][y·w + x] = img[ch][y+ky−1][x+kx−1]
func unfold(cols, img []float32, c, h, w int) {
	for r := range 9 * c {
		ch, ky, kx := r/9, r/3%3, r%3
		for y := range h {
			dst := cols[r*h*w+y*w:][:w]
			sy := y + ky - 1
			if sy < 0 || sy >= h {
				clear(dst)
				continue
			}
			src := img[(ch*h+sy)*w:][:w]
			switch kx {
			case 0:
				dst[0] = 0
				copy(dst[1:], src)
			case 1:
				copy(dst, src)
			case 2:
				copy(dst, src[1:])
				dst[w-1] = 0
			}
		}
	}
}

// fold is the adjoint of [unfold]: it overwrites img with the sums of all
// elements of cols that unfold would have copied from there.
func fold(img, cols []float32, c, h, w int) {
	clear(img)
	for r := range 9 * c {
		ch, ky, kx := r/9, r/3%3, r%3
		for y := max(0, 1-ky); y < min(h, h+1-ky); y++ {
			dst := img[(ch*h+y+ky-1)*w:][:w]
			src := cols[r*h*w+y*w:][:w]
			switch kx {
			case 0:
				dst, src = dst[:w-1], src[1:]
			case 2:
				dst, src = dst[1:], src[:w-1]
			}
			for i, v := range src {
				dst[i] += v
			}
		}
	}
}

// pool takes the maximum of each 2×2 square of c channels of h×w. An odd last
// row or column is left out.
type pool struct {
	c, h, w int
	from    []int32 // for each output, the index of its input in the example
}

func (p *pool) outLen() int { return p.c * (p.h / 2) * (p.w / 2) }

func (p *pool) reserve(n int) { p.from = make([]int32, n*p.outLen()) }

func (p *pool) forward(_, x, y []float32, n int) {
	size := p.c * p.h * p.w
	o := 0
	for i := range n {
		in := x[i*size : (i+1)*size]
		for ch := range p.c {
			for r := range p.h / 2 {
				for s := range p.w / 2 {
					at := (ch*p.h+2*r)*p.w + 2*s
					best := at
					for _, k := range [...]int{at + 1, at + p.w, at + p.w + 1} {
						// The second condition lets a NaN through to the loss.
						if in[k] > in[best] || in[k] != in[k] {
							best = k
						}
					}
					y[o], p.from[o] = in[best], int32(best)
					o++
				}
			}
		}
	}
}

func (p *pool) backward(_, _, _, _, dy, dx []float32, n int) {
	clear(dx)
	size, out := p.c*p.h*p.w, p.outLen()
	for i := range n {
		in := dx[i*size : (i+1)*size]
		for j, k := range p.from[i*out : (i+1)*out] {
			in[k] += dy[i*out+j]
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
