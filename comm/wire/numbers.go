package wire

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"unsafe"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of a tail.
func Checksum(tail []byte) uint32 { return crc32.Checksum(tail, castagnoli) }

// littleEndian says whether numbers lie in memory as they travel.
var littleEndian = func() bool {
	x := uint16(1)
	return *(*byte)(unsafe.Pointer(&x)) == 1
}()

// Float32s views b as float32 numbers in place. ok is false when the length is
// not a multiple of four, b is not aligned, or this machine is big-endian: then
// the caller copies with [CopyFloat32s].
func Float32s(b []byte) (x []float32, ok bool) {
	if len(b) == 0 {
		return nil, true
	}
	if len(b)%4 != 0 || !littleEndian || uintptr(unsafe.Pointer(&b[0]))%4 != 0 {
		return nil, false
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&b[0])), len(b)/4), true
}

// CopyFloat32s decodes as many numbers as fit both dst and b, and returns how
// many.
func CopyFloat32s(dst []float32, b []byte) int {
	n := min(len(dst), len(b)/4)
	if x, ok := Float32s(b[:4*n]); ok {
		return copy(dst, x)
	}
	for i := range n {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return n
}

// CopyFloat64s is CopyFloat32s for float64 numbers.
func CopyFloat64s(dst []float64, b []byte) int {
	n := min(len(dst), len(b)/8)
	for i := range n {
		dst[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return n
}

// Bytes32 returns x as it travels: a view of x's memory on little-endian
// machines, else a converted copy.
func Bytes32(x []float32) []byte {
	if len(x) == 0 {
		return nil
	}
	if littleEndian {
		return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*len(x))
	}
	b := make([]byte, 0, 4*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

// Bytes64 is Bytes32 for float64 numbers.
func Bytes64(x []float64) []byte {
	if len(x) == 0 {
		return nil
	}
	if littleEndian {
		return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 8*len(x))
	}
	b := make([]byte, 0, 8*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return b
}

// AllFinite says whether x holds neither NaN nor Inf: no exponent is all ones.
// Adding one to an all-ones exponent carries into the sign's place, so eight
// numbers are tested with one branch.
func AllFinite(x []float32) bool {
	const mask, one = 0x7f800000, 0x00800000
	for len(x) >= 8 {
		v := x[:8:8]
		c := math.Float32bits(v[0])&mask + one
		c |= math.Float32bits(v[1])&mask + one
		c |= math.Float32bits(v[2])&mask + one
		c |= math.Float32bits(v[3])&mask + one
		c |= math.Float32bits(v[4])&mask + one
		c |= math.Float32bits(v[5])&mask + one
		c |= math.Float32bits(v[6])&mask + one
		c |= math.Float32bits(v[7])&mask + one
		if c&0x80000000 != 0 {
			return false
		}
		x = x[8:]
	}
	for _, v := range x {
		if math.Float32bits(v)&mask == mask {
			return false
		}
	}
	return true
}
