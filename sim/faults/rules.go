package faults

import (
	"fmt"
	"math"

	"tributary/aggregate"
	"tributary/optim"
)

// rule makes the update rule, the aggregation and the schedule of the plan.
func (p *Plan) rule() (optim.Rule[float32], aggregate.Rule[float32], func(uint64) float64, error) {
	agg, err := aggregate.New[float32]("mean", map[string]any{"by": "examples"})
	if err != nil {
		return nil, nil, nil, err
	}
	lr := func(uint64) float64 { return p.LR }
	switch p.Rule {
	case twoRoles:
		return twoRolesRule{}, agg, lr, nil
	case allSums:
		return allSumsRule{}, agg, lr, nil
	}
	r, err := optim.New[float32](p.Rule, p.Hyper)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("rule %s: %w", p.Rule, err)
	}
	return r, agg, lr, nil
}

// The rules of this package use what a rule may use and the real ones of today
// do not: contributions with two roles, state of every class, reductions of
// every kind. They optimize nothing.
const (
	twoRoles = "two-roles"
	allSums  = "all-sums"
)

// twoRolesRule needs two tensors per contribution and keeps a scalar per model:
//
//	h ← 0.9·h + 0.1·d,  w ← w − LR·(1 + s/1024)·g / (1 + |h|),  s ← s + loss
type twoRolesRule struct{}

var twoRolesSpec = optim.Spec{Name: twoRoles,
	Slots:  []optim.Slot{{Name: "h", Init: 1}, {Name: "loss", Class: optim.Model}},
	Phases: []optim.Phase{{Needs: []optim.Role{optim.Grad, optim.HessDiag}, Passes: []optim.Pass{{}}}}}

func (twoRolesRule) Spec() *optim.Spec { return &twoRolesSpec }

func (twoRolesRule) Prepare(_ int, k *optim.Step) {
	k.Coef = append(k.Coef[:0], k.LR*(1+k.Model[0]/1024))
	k.Next[0] = k.Model[0] + k.Loss
}

func (twoRolesRule) Apply(_ int, k *optim.Step, s *optim.Span[float32]) {
	h, g, d, lr := s.Slots[0], s.G[optim.Grad], s.G[optim.HessDiag], float32(k.Coef[0])
	for i, w := range s.W {
		h[i] = float32(0.9*h[i]) + float32(0.1*d[i])
		s.Out[i] = w - float32(lr*g[i])/(1+float32(math.Abs(float64(h[i]))))
	}
}

// allSumsRule keeps state per element, row, column, tensor and model, and lets
// all of it, and a reduction of every kind over two passes, reach every
// parameter, so that one wrong value anywhere changes the result.
type allSumsRule struct{}

var allSumsSpec = optim.Spec{Name: allSums,
	Slots: []optim.Slot{{Name: "m"}, {Name: "rows", Class: optim.Row, Init: 1}, {Name: "cols", Class: optim.Column},
		{Name: "norm", Class: optim.Tensor}, {Name: "dot", Class: optim.Model}},
	Phases: []optim.Phase{{Needs: []optim.Role{optim.Grad}, Passes: []optim.Pass{
		{Scratch: 1, Reduce: []optim.Reduction{
			{Name: "row", Op: optim.Sum, Over: optim.Row},
			{Name: "column", Op: optim.Max, Over: optim.Column},
			{Name: "model", Op: optim.Sum, Over: optim.Model},
			{Name: "all", Op: optim.Gather, Over: optim.Tensor},
		}},
		{Reduce: []optim.Reduction{{Name: "tensor", Op: optim.Sum, Over: optim.Tensor, Width: 2}}},
		{},
	}}}}

// Indices of slots and reductions of allSumsRule.
const (
	slotM = iota
	slotRows
	slotCols
	slotNorm
)

const (
	sumRow = iota
	maxColumn
	sumModel
	gatherAll
)

func (allSumsRule) Spec() *optim.Spec { return &allSumsSpec }

func (allSumsRule) Prepare(pass int, k *optim.Step) {
	dot := 0.0
	if pass > 0 {
		dot = k.Reduced[0][sumModel][0]
	}
	k.Coef = append(k.Coef[:0], k.LR, squash(dot), squash(k.Model[0]))
	k.Next[0] = squash(k.Model[0]) + dot
}

// squash maps any number into [−1, 1], so that nothing overflows.
func squash(x float64) float64 { return x / (1 + math.Abs(x)) }

func (r allSumsRule) Apply(pass int, k *optim.Step, s *optim.Span[float32]) {
	cols := s.Tensor.Info.RowLen()
	switch pass {
	case 0:
		for i, w := range s.W {
			g := float64(s.G[optim.Grad][i])
			s.Sums[sumRow][(s.At+i)/cols-s.FirstRow] += float64(g * g)
			col := &s.Sums[maxColumn][(s.At+i)%cols]
			*col = max(*col, math.Abs(g))
			s.Sums[sumModel][0] += float64(g * float64(w))
			s.Gathered[gatherAll][i] = w + float32(0.5*g)
			s.Scratch[0][i] = float32(g) + float32(0.01*w)
		}
	case 1:
		rows := s.Tensor.Reduced[0][sumRow]
		for i := range s.W {
			x := float64(s.Scratch[0][i])
			s.Sums[0][0] += float64(x * x)
			s.Sums[0][1] += float64(x * squash(rows[(s.At+i)/cols]))
		}
	default:
		r.finish(k, s, cols)
	}
}

// finish takes the step. Slots that are not per element are replicated on every
// shard with a part of the tensor, so every span writes them whole.
func (allSumsRule) finish(k *optim.Step, s *optim.Span[float32], cols int) {
	t := s.Tensor
	sums, old, next := t.Reduced[0], t.Slots, t.Next
	for i, x := range sums[sumRow] {
		next[slotRows][i] = float64(0.5*old[slotRows][i]) + x
	}
	for i, x := range sums[maxColumn] {
		next[slotCols][i] = max(float64(0.5*old[slotCols][i]), x)
	}
	norm := t.Reduced[1][0]
	next[slotNorm][0] = float64(0.5*old[slotNorm][0]) + norm[0]
	common := k.Coef[1] + k.Coef[2] + squash(norm[1]) + squash(old[slotNorm][0])
	m := s.Slots[slotM]
	for i, w := range s.W {
		at := s.At + i
		m[i] = float32(0.9*m[i]) + s.Scratch[0][i]
		d := common + squash(old[slotRows][at/cols]) + squash(old[slotCols][at%cols]) + squash(sums[gatherAll][(at+1)%len(sums[gatherAll])])
		s.Out[i] = w - float32(k.Coef[0]*(float64(m[i])+d))
	}
}
