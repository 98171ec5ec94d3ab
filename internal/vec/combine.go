package vec

import (
	"fmt"
	"math"
	"unsafe"
)

// group is how many contributions one pass takes.
const group = 16

// Combine is dst = Σ wᵢ·inᵢ over the contributions that are not nil, in their
// order, every product and every sum rounded to T, as are the weights. The
// first product starts the sum, so that one contribution of weight 1 passes
// through with the sign of its zeros; of no contribution dst is 0.
func Combine[T Float](dst []T, in [][]T, w []float64) {
	checkContributions(len(dst), in, w)
	done := 0
	if short[T]() {
		for b := (batch[float32]{}); b.next(*(*[][]float32)(unsafe.Pointer(&in)), w); {
			done = combine32(f32(dst), &b.in, &b.weights, b.k, b.more)
		}
	}
	first := true
	rest := dst[done:]
	for i, x := range in {
		if x == nil {
			continue
		}
		wi, x := T(w[i]), x[done:]
		for j := range rest {
			if v := T(wi * x[j]); first {
				rest[j] = v
			} else {
				rest[j] += v
			}
		}
		first = false
	}
	if first {
		clear(dst)
	}
}

// CombineHalf is [Combine] of contributions in bfloat16.
func CombineHalf[T Float](dst []T, in [][]uint16, w []float64) {
	checkContributions(len(dst), in, w)
	done := 0
	if short[T]() {
		for b := (batch[uint16]{}); b.next(in, w); {
			done = combineHalf32(f32(dst), &b.in, &b.weights, b.k, b.more)
		}
	}
	first := true
	rest := dst[done:]
	for i, x := range in {
		if x == nil {
			continue
		}
		wi, x := T(w[i]), x[done:]
		for j := range rest {
			if v := T(wi * T(fromHalf(x[j]))); first {
				rest[j] = v
			} else {
				rest[j] += v
			}
		}
		first = false
	}
	if first {
		clear(dst)
	}
}

// batch is up to group contributions that the assembly adds in one pass.
type batch[E any] struct {
	in      [group]*E
	weights [group]float32
	k       int // how many they are
	more    int // 1 if the sum continues from an earlier batch
	seen    int // contributions looked at so far
}

// next fills b with the contributions that follow, and says whether there is
// any.
func (b *batch[E]) next(in [][]E, w []float64) bool {
	if b.k > 0 {
		b.k, b.more = 0, 1
	}
	for ; b.seen < len(in) && b.k < group; b.seen++ {
		if x := in[b.seen]; len(x) > 0 {
			b.in[b.k], b.weights[b.k] = &x[0], float32(w[b.seen])
			b.k++
		}
	}
	return b.k > 0
}

func checkContributions[E any](n int, in [][]E, w []float64) {
	if len(in) != len(w) {
		panic(fmt.Sprintf("vec: %d contributions and %d weights", len(in), len(w)))
	}
	for _, x := range in {
		if x != nil {
			same(n, len(x))
		}
	}
}

// DecodeHalf is dst = x of bfloat16 numbers, which are the upper halves of
// float32.
func DecodeHalf(dst []float32, x []uint16) {
	same(len(dst), len(x))
	for i := decodeHalf32(dst, x); i < len(dst); i++ {
		dst[i] = fromHalf(x[i])
	}
}

// EncodeHalf rounds x to bfloat16 numbers: to the nearest, of two as near to
// the one whose last bit is 0. A number beyond the largest bfloat16 becomes
// Inf, a NaN stays one.
func EncodeHalf(dst []uint16, x []float32) {
	same(len(dst), len(x))
	for i := encodeHalf32(dst, x); i < len(dst); i++ {
		dst[i] = toHalf(x[i])
	}
}

func fromHalf(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

func toHalf(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
