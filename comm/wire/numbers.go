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
func Float32s(b []byte) (x []float32, ok bool) { return view[float32](b) }

// Float64s is Float32s for float64 numbers.
func Float64s(b []byte) (x []float64, ok bool) { return view[float64](b) }

func view[T float32 | float64 | uint16](b []byte) ([]T, bool) {
	if len(b) == 0 {
		return nil, true
	}
	size := int(unsafe.Sizeof(T(0)))
	// The multiple of size, not of the type's alignment: a 32-bit machine wants
	// float64 at multiples of four only.
	if len(b)%size != 0 || !littleEndian || uintptr(unsafe.Pointer(&b[0]))%uintptr(size) != 0 {
		return nil, false
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&b[0])), len(b)/size), true
}

// CopyFloat32s decodes as many numbers as fit both dst and b, and returns how
// many. b need not be aligned; bytes after the last whole number are ignored.
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
	if x, ok := Float64s(b[:8*n]); ok {
		return copy(dst, x)
	}
	for i := range n {
		dst[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return n
}

// Bytes32 returns x as it travels: a view of x's memory on little-endian
// machines, else a converted copy. The result is for reading only.
func Bytes32(x []float32) []byte {
	if len(x) == 0 {
		return nil
	}
	if littleEndian {
		return rawBytes(x)
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
		return rawBytes(x)
	}
	b := make([]byte, 0, 8*len(x))
	for _, v := range x {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return b
}

// rawBytes views x, which is not empty, as it lies in memory.
func rawBytes[T float32 | float64 | uint16](x []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), len(x)*int(unsafe.Sizeof(x[0])))
}

// AllFinite says whether x holds neither NaN nor Inf: no exponent is all ones.
// Adding one to an all-ones exponent carries into the place of the sign, so two
// numbers are tested in one 64-bit word (no carry leaves its half: the masked
// half is at most 7f800000) and sixteen with one branch.
func AllFinite(x []float32) bool {
	const (
		mask = 0x7f8000007f800000
		one  = 0x0080000000800000
		sign = 0x8000000080000000
	)
	if len(x) >= 16 {
		b := rawBytes(x)
		for len(b) >= 64 {
			w := b[:64:64]
			c := binary.NativeEndian.Uint64(w[0:])&mask + one
			c |= binary.NativeEndian.Uint64(w[8:])&mask + one
			c |= binary.NativeEndian.Uint64(w[16:])&mask + one
			c |= binary.NativeEndian.Uint64(w[24:])&mask + one
			c |= binary.NativeEndian.Uint64(w[32:])&mask + one
			c |= binary.NativeEndian.Uint64(w[40:])&mask + one
			c |= binary.NativeEndian.Uint64(w[48:])&mask + one
			c |= binary.NativeEndian.Uint64(w[56:])&mask + one
			if c&sign != 0 {
				return false
			}
			b = b[64:]
		}
		x = x[len(x)&^15:]
	}
	for _, v := range x {
		if math.Float32bits(v)&0x7f800000 == 0x7f800000 {
			return false
		}
	}
	return true
}

// FirstNonFinite is the index of the first NaN or Inf in x, or −1.
func FirstNonFinite(x []float32) int {
	if AllFinite(x) {
		return -1
	}
	for i, v := range x {
		if math.Float32bits(v)&0x7f800000 == 0x7f800000 {
			return i
		}
	}
	return -1
}
