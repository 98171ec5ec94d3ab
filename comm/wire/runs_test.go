package wire

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Runs come back as they were sent, on machines of both byte orders.
func TestRuns(t *testing.T) {
	bothOrders(t, func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.IntRange(1, 40).Draw(t, "chunk")
			x, want := make([]float32, n), []float32(nil)
			var runs []Run
			for lo := rapid.IntRange(0, 3).Draw(t, "first"); lo < n; {
				hi := min(n, lo+rapid.IntRange(1, 5).Draw(t, "length"))
				runs = append(runs, Run{lo, hi})
				for i := lo; i < hi; i++ {
					x[i] = float32(i) + 0.5
				}
				want = append(want, x[lo:hi]...)
				lo = hi + rapid.IntRange(1, 5).Draw(t, "gap")
			}
			tail, count := AppendRuns(nil, runs, x)
			got, values, err := DecodeRuns(tail, uint32(count), n)
			if err != nil || !slices.Equal(got, runs) || count != len(want) {
				t.Fatalf("%v: got %v, %d numbers, %v", runs, got, count, err)
			}
			y := make([]float32, count)
			if CopyFloat32s(y, values) != count || !slices.Equal(y, want) {
				t.Fatalf("%v: numbers %v, want %v", runs, y, want)
			}
		})
	})
}

// FuzzRuns: whatever comes, runs that pass are ascending, apart, inside of the
// chunk and as long as their numbers, and there is one way to write them.
func FuzzRuns(f *testing.F) {
	x := []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}
	for _, runs := range [][]Run{nil, {{0, 8}}, {{0, 1}, {2, 3}}, {{3, 5}, {7, 8}}, {{0, 1}, {1, 2}}, {{4, 6}, {2, 3}}, {{5, 9}}, {{2, 2}}} {
		tail, count := AppendRuns(nil, runs, x)
		f.Add(tail, uint32(count), uint16(8))
		f.Add(tail, uint32(count), uint16(4))
		f.Add(tail, uint32(math.MaxUint32), uint16(8))
	}
	f.Add(binary.LittleEndian.AppendUint32(nil, math.MaxUint32), uint32(0), uint16(8))
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint32(2), uint16(8))
	f.Fuzz(func(t *testing.T, tail []byte, count uint32, n uint16) {
		runs, values, err := DecodeRuns(tail, count, int(n))
		if err != nil {
			return
		}
		end, total := -1, 0
		for _, r := range runs {
			if r.Lo <= end || r.Hi <= r.Lo || r.Hi > int(n) {
				t.Fatalf("%v pass for a chunk of %d", runs, n)
			}
			end, total = r.Hi, total+r.Hi-r.Lo
		}
		if total != int(count) || len(values) != 4*total || cap(runs) > len(tail)/8 {
			t.Fatalf("%v with %d bytes of %d numbers, room for %d runs", runs, len(values), count, cap(runs))
		}
		x := make([]float32, n)
		for _, r := range runs {
			values = values[4*CopyFloat32s(x[r.Lo:r.Hi], values):]
		}
		again, _ := AppendRuns(nil, runs, x)
		if !bytes.Equal(again, tail) {
			t.Fatalf("%x is written as %x", tail, again)
		}
	})
}

// Numbers of half precision survive both ways of reading them, and are finite
// or not as the numbers that they stand for.
func TestHalf(t *testing.T) {
	bothOrders(t, func(t *testing.T) {
		x := []float32{0, 1, -2.5, 3e38, float32(math.Inf(1)), float32(math.NaN()), -7}
		h := make([]uint16, len(x))
		ToHalf(h, x)
		b := slices.Clone(BytesHalf(h))
		got := make([]uint16, len(h))
		if n := CopyHalves(got, b); n != len(h) || !slices.Equal(got, h) {
			t.Errorf("copied %d: %x, want %x", n, got, h)
		}
		if v, ok := Halves(b); ok && !slices.Equal(v, h) {
			t.Errorf("viewed %x, want %x", v, h)
		}
		if got := FromHalf(h[2]); got != -2.5 || b[4] != 0x20 || b[5] != 0xc0 {
			t.Errorf("-2.5 is %v, bytes %x", got, b[4:6])
		}
		for _, want := range []int{4, 5, -1} {
			if got := FirstNonFiniteHalf(h); got != want {
				t.Errorf("%x: %d, want %d", h, got, want)
			}
			if want >= 0 {
				h[want] = 0xff7f // the lowest number
			}
		}
	})
}
