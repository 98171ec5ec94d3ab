package optim

import (
	"math"
	"slices"
	"sync"
)

// factors are the orthogonal factors of matrices, by the names of their tensors.
// All shards of a process that hold a part of a matrix gather all of it, and the
// factor is by far the dearest thing that Muon computes: the first shard to ask
// computes it for all. Nothing here is state: a factor depends on what was
// gathered and on nothing else. It is safe for concurrent use.
type factors[T Float] struct {
	mu sync.Mutex
	by map[string]*factor[T] // guarded by mu
}

// factor is the newest factor of one matrix.
type factor[T Float] struct {
	mu     sync.Mutex // held while it is computed, so that others wait for it
	of     []float64  // what it is the factor of
	is     []T        // in ns's memory
	ns     newtonSchulz[T]
	misses int // how often it was computed, for a test
}

func (fs *factors[T]) tensor(name string) *factor[T] {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.by == nil {
		fs.by = map[string]*factor[T]{}
	}
	f := fs.by[name]
	if f == nil {
		f = new(factor[T])
		fs.by[name] = f
	}
	return f
}

// copy overwrites dst with the factor of g, which is rows × cols.
func (f *factor[T]) copy(dst []T, g []float64, rows, cols int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.EqualFunc(f.of, g, func(x, y float64) bool { return math.Float64bits(x) == math.Float64bits(y) }) {
		f.of = append(f.of[:0], g...)
		f.is = f.ns.run(g, rows, cols)
		f.misses++
	}
	copy(dst, f.is)
}
