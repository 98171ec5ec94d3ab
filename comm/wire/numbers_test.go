package wire

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

func TestChecksum(t *testing.T) {
	// The check value of CRC-32C in the catalogue of parametrised CRC algorithms
	// (RFC 3720, appendix B.4 has the same polynomial).
	if got := Checksum([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("Checksum(123456789) = %#x, want 0xe3069283", got)
	}
	if got, want := Checksum([]byte("abc")), crc32.Checksum([]byte("abc"), crc32.MakeTable(crc32.Castagnoli)); got != want {
		t.Errorf("Checksum(abc) = %#x, want %#x", got, want)
	}
}

// bothOrders runs f on this machine and as if it had the other byte order,
// where only copies are allowed.
func bothOrders(t *testing.T, f func(t *testing.T)) {
	t.Run("native", f)
	t.Run("without views", func(t *testing.T) {
		was := littleEndian
		littleEndian = false
		defer func() { littleEndian = was }()
		f(t)
	})
}

func TestNumbersTravel(t *testing.T) {
	x32 := []float32{0, float32(math.Copysign(0, -1)), 1, -2.5, math.MaxFloat32, math.SmallestNonzeroFloat32, float32(math.Inf(1))}
	x64 := []float64{0, 1, -2.5, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(-1)}
	bothOrders(t, func(t *testing.T) {
		for n := range len(x32) + 1 {
			b := Bytes32(x32[:n])
			if len(b) != 4*n {
				t.Fatalf("%d numbers travel as %d bytes", n, len(b))
			}
			for i := range n {
				if got := binary.LittleEndian.Uint32(b[4*i:]); got != math.Float32bits(x32[i]) {
					t.Errorf("%v travels as %#x", x32[i], got)
				}
			}
			for _, off := range []int{0, 1, 2, 4} { // aligned or not
				in := append(make([]byte, off, 64), b...)[off:]
				dst := []float32{9, 9, 9, 9, 9, 9, 9, 9, 9}
				if got := CopyFloat32s(dst[:8], append(in, 1, 2, 3)); got != n || !slices.Equal(dst[:n], x32[:n]) || slices.ContainsFunc(dst[n:], func(v float32) bool { return v != 9 }) {
					t.Errorf("offset %d: CopyFloat32s = %d, %v; want %v and nines", off, got, dst, x32[:n])
				}
				if v, ok := Float32s(in); ok && !slices.Equal(v, x32[:n]) {
					t.Errorf("offset %d: Float32s = %v, want %v", off, v, x32[:n])
				}
			}
		}
		for n := range len(x64) + 1 {
			b := Bytes64(x64[:n])
			dst := make([]float64, n)
			if got := CopyFloat64s(dst, b); got != n || !slices.Equal(dst, x64[:n]) {
				t.Errorf("CopyFloat64s = %d, %v; want %v", got, dst, x64[:n])
			}
			if got := CopyFloat64s(dst[:n/2], b); got != n/2 {
				t.Errorf("CopyFloat64s into %d = %d", n/2, got)
			}
		}
	})
}

func TestViews(t *testing.T) {
	if !littleEndian {
		t.Skip("this machine has no views")
	}
	x := []float32{1, 2, 3, 4}
	b := Bytes32(x)
	v, ok := Float32s(b)
	if !ok || len(v) != 4 || &v[0] != &x[0] {
		t.Errorf("Float32s(Bytes32(x)) = %v, %v; want x itself", v, ok)
	}
	for name, b := range map[string][]byte{"7 bytes": b[:7], "unaligned": b[1:9], "by two": b[2:10]} {
		if v, ok := Float32s(b); ok || v != nil {
			t.Errorf("%s: Float32s = %v, %v; want no view", name, v, ok)
		}
	}
	y := []float64{1, 2}
	b = Bytes64(y)
	if v, ok := Float64s(b); !ok || len(v) != 2 || &v[0] != &y[0] {
		t.Errorf("Float64s(Bytes64(y)) = %v, %v; want y itself", v, ok)
	}
	if v, ok := Float64s(b[4:12]); ok {
		t.Errorf("unaligned: Float64s = %v; want no view", v)
	}
	if v, ok := Float32s(nil); !ok || len(v) != 0 {
		t.Errorf("Float32s(nil) = %v, %v", v, ok)
	}
}

// TestTailIsAligned: numbers of a decoded frame can be viewed in place.
func TestTailIsAligned(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := anyHeader().Draw(t, "header")
		m, err := Decode(Append(nil, &h, make([]byte, 16)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if at := uintptr(unsafe.Pointer(&m.Tail[0])); at%8 != 0 {
			t.Fatalf("tail at %#x", at)
		}
	})
}

func TestAllFinite(t *testing.T) {
	bad := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.Float32frombits(0x7f800001), math.Float32frombits(0xffffffff)}
	edge := []float32{0, float32(math.Copysign(0, -1)), math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, 1}
	for n := range 70 {
		x := make([]float32, n+1)[1:] // also at odd addresses
		for i := range x {
			x[i] = edge[i%len(edge)]
		}
		if !AllFinite(x) {
			t.Fatalf("%d finite numbers: AllFinite = false", n)
		}
		for i := range x {
			was := x[i]
			for _, v := range bad {
				if x[i] = v; AllFinite(x) {
					t.Fatalf("%v at %d of %d: AllFinite = true", v, i, n)
				}
			}
			x[i] = was
		}
	}
}
