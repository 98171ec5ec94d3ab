package layout

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// draw is a random model.
func draw(t *rapid.T) []Tensor {
	shape := rapid.SliceOfN(rapid.IntRange(1, 12), 0, 3)
	var ts []Tensor
	for i := range rapid.IntRange(1, 6).Draw(t, "tensors") {
		ts = append(ts, Tensor{Name: fmt.Sprint("t", i), Shape: shape.Draw(t, "shape"), Buffer: rapid.Bool().Draw(t, "buffer"),
			Init: Init{rapid.SampledFrom([]InitKind{"", Zeros, Constant, Uniform, Normal}).Draw(t, "init"), 0.5}})
	}
	return ts
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ts := draw(t)
		l, err := New(ts, rapid.SampledFrom([]int{0, 1, 2, 3, 7, 64, MaxChunkLen}).Draw(t, "chunk"))
		if err != nil {
			t.Fatal(err)
		}
		// Tensors fill the vector in order.
		end := 0
		for i := range l.Tensors {
			x := &l.Tensors[i]
			n := 1
			for _, d := range x.Shape {
				n *= d
			}
			if x.Offset != end || x.Len != n || ts[i].Len != 0 {
				t.Fatalf("tensor %d: offset %d, length %d, want %d, %d; the argument %+v", i, x.Offset, x.Len, end, n, ts[i])
			}
			if x.Len%x.RowLen() != 0 || len(x.Shape) > 1 && x.RowLen() != x.Len/x.Shape[0] || len(x.Shape) < 2 && x.RowLen() != x.Len {
				t.Fatalf("rows of %v are %d long", x.Shape, x.RowLen())
			}
			if l.Find(x.Offset) != x || l.Find(x.Offset+x.Len-1) != x {
				t.Fatalf("Find(%d) is not tensor %d", x.Offset, i)
			}
			end += n
		}
		if l.P != end {
			t.Fatalf("P = %d, want %d", l.P, end)
		}
		// Chunks partition the vector; blocks partition every chunk, and lie in one
		// tensor each.
		at := 0
		for c := range l.Chunks() {
			r := l.Chunk(c)
			if r.Lo != at || r.Len() < 1 || r.Len() > l.ChunkLen || c < l.Chunks()-1 && r.Len() != l.ChunkLen {
				t.Fatalf("chunk %d is %+v after %d, length %d", c, r, at, l.ChunkLen)
			}
			var prefix [1]Block
			bs := l.Blocks(prefix[:], c)
			if bs[0] != prefix[0] {
				t.Fatal("Blocks overwrote what it appends to")
			}
			for _, b := range bs[1:] {
				x := &l.Tensors[b.Tensor]
				if b.Lo != at || b.Hi <= b.Lo || b.Chunk != c || b.Lo < x.Offset || b.Hi > x.Offset+x.Len {
					t.Fatalf("block %+v after %d, tensor %+v", b, at, x)
				}
				at = b.Hi
			}
			if at != r.Hi {
				t.Fatalf("blocks of chunk %d end at %d, want %d", c, at, r.Hi)
			}
		}
		if at != l.P {
			t.Fatalf("chunks end at %d, want %d", at, l.P)
		}
		// Shards partition the chunks as evenly as possible.
		n := rapid.IntRange(-1, 20).Draw(t, "shards")
		ranges := l.Shards(n)
		if len(ranges) != max(1, min(n, l.Chunks())) {
			t.Fatalf("Shards(%d) of %d chunks: %d", n, l.Chunks(), len(ranges))
		}
		at = 0
		for _, r := range ranges {
			if r.Lo != at || r.Len() < l.Chunks()/len(ranges) || r.Len() > (l.Chunks()+len(ranges)-1)/len(ranges) {
				t.Fatalf("Shards(%d) of %d chunks: %v", n, l.Chunks(), ranges)
			}
			at = r.Hi
		}
		if at != l.Chunks() {
			t.Fatalf("Shards(%d) of %d chunks: %v", n, l.Chunks(), ranges)
		}
		checkInit(t, l)
	})
}

// checkInit fails unless the first parameters are the same in one piece and in
// many, and do not depend on what comes before a tensor.
func checkInit(t *rapid.T, l *Layout) {
	whole := make([]float32, l.P)
	l.InitParams(7, Range{0, l.P}, whole)
	parts := make([]float32, l.P)
	for lo := 0; lo < l.P; {
		hi := lo + rapid.IntRange(1, l.P-lo).Draw(t, "part")
		l.InitParams(7, Range{lo, hi}, parts[lo:hi])
		lo = hi
	}
	if !slices.Equal(whole, parts) {
		t.Fatal("initial parameters differ in pieces")
	}
	last := l.Tensors[len(l.Tensors)-1]
	alone, err := New([]Tensor{last}, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, last.Len)
	alone.InitParams(7, Range{0, last.Len}, x)
	if !slices.Equal(x, whole[last.Offset:]) {
		t.Fatalf("initial parameters of %q depend on its place", last.Name)
	}
	for i, v := range x {
		switch k := last.Init.Kind; {
		case (k == "" || k == Zeros) && v != 0, k == Constant && v != 0.5, k == Uniform && (v < -0.5 || v >= 0.5), math.IsNaN(float64(v)):
			t.Fatalf("%s starts with %v", k, v)
		case i > 1 && k == Uniform && x[0] == x[1] && x[1] == x[2]:
			t.Fatalf("constant noise %v", x)
		}
	}
	noise, half := make([]float32, last.Len), make([]float32, last.Len)
	InitNoise(7, &last, "m", 0, 0.1, noise)
	at := rapid.IntRange(0, last.Len).Draw(t, "at")
	InitNoise(7, &last, "m", 0, 0.1, half[:at])
	InitNoise(7, &last, "m", at, -0.1, half[at:])
	if !slices.Equal(noise, half) {
		t.Fatal("noise differs in pieces")
	}
}

// The length of a chunk is a function of the number of parameters: the bits of
// every job depend on it, so these numbers never change.
func TestChunkLength(t *testing.T) {
	for p, want := range map[int]int{1: 256, 256: 256, 8192: 256, 8193: 512, 16384: 512, 16385: 1024, 100_000: 4096, 1 << 20: 1 << 15, 1<<20 + 1: 1 << 16,
		1 << 23: 1 << 18, 1<<23 + 1: 1 << 18, 1 << 30: 1 << 18, 1 << 40: 1 << 18} {
		for _, ts := range [][]Tensor{
			{{Name: "a", Shape: []int{p}}},
			{{Name: "b", Shape: []int{1}, Buffer: true}, {Name: "a", Shape: []int{1, max(1, p-1)}}},
		} {
			if len(ts) == 2 && p == 1 {
				continue
			}
			l, err := New(ts, 0)
			if err != nil {
				t.Fatal(err)
			}
			if l.ChunkLen != want || l.P != p {
				t.Errorf("%d parameters: chunks of %d, want %d", l.P, l.ChunkLen, want)
			}
		}
	}
}

// Shapes come from peers: nothing they say may panic, overflow, or allocate
// more than a model of that many chunks needs.
func TestHostileShapes(t *testing.T) {
	big := math.MaxInt
	for name, ts := range map[string][]Tensor{
		"none":            nil,
		"no name":         {{Shape: []int{1}}},
		"name twice":      {{Name: "a", Shape: []int{1}}, {Name: "a", Shape: []int{1}}},
		"zero":            {{Name: "a", Shape: []int{0}}},
		"negative":        {{Name: "a", Shape: []int{-1}}},
		"two negatives":   {{Name: "a", Shape: []int{-1, -1}}},
		"smallest":        {{Name: "a", Shape: []int{math.MinInt, math.MinInt}}},
		"huge":            {{Name: "a", Shape: []int{big}}},
		"huge product":    {{Name: "a", Shape: []int{1 << 21, 1 << 21}}},
		"wraps to 0":      {{Name: "a", Shape: []int{1 << 32, 1 << 32}}},
		"wraps to 1":      {{Name: "a", Shape: []int{big, big}}},
		"huge sum":        {{Name: "a", Shape: []int{1 << 40}}, {Name: "b", Shape: []int{1}}},
		"unknown init":    {{Name: "a", Shape: []int{1}, Init: Init{Kind: "magic"}}},
		"NaN init":        {{Name: "a", Shape: []int{1}, Init: Init{Uniform, math.NaN()}}},
		"infinite init":   {{Name: "a", Shape: []int{1}, Init: Init{Normal, math.Inf(-1)}}},
		"too many":        make([]Tensor, maxTensors+1),
		"many dimensions": {{Name: "a", Shape: slices.Repeat([]int{2}, 64)}},
	} {
		if l, err := New(ts, 0); !errors.Is(err, ErrLayout) {
			t.Errorf("%s: New = %+v, %v", name, l, err)
		}
	}
	ok := []Tensor{{Name: "a", Shape: []int{100}}}
	for _, n := range []int{-1, math.MinInt, MaxChunkLen + 1, math.MaxInt} {
		if _, err := New(ok, n); !errors.Is(err, ErrLayout) {
			t.Errorf("chunks of %d: %v", n, err)
		}
	}
	// A huge model in tiny chunks would need a table of terabytes.
	if _, err := New([]Tensor{{Name: "a", Shape: []int{1 << 40}}}, 1); !errors.Is(err, ErrLayout) {
		t.Errorf("2^40 chunks: %v", err)
	}
	if l, err := New([]Tensor{{Name: "a", Shape: nil}}, 0); err != nil || l.P != 1 || l.Tensors[0].RowLen() != 1 {
		t.Errorf("a scalar: %+v, %v", l, err)
	}
}

func FuzzNew(f *testing.F) {
	f.Add([]byte{2, 3, 4, 1, 200}, 0)
	f.Add([]byte{0, 255, 255, 255}, 1)
	f.Fuzz(func(t *testing.T, b []byte, chunk int) {
		var ts []Tensor
		for len(b) > 0 {
			n := min(int(b[0]%4), len(b)-1)
			x := Tensor{Name: fmt.Sprint(len(b))}
			for _, d := range b[1 : 1+n] {
				x.Shape = append(x.Shape, int(int8(d))<<(d%40))
			}
			ts, b = append(ts, x), b[1+n:]
		}
		l, err := New(ts, chunk)
		if err != nil {
			if !errors.Is(err, ErrLayout) {
				t.Fatal(err)
			}
			return
		}
		last := l.Chunk(l.Chunks() - 1)
		if last.Hi != l.P || last.Len() < 1 || len(l.Blocks(nil, l.Chunks()-1)) == 0 {
			t.Fatalf("last chunk %+v of %d parameters", last, l.P)
		}
	})
}
