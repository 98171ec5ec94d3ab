package train

// conv is a 3×3 convolution with padding 1. An image is cin×h×w before and
// cout×h×w after. W is cout×cin×3×3. As in every deep learning library it is a
// correlation: the kernel is not flipped.
//
// It computes one image at a time: unfolded into a matrix of 9·cin rows of h·w
// elements, the convolution is a product with W.
type conv struct {
	cin, cout, h, w int

	cols, dcols []float32 // 9·cin × h·w
}

func (v *conv) reserve() {
	if v.cols == nil {
		v.cols = workspace(9 * v.cin * v.h * v.w)
		v.dcols = workspace(9 * v.cin * v.h * v.w)
	}
}

func (v *conv) product(w, x, y []float32, n int) {
	area := v.h * v.w
	for i := range n {
		unfold(v.cols, x[i*v.cin*area:(i+1)*v.cin*area], v.cin, v.h, v.w)
		addMul(matrix(y[i*v.cout*area:(i+1)*v.cout*area], v.cout, area), matrix(w, v.cout, 9*v.cin), matrix(v.cols, 9*v.cin, area))
	}
}

// byWeight unfolds each image again: that costs less than keeping nine times
// the input.
func (v *conv) byWeight(dw, x, dy []float32, n int) {
	area := v.h * v.w
	for i := range n {
		unfold(v.cols, x[i*v.cin*area:(i+1)*v.cin*area], v.cin, v.h, v.w)
		addMulT(matrix(dw, v.cout, 9*v.cin), matrix(dy[i*v.cout*area:(i+1)*v.cout*area], v.cout, area), matrix(v.cols, 9*v.cin, area))
	}
}

func (v *conv) byInput(w, dy, dx []float32, n int) {
	area := v.h * v.w
	for i := range n {
		clear(v.dcols)
		addTMul(matrix(v.dcols, 9*v.cin, area), matrix(w, v.cout, 9*v.cin), matrix(dy[i*v.cout*area:(i+1)*v.cout*area], v.cout, area))
		fold(dx[i*v.cin*area:(i+1)*v.cin*area], v.dcols, v.cin, v.h, v.w)
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

// fold is the adjoint of [unfold]: it adds to each element of img all those of
// cols that unfold would have copied from there.
func fold(img, cols []float32, c, h, w int) {
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
// row or column is left out. A pool is never the first layer.
type pool struct {
	c, h, w int
	from    []int32 // for each output, the index of its input in the example
}

func (p *pool) outLen() int { return p.c * (p.h / 2) * (p.w / 2) }

func (p *pool) reserve(n int) { p.from = make([]int32, n*p.outLen()) }

func (p *pool) forward(_, x, y dual, n int) {
	size := p.c * p.h * p.w
	o := 0
	for i := range n {
		in := x.v[i*size : (i+1)*size]
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
					y.v[o], p.from[o] = in[best], int32(best)
					o++
				}
			}
		}
	}
	if y.r == nil {
		return
	}
	for o, k := range p.from[:n*p.outLen()] {
		y.r[o] = x.r[o/p.outLen()*size+int(k)]
	}
}

func (p *pool) backward(_, _, _, dy, dx dual, _ []float32, n int) {
	p.route(dy.v, dx.v, n)
	if dx.r != nil {
		p.route(dy.r, dx.r, n)
	}
}

// route overwrites dx with each element of dy at the maximum it came from.
func (p *pool) route(dy, dx []float32, n int) {
	clear(dx)
	size, out := p.c*p.h*p.w, p.outLen()
	for i := range n {
		in := dx[i*size : (i+1)*size]
		for j, k := range p.from[i*out : (i+1)*out] {
			in[k] += dy[i*out+j]
		}
	}
}
