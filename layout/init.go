package layout

import (
	"math"

	"tributary/internal/rng"
)

// InitParams fills dst with the initial parameters of the global range r.
// Every value is a function of (seed, tensor name, element) alone, so it does
// not depend on how the model is sharded. dst has length r.Len().
func (l *Layout) InitParams(seed uint64, r Range, dst []float32) {
	key := rng.New(seed, "init")
	for i := r.Lo; i < r.Hi; {
		t := l.Find(i)
		hi := min(r.Hi, t.Offset+t.Len)
		part := dst[i-r.Lo : hi-r.Lo]
		k, at, scale := key.WithString(t.Name), uint64(i-t.Offset), t.Init.Scale
		for j := range part {
			switch n := at + uint64(j); t.Init.Kind {
			case Constant:
				part[j] = float32(scale)
			case Uniform:
				part[j] = float32(float64(2*k.Float64(n)-1) * scale)
			case Normal:
				part[j] = float32(k.Normal(n) * scale)
			default:
				part[j] = 0
			}
		}
		i = hi
	}
}

// InitNoise fills dst, which holds elements from index at on of tensor t, with
// normal noise of the given deviation for the named slot.
func InitNoise(seed uint64, t *Tensor, slot string, at int, sigma float64, dst []float32) {
	k := rng.New(seed, "slot").WithString(slot).WithString(t.Name)
	for j := range dst {
		dst[j] = float32(k.Normal(uint64(at+j)) * math.Abs(sigma))
	}
}
