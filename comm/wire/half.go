package wire

import (
	"encoding/binary"
	"math"

	"tributary/internal/vec"
)

// Half-precision numbers are bfloat16: the upper half of a float32.

// Halves is [Float32s] for bfloat16 numbers.
func Halves(b []byte) (x []uint16, ok bool) { return view[uint16](b) }

// CopyHalves is [CopyFloat32s] for bfloat16 numbers.
func CopyHalves(dst []uint16, b []byte) int {
	n := min(len(dst), len(b)/2)
	for i := range n {
		dst[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return n
}

// BytesHalf is [Bytes32] for bfloat16 numbers.
func BytesHalf(x []uint16) []byte {
	if len(x) == 0 {
		return nil
	}
	if littleEndian {
		return rawBytes(x)
	}
	b := make([]byte, 0, 2*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// ToHalf rounds x to bfloat16 numbers: to the nearest, of two as near to the
// one whose last bit is 0. A number beyond the largest bfloat16 becomes Inf, a
// NaN stays one. dst has the length of x.
func ToHalf(dst []uint16, x []float32) { vec.EncodeHalf(dst, x) }

// FromHalf is the value of a bfloat16 number.
func FromHalf(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// FirstNonFiniteHalf is [FirstNonFinite] for bfloat16 numbers.
func FirstNonFiniteHalf(x []uint16) int {
	for i, v := range x {
		if v&0x7f80 == 0x7f80 {
			return i
		}
	}
	return -1
}
