package shard

import (
	"math"

	"tributary/optim"
)

// sumsRule uses all that a rule may: state of every class, and a reduction of
// every kind in two passes before the last. All of it reaches every parameter,
// so that one wrong value anywhere changes the result. It optimizes nothing.
type sumsRule struct{}

var sumsSpec = optim.Spec{Name: "sums",
	Slots: []optim.Slot{{Name: "m", FromParams: true}, {Name: "noise", Noise: 0.1}, {Name: "rows", Class: optim.Row, Init: 1},
		{Name: "cols", Class: optim.Column}, {Name: "norm", Class: optim.Tensor}, {Name: "dot", Class: optim.Model, Init: 2}},
	Phases: []optim.Phase{{Needs: []optim.Role{optim.Grad, optim.HessDiag}, Passes: []optim.Pass{
		{Scratch: 1, Reduce: []optim.Reduction{
			{Name: "row", Op: optim.Sum, Over: optim.Row, Width: 2},
			{Name: "column", Op: optim.Max, Over: optim.Column},
			{Name: "model", Op: optim.Sum, Over: optim.Model},
			{Name: "all", Op: optim.Gather, Over: optim.Tensor},
			{Name: "least", Op: optim.Max, Over: optim.Model},
		}},
		{Scratch: 1, Reduce: []optim.Reduction{{Name: "tensor", Op: optim.Sum, Over: optim.Tensor, Width: 2}}},
		{},
	}}}}

func (sumsRule) Spec() *optim.Spec { return &sumsSpec }

func (sumsRule) Prepare(pass int, k *optim.Step) {
	k.Coef = append(k.Coef[:0], k.LR, squash(k.Model[0]), k.Loss, k.Examples)
	if pass > 0 {
		dot := k.Reduced[0][2][0]
		k.Coef = append(k.Coef, squash(dot), squash(k.Reduced[0][4][0]))
		k.Next[0] = squash(k.Model[0]) + dot
	}
}

// squash maps any number into [−1, 1], so that nothing overflows.
func squash(x float64) float64 { return x / (1 + math.Abs(x)) }

func (r sumsRule) Apply(pass int, k *optim.Step, s *optim.Span[float32]) {
	cols := s.Tensor.Info.RowLen()
	g, d := s.G[optim.Grad], s.G[optim.HessDiag]
	for i, w := range s.W {
		at := s.At + i
		gi, di := float64(g[i]), float64(d[i])
		switch pass {
		case 0:
			row := s.Sums[0][2*(at/cols-s.FirstRow):]
			row[0] += float64(gi * gi)
			row[1] += float64(gi * di)
			s.Sums[1][at%cols] = max(s.Sums[1][at%cols], gi)
			s.Sums[2][0] += float64(gi * float64(w))
			s.Gathered[3][i] = w + float32(0.5*g[i])
			s.Sums[4][0] = max(s.Sums[4][0], -math.Abs(gi))
			s.Scratch[0][i] = g[i] + float32(0.01*w)
		case 1:
			x := float64(s.Scratch[0][i])
			s.Sums[0][0] += float64(x * x)
			s.Sums[0][1] += float64(x * squash(s.Tensor.Reduced[0][0][2*(at/cols)+1]))
			s.Scratch[1][i] = float32(x * k.Coef[4])
		}
	}
	if pass == 2 {
		r.finish(k, s, cols)
	}
}

// finish takes the step. Slots that are not per element are replicated on every
// shard with a part of the tensor, so every span writes them whole.
func (sumsRule) finish(k *optim.Step, s *optim.Span[float32], cols int) {
	t := s.Tensor
	first, old, next := t.Reduced[0], t.Slots, t.Next
	for i := range next[2] {
		next[2][i] = float64(0.5*old[2][i]) + first[0][2*i]
	}
	for i, x := range first[1] {
		next[3][i] = max(float64(0.5*old[3][i]), x)
	}
	norm := t.Reduced[1][0]
	next[4][0] = float64(0.5*old[4][0]) + norm[0]
	common := squash(norm[1]) + squash(old[4][0])
	for _, c := range k.Coef[1:] {
		common += squash(c)
	}
	all := first[3]
	for i, w := range s.W {
		at := s.At + i
		s.Slots[0][i] = float32(0.9*s.Slots[0][i]) + s.Scratch[0][i]
		s.Slots[1][i] = float32(0.5*s.Slots[1][i]) + s.Scratch[1][i]
		x := common + float64(s.Slots[0][i]) + float64(s.Slots[1][i]) + squash(old[2][at/cols]) + squash(old[3][at%cols]) + squash(all[(at+1)%len(all)])
		s.Out[i] = w - float32(k.Coef[0]*x)
	}
}
