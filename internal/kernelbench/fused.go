package kernelbench

import (
	"fmt"
	"math/rand/v2"

	"tributary/internal/vec"
	"tributary/optim"
)

// FusedResult compares two ways to combine k contributions and update.
type FusedResult struct {
	Rule          string `json:"rule"`
	Contributions int    `json:"contributions"`
	Half          bool   `json:"bf16"`
	Threads       int    `json:"threads"`
	// Fused combines a span and updates it while it is in the cache; Separate
	// combines all in one pass, then updates. Both in seconds.
	Fused    Range `json:"fused_seconds"`
	Separate Range `json:"separate_seconds"`
	Ratio    Range `json:"fused_over_separate"` // pair by pair
}

// Fused measures k contributions, in bfloat16 if half is set, combined and
// applied by a rule of one phase and one pass that needs gradients alone.
func Fused(name string, matrices, k int, half bool, threads, rounds int) (FusedResult, error) {
	res := FusedResult{Rule: name, Contributions: k, Half: half, Threads: threads}
	sums := make([]*sum, threads)
	for i := range sums {
		m, err := newModel(name, matrices*(i+1)/threads-matrices*i/threads)
		if err != nil {
			return res, err
		}
		if len(m.spec.Phases) != 1 || len(m.spec.Phases[0].Passes) != 1 || len(m.spec.AllRoles()) != 1 {
			return res, fmt.Errorf("%s is not a rule of one pass over gradients", name)
		}
		sums[i] = newSum(m, k, half)
	}
	var fused, separate, ratio []float64
	for round := range rounds + 1 {
		f := parallel(threads, func(i int) { sums[i].fused() }).Seconds()
		s := parallel(threads, func(i int) { sums[i].separate() }).Seconds()
		if round > 0 { // the first is for warming up
			fused, separate, ratio = append(fused, f), append(separate, s), append(ratio, f/s)
		}
	}
	res.Fused, res.Separate, res.Ratio = RangeOf(fused), RangeOf(separate), RangeOf(ratio)
	return res, nil
}

// sum is a model with contributions to its gradient.
type sum struct {
	*model
	full    [][]float32
	half    [][]uint16
	weights []float64
	// Views of one part of the contributions.
	fullPart [][]float32
	halfPart [][]uint16
}

func newSum(m *model, k int, half bool) *sum {
	s := &sum{model: m}
	r := rand.New(rand.NewPCG(5, 6))
	for i := range k {
		// Not all at the same place of a page, as frames in buffers are not:
		// else they would compete for the same few lines of the cache.
		pad := i * (4096 + 192) / 4
		x := random(r, m.l.P+pad, 0.01)[pad:]
		if half {
			h := make([]uint16, len(x)+pad)[pad:]
			vec.EncodeHalf(h, x)
			s.half = append(s.half, h)
		} else {
			s.full = append(s.full, x)
		}
		s.weights = append(s.weights, 1/float64(k))
	}
	s.fullPart, s.halfPart = make([][]float32, len(s.full)), make([][]uint16, len(s.half))
	return s
}

func (s *sum) combine(g []float32, lo, hi int) {
	if s.half != nil {
		for i, x := range s.half {
			s.halfPart[i] = x[lo:hi]
		}
		vec.CombineHalf(g, s.halfPart, s.weights)
		return
	}
	for i, x := range s.full {
		s.fullPart[i] = x[lo:hi]
	}
	vec.Combine(g, s.fullPart, s.weights)
}

// fused combines span by span, as a shard does.
func (s *sum) fused() {
	s.k.T++
	s.k.LR = 1e-4
	s.rule.Prepare(0, &s.k)
	sp := optim.Span[float32]{Slots: make([][]float32, len(s.slots))}
	for _, b := range s.blocks {
		sp.Tensor, sp.Block = &s.tensors[b.Tensor], b
		for lo := b.Lo; lo < b.Hi; lo += optim.SpanLen {
			hi := min(lo+optim.SpanLen, b.Hi)
			g := s.buf[:hi-lo]
			s.combine(g, lo, hi)
			sp.W, sp.Out, sp.G[optim.Grad] = s.w[lo:hi], s.out[lo:hi], g
			cut(sp.Slots, s.slots, lo, hi)
			s.rule.Apply(0, &s.k, &sp)
		}
	}
}

// separate combines everything, then updates.
func (s *sum) separate() {
	s.model.copied = false
	s.combine(s.g[optim.Grad], 0, s.l.P)
	s.step()
}
