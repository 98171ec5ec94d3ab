// Package layout says where every parameter of a model lives.
//
// A model is an ordered list of named tensors. Flattened row-major and in
// order they form one parameter vector of length P. The vector is cut into
// chunks of equal length (the last one may be shorter), runs of chunks form
// shards, and a (tensor, chunk) intersection is a block: the unit of sums that
// cross shards. The length of a chunk depends on P alone, never on the number
// of shards or servers, so that a sum over blocks has the same bits wherever
// the blocks live (docs/consistency.md, C2).
package layout

import (
	"errors"
	"fmt"
	"math"
)

// MaxChunkLen is the length of a chunk of a large model: 2^18 parameters are
// 1 MiB of float32, which is where NATS throughput is flat.
const MaxChunkLen = 1 << 18

const (
	minChunkLen  = 256
	wantedChunks = 32 // small models are cut into about this many chunks, so that they still spread
	maxTensors   = 1 << 16
	maxParams    = 1 << 40
	maxChunks    = maxParams / MaxChunkLen
)

// InitKind says how the parameters of a tensor start.
type InitKind string

// The ways a tensor can start. Uniform draws from [-Scale, Scale), Normal has
// standard deviation Scale, Constant is Scale everywhere.
const (
	Zeros    InitKind = "zeros"
	Constant InitKind = "constant"
	Uniform  InitKind = "uniform"
	Normal   InitKind = "normal"
)

// Init is the start of one tensor. The zero value means Zeros.
type Init struct {
	Kind  InitKind `json:"kind,omitempty" yaml:"kind,omitempty"`
	Scale float64  `json:"scale,omitempty" yaml:"scale,omitempty"`
}

// Tensor describes one named tensor of a model.
type Tensor struct {
	Name  string `json:"name" yaml:"name"`
	Shape []int  `json:"shape" yaml:"shape"`
	// Buffer marks values that are carried along but not trained (running
	// means, counters): update rules never touch them.
	Buffer bool `json:"buffer,omitempty" yaml:"buffer,omitempty"`
	// NoDecay excludes the tensor from weight decay (biases, norms).
	NoDecay bool `json:"no_decay,omitempty" yaml:"no_decay,omitempty"`
	Init    Init `json:"init,omitzero" yaml:"init,omitempty"`

	// Group is the group whose update rule the tensor has: 0 the default one, i
	// the i-th of the job's optimizer.groups. Not part of a description: it
	// follows from the patterns of the job.
	Group int `json:"-" yaml:"-"`
	// Offset is the index of the tensor's first element in the parameter
	// vector; Len its number of elements. Both are set by [New].
	Offset int `json:"-" yaml:"-"`
	Len    int `json:"-" yaml:"-"`
}

// RowLen is the number of elements in one row: all dimensions but the first.
// Vectors and scalars are a single row.
func (t *Tensor) RowLen() int {
	if len(t.Shape) < 2 || t.Shape[0] == 0 {
		return t.Len
	}
	return t.Len / t.Shape[0]
}

// Range is a half-open interval.
type Range struct{ Lo, Hi int }

// Len is the number of elements of r.
func (r Range) Len() int { return r.Hi - r.Lo }

// Block is the part of one tensor that lies in one chunk, in global
// coordinates of the parameter vector.
type Block struct {
	Tensor int // index into Layout.Tensors
	Chunk  int
	Range
}

// Layout is a model cut into chunks. It is immutable after [New].
type Layout struct {
	Tensors  []Tensor
	P        int // number of parameters
	ChunkLen int
	first    []int // first[c] is the first tensor that reaches into chunk c
}

// ErrLayout is wrapped by every error of [New].
var ErrLayout = errors.New("bad model layout")

// New checks tensors, computes their offsets and cuts the vector into chunks.
// chunkLen 0 chooses the length from the number of parameters alone.
func New(tensors []Tensor, chunkLen int) (*Layout, error) {
	if len(tensors) == 0 || len(tensors) > maxTensors {
		return nil, fmt.Errorf("%w: %d tensors, want 1 to %d", ErrLayout, len(tensors), maxTensors)
	}
	l := &Layout{Tensors: append([]Tensor(nil), tensors...)}
	seen := make(map[string]bool, len(tensors))
	for i := range l.Tensors {
		t := &l.Tensors[i]
		if t.Name == "" || seen[t.Name] {
			return nil, fmt.Errorf("%w: tensor %d: name %q is empty or used twice", ErrLayout, i, t.Name)
		}
		seen[t.Name] = true
		n := 1
		for _, d := range t.Shape {
			if d <= 0 || n > maxParams/d {
				return nil, fmt.Errorf("%w: tensor %q: shape %v", ErrLayout, t.Name, t.Shape)
			}
			n *= d
		}
		switch t.Init.Kind {
		case "", Zeros, Constant, Uniform, Normal:
		default:
			return nil, fmt.Errorf("%w: tensor %q: unknown init %q", ErrLayout, t.Name, t.Init.Kind)
		}
		if math.IsNaN(t.Init.Scale) || math.IsInf(t.Init.Scale, 0) {
			return nil, fmt.Errorf("%w: tensor %q: init scale %v", ErrLayout, t.Name, t.Init.Scale)
		}
		t.Offset, t.Len = l.P, n
		l.P += n
		if l.P > maxParams {
			return nil, fmt.Errorf("%w: more than %d parameters", ErrLayout, maxParams)
		}
	}
	if chunkLen < 0 || chunkLen > MaxChunkLen {
		return nil, fmt.Errorf("%w: chunk length %d, want 1 to %d", ErrLayout, chunkLen, MaxChunkLen)
	}
	if chunkLen == 0 {
		chunkLen = defaultChunkLen(l.P)
	}
	l.ChunkLen = chunkLen
	if l.Chunks() > maxChunks {
		return nil, fmt.Errorf("%w: %d parameters in chunks of %d are %d chunks, want at most %d", ErrLayout, l.P, chunkLen, l.Chunks(), maxChunks)
	}
	l.first = make([]int, l.Chunks())
	ti := 0
	for c := range l.first {
		for l.Tensors[ti].Offset+l.Tensors[ti].Len <= c*chunkLen {
			ti++
		}
		l.first[c] = ti
	}
	return l, nil
}

func defaultChunkLen(p int) int {
	n := minChunkLen
	for n < MaxChunkLen && n*wantedChunks < p {
		n *= 2
	}
	return n
}

// Chunks is the number of chunks of the model.
func (l *Layout) Chunks() int { return (l.P + l.ChunkLen - 1) / l.ChunkLen }

// Chunk is the range of parameters in chunk c.
func (l *Layout) Chunk(c int) Range {
	lo := c * l.ChunkLen
	return Range{lo, min(lo+l.ChunkLen, l.P)}
}

// Shards cuts the model's chunks into n runs as equal as possible and returns
// the range of chunks of each. n is lowered to the number of chunks.
func (l *Layout) Shards(n int) []Range {
	chunks := l.Chunks()
	n = max(1, min(n, chunks))
	out := make([]Range, n)
	for k := range out {
		out[k] = Range{k * chunks / n, (k + 1) * chunks / n}
	}
	return out
}

// Blocks appends the blocks of chunk c to dst in ascending order.
func (l *Layout) Blocks(dst []Block, c int) []Block {
	r := l.Chunk(c)
	for ti := l.first[c]; ti < len(l.Tensors) && l.Tensors[ti].Offset < r.Hi; ti++ {
		t := &l.Tensors[ti]
		lo, hi := max(r.Lo, t.Offset), min(r.Hi, t.Offset+t.Len)
		if lo < hi {
			dst = append(dst, Block{Tensor: ti, Chunk: c, Range: Range{lo, hi}})
		}
	}
	return dst
}

// Find returns the tensor that holds global parameter i.
func (l *Layout) Find(i int) *Tensor {
	lo, hi := 0, len(l.Tensors)-1
	for lo < hi {
		mid := (lo + hi + 1) / 2
		if l.Tensors[mid].Offset <= i {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return &l.Tensors[lo]
}
