package shard

import "tributary/comm/wire"

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
