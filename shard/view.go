package shard

import (
	"math"

	"tributary/comm/wire"
)

// viewFloat32 views little-endian bytes as numbers, in place where alignment
// and byte order allow it.
func viewFloat32(b []byte) []float32 {
	if x, ok := wire.Float32s(b); ok {
		return x
	}
	x := make([]float32, len(b)/4)
	wire.CopyFloat32s(x, b)
	return x
}

// firstNonFinite is the index of the first NaN or Inf in x, or −1.
func firstNonFinite(x []float32) int {
	if wire.AllFinite(x) {
		return -1
	}
	for i, v := range x {
		if math.Float32bits(v)&0x7f800000 == 0x7f800000 {
			return i
		}
	}
	return -1
}
