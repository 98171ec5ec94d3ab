package train

import (
	"math"

	"tributary/internal/rng"
	"tributary/layout"
)

// Rademacher fills dst with the elements from lo on of the vector z of random
// signs that belongs to a step: ±1 with even odds, E[z·zᵀ] = 1, so that
// z ∘ (H·z) estimates the diagonal of H. An element is a function of seed,
// step and its place in the parameter vector alone: all ranks and shards see
// parts of the same z, however it is cut.
//
// Hutchinson, "A stochastic estimator of the trace of the influence matrix",
// Communications in Statistics 18 (1989); Bekas, Kokiopoulou and Saad, "An
// estimator for the diagonal of a matrix", Applied Numerical Mathematics 57
// (2007).
func Rademacher(seed, step uint64, lo int, dst []float32) {
	key := rng.New(seed, "hutchinson").With(step)
	for j := 0; j < len(dst); {
		at := uint64(lo + j)
		bits := key.Uint64(at/64) >> (at % 64) // a bit for each element
		for range min(64-int(at%64), len(dst)-j) {
			dst[j] = float32(2*int(bits&1) - 1)
			bits >>= 1
			j++
		}
	}
}

// AbsHessian overwrites dst with the estimate |z ∘ (H·z)| = |H·z| of the
// Hessian's diagonal that AdaHessian takes, given hz = H·z for some z of
// [Rademacher]. In tensors of four dimensions, the kernels of convolutions,
// every element becomes the mean over the last two of them, over which the
// diagonal varies little and the estimate much.
//
// tensors describes the whole vector, with Offset and Len set. hz has one
// element for each parameter and so has dst, which may be hz.
//
// Yao et al., "AdaHessian", AAAI 2021, arXiv:2006.00719.
func AbsHessian(tensors []layout.Tensor, hz, dst []float32) {
	want("elements of the estimate", len(dst), len(hz))
	for i, v := range hz {
		dst[i] = float32(math.Abs(float64(v)))
	}
	for i := range tensors {
		t := &tensors[i]
		if len(t.Shape) != 4 {
			continue
		}
		area := t.Shape[2] * t.Shape[3]
		for lo := t.Offset; lo < t.Offset+t.Len; lo += area {
			kernel, sum := dst[lo:lo+area], 0.0
			for _, v := range kernel {
				sum += float64(v)
			}
			fill(kernel, float32(sum/float64(area)))
		}
	}
}
