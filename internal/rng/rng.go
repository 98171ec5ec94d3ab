// Package rng holds counter-based random numbers: every draw is a pure
// function of a key and a counter, so that it depends on neither the order of
// calls nor on how a model is sharded (docs/consistency.md, C18).
package rng

import "math/bits"

// Key identifies a stream. Derive sub-streams with [Key.With].
type Key uint64

// New returns the stream of a job's seed for one purpose ("init", "batch", ...).
func New(seed uint64, purpose string) Key {
	k := Key(mix(seed ^ 0x9e3779b97f4a7c15))
	return k.WithString(purpose)
}

// With returns the sub-stream of k named by n.
func (k Key) With(n uint64) Key {
	return Key(mix(uint64(k) ^ mix(n+0x9e3779b97f4a7c15)))
}

// WithString returns the sub-stream of k named by s (FNV-1a of its bytes).
func (k Key) WithString(s string) Key {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return k.With(h)
}

// Uint64 is draw number i of the stream.
func (k Key) Uint64(i uint64) uint64 {
	return mix(uint64(k) + (i+1)*0x9e3779b97f4a7c15)
}

// Float64 is draw number i as a uniform number in [0, 1) with 53 bits.
func (k Key) Float64(i uint64) float64 {
	return float64(k.Uint64(i)>>11) * 0x1p-53
}

// IntN is draw number i as a number in [0, n). The bias is below n/2^64.
func (k Key) IntN(i uint64, n int) int {
	hi, _ := bits.Mul64(k.Uint64(i), uint64(n))
	return int(hi)
}

// Normal is draw number i from the standard normal distribution, as the
// centred sum of twelve uniforms of 21 bits each (Irwin-Hall): additions only,
// so the bits are the same on every platform. Its tails end at ±6.
func (k Key) Normal(i uint64) float64 {
	sum := 0.0
	for j := range uint64(4) {
		u := k.Uint64(4*i + j)
		for range 3 {
			sum += float64(u&0x1fffff) * 0x1p-21
			u >>= 21
		}
	}
	return sum - 6 + 12*0x1p-22 // each uniform's mean is 1/2 - 2^-22
}

// Perm fills p with a permutation of 0..len(p)-1 drawn from the stream
// (Fisher-Yates).
func (k Key) Perm(p []int) {
	for i := range p {
		p[i] = i
	}
	for i := len(p) - 1; i > 0; i-- {
		j := k.IntN(uint64(i), i+1)
		p[i], p[j] = p[j], p[i]
	}
}

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
