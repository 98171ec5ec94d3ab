package shard

import "tributary/comm/wire"

// viewHalf views little-endian bytes as bfloat16 numbers, in place where
// alignment and byte order allow it.
func viewHalf(b []byte) []uint16 {
	if x, ok := wire.Halves(b); ok {
		return x
	}
	x := make([]uint16, len(b)/2)
	wire.CopyHalves(x, b)
	return x
}

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
