package train

import (
	"fmt"

	"tributary/internal/rng"
)

// Batch appends to dst the indices of the examples that a rank sees at a step,
// out of n, and returns the epoch the first of them belongs to.
//
// Each epoch has a permutation p of the examples, drawn from seed and epoch
// alone, and deals it out: rank r gets p[r], p[r+ranks], p[r+2·ranks], ...,
// n/ranks examples (the n mod ranks last ones of p rest until the next epoch).
// Epoch after epoch these are one endless stream, of which step s, counted
// from 0, is the part from s·size to (s+1)·size. A batch may so span epochs.
//
// The result is a pure function of the arguments: it does not matter which
// worker serves the rank, or what that worker did before. Batch panics unless
// 0 ≤ rank < ranks ≤ n. It costs O(n); a [Sampler] remembers permutations.
func Batch(dst []int, n, ranks, rank int, seed, step uint64, size int) (indices []int, epoch uint64) {
	return NewSampler(n, ranks, seed).Batch(dst, rank, step, size)
}

// Sampler is [Batch] with the permutations of the last two epochs at hand. It
// is not safe for concurrent use.
type Sampler struct {
	n, ranks int
	key      rng.Key
	perms    [2]struct { // epoch e is kept at e mod 2, so that a batch across a border finds both
		epoch uint64
		p     []int // nil: empty
	}
}

// NewSampler returns the sampler of n examples for the given number of ranks.
// It panics unless 0 < ranks ≤ n.
func NewSampler(n, ranks int, seed uint64) *Sampler {
	if ranks <= 0 || ranks > n {
		panic(fmt.Sprintf("train: %d ranks for %d examples", ranks, n))
	}
	return &Sampler{n: n, ranks: ranks, key: rng.New(seed, "batch")}
}

// Batch is the function [Batch] with the sampler's n, ranks and seed. It
// allocates only what dst lacks and when an epoch begins.
func (s *Sampler) Batch(dst []int, rank int, step uint64, size int) (indices []int, epoch uint64) {
	s.check(rank)
	per := uint64(s.n / s.ranks)
	first := step * uint64(size)
	for i := range uint64(size) {
		at := first + i
		dst = append(dst, s.perm(at / per)[rank+int(at%per)*s.ranks])
	}
	return dst, first / per
}

// Share appends to dst the indices of the examples that a rank stands for when
// all of the data are due, as for the full gradients of SPIDER and SVRG: rank,
// rank+ranks, rank+2·ranks, ... below n, ascending. Unlike in an epoch of
// [Sampler.Batch] no example rests, so shares differ in length by one if ranks
// does not divide n: the mean over the data is the mean over the ranks of each
// one's mean times [Sampler.ShareWeight].
//
// Fang et al., "SPIDER", NeurIPS 2018, Algorithm 1, arXiv:1807.01695.
func (s *Sampler) Share(dst []int, rank int) []int {
	s.check(rank)
	for i := rank; i < s.n; i += s.ranks {
		dst = append(dst, i)
	}
	return dst
}

// ShareWeight is the length of a rank's share over the mean length n/ranks: 1
// if ranks divides n.
func (s *Sampler) ShareWeight(rank int) float64 {
	s.check(rank)
	length := (s.n - rank + s.ranks - 1) / s.ranks
	return float64(length) * float64(s.ranks) / float64(s.n)
}

func (s *Sampler) check(rank int) {
	if rank < 0 || rank >= s.ranks {
		panic(fmt.Sprintf("train: rank %d of %d", rank, s.ranks))
	}
}

func (s *Sampler) perm(epoch uint64) []int {
	c := &s.perms[epoch%2]
	if c.p == nil || c.epoch != epoch {
		if c.p == nil {
			c.p = make([]int, s.n)
		}
		s.key.With(epoch).Perm(c.p)
		c.epoch = epoch
	}
	return c.p
}
