package optim

import (
	"fmt"
	"math"

	"tributary/layout"
)

// Runner runs a rule over a whole model in one process. It is the plain twin
// of package shard, made to be obviously right and not to be fast: it cuts
// the model into shards that share nothing but the totals of reductions.
// It is not safe for concurrent use.
type Runner[T Float] struct {
	l      *layout.Layout
	rule   Rule[T]
	spec   *Spec
	shards []*part[T]
	model  []float64 // model slots in Spec order
	k      Step
	span   int
}

// RunnerOptions says how a Runner cuts its work. None of it changes a bit of
// the result; the chunk length, which belongs to the layout, does for rules
// with reductions.
type RunnerOptions struct {
	Shards int // parts that the model is cut into; 0 means 1
	// Span is how many elements a rule without reductions sees at a time; 0
	// means as many as fit.
	Span int
	Seed uint64 // of slots that start as noise
}

// part is one shard: its range of the vector and its replicas of what tensors
// and totals all shards share.
type part[T Float] struct {
	layout.Range
	blocks  []layout.Block
	w       []T
	hand    []T   // what the last phase handed out
	slots   [][]T // element slots in Spec order, nil for others
	tensors []TensorState
	scratch [][]T
}

// Input is what is pushed for one phase of a step, combined over all
// contributions.
type Input[T Float] struct {
	G              [NumRoles][]T // by role, each of length P or nil
	LR             float64       // value of the schedule
	Loss, Examples float64
	// Runs are the runs of parameters that the input names, ascending and
	// apart; nil means all. Only for rules that take runs.
	Runs []layout.Range
}

// NewRunner returns a runner of rule over l with parameters w, of length l.P,
// which is copied.
func NewRunner[T Float](rule Rule[T], l *layout.Layout, w []T, o RunnerOptions) *Runner[T] {
	checkLen(l.P, len(w))
	r := &Runner[T]{l: l, rule: rule, spec: rule.Spec(), span: o.Span}
	for _, chunks := range l.Shards(o.Shards) {
		p := &part[T]{Range: layout.Range{Lo: l.Chunk(chunks.Lo).Lo, Hi: l.Chunk(chunks.Hi - 1).Hi}}
		for c := chunks.Lo; c < chunks.Hi; c++ {
			p.blocks = l.Blocks(p.blocks, c)
		}
		p.w = append([]T(nil), w[p.Lo:p.Hi]...)
		p.hand = append([]T(nil), p.w...)
		p.start(l, r.spec, o.Seed)
		r.shards = append(r.shards, p)
	}
	for _, sl := range r.spec.Slots {
		if sl.Class == Model {
			r.model = append(r.model, sl.Init)
		}
	}
	return r
}

// start fills the slots with their first values.
func (p *part[T]) start(l *layout.Layout, spec *Spec, seed uint64) {
	p.tensors = make([]TensorState, len(l.Tensors))
	for ti := range l.Tensors {
		p.tensors[ti].Info = &l.Tensors[ti]
	}
	p.slots = make([][]T, len(spec.Slots))
	for si := range spec.Slots {
		sl := &spec.Slots[si]
		if sl.Elements() {
			p.slots[si] = p.startElements(l, sl, seed)
		}
		for ti := range p.tensors {
			ts := &p.tensors[ti]
			in := sl.In(ts.Info)
			n := 0
			if in != nil {
				n = in.Class.Values(ts.Info)
			}
			x := make([]float64, n)
			for i := range x {
				x[i] = in.Init
			}
			ts.Slots = append(ts.Slots, x)
			ts.Next = append(ts.Next, append([]float64(nil), x...))
		}
	}
}

func (p *part[T]) startElements(l *layout.Layout, sl *Slot, seed uint64) []T {
	x := make([]T, p.Len())
	for _, b := range p.blocks {
		t := &l.Tensors[b.Tensor]
		in := sl.In(t)
		if in == nil || in.Class != Element {
			continue
		}
		part := x[b.Lo-p.Lo : b.Hi-p.Lo]
		switch {
		case in.FromParams:
			copy(part, p.w[b.Lo-p.Lo:])
		case in.Noise != 0:
			noise := make([]float32, b.Len())
			layout.InitNoise(seed, t, in.Name, b.Lo-t.Offset, in.Noise, noise)
			for i, z := range noise {
				part[i] = T(z)
			}
		default:
			for i := range part {
				part[i] = T(in.Init)
			}
		}
	}
	return x
}

// Step takes one step, with one input per phase of the rule.
func (r *Runner[T]) Step(phases ...Input[T]) {
	if len(phases) != len(r.spec.Phases) {
		panic(fmt.Sprintf("optim: %d inputs for the %d phases of %s", len(phases), len(r.spec.Phases), r.spec.Name))
	}
	for i := range phases {
		r.Phase(i, phases[i])
	}
}

func (r *Runner[T]) phase(phase int, in *Input[T]) {
	k := &r.k
	last := phase == len(r.spec.Phases)-1
	k.Phase, k.LR, k.Loss, k.Examples = phase, in.LR, in.Loss, in.Examples
	k.Model = append(k.Model[:0], r.model...)
	k.Next = append(k.Next[:0], r.model...)
	k.Reduced = nil
	passes := r.spec.Phases[phase].Passes
	for _, p := range r.shards {
		p.begin(passes)
	}
	for pass := range passes {
		r.rule.Prepare(pass, k)
		for _, p := range r.shards {
			for ti := range p.tensors {
				if ts := &p.tensors[ti]; !ts.Info.Buffer {
					PrepareTensor(r.rule, pass, k, ts)
				}
			}
		}
		parts := make([][][]float64, 0, len(r.shards))
		// Backwards, so that nothing can lean on the order of the shards.
		for i := len(r.shards) - 1; i >= 0; i-- {
			parts = append(parts, r.sweep(r.shards[i], pass, &passes[pass], in)...)
		}
		r.combine(&passes[pass], parts)
	}
	if !last {
		return
	}
	r.model = append(r.model[:0], k.Next...)
	for _, p := range r.shards {
		copy(p.w, p.hand)
		for ti := range p.tensors {
			ts := &p.tensors[ti]
			for si := range ts.Slots {
				copy(ts.Slots[si], ts.Next[si])
			}
		}
	}
}

// begin readies a shard for a phase.
func (p *part[T]) begin(passes []Pass) {
	p.scratch = nil
	for i := range passes {
		for range passes[i].Scratch {
			p.scratch = append(p.scratch, make([]T, p.Len()))
		}
	}
	for ti := range p.tensors {
		ts := &p.tensors[ti]
		ts.Reduced = nil
		for si := range ts.Slots {
			copy(ts.Next[si], ts.Slots[si])
		}
	}
}

// sweep runs a pass over one shard. It returns the partial values of its
// blocks, the last block first.
func (r *Runner[T]) sweep(p *part[T], pass int, ps *Pass, in *Input[T]) (parts [][][]float64) {
	for _, b := range p.blocks {
		if t := &r.l.Tensors[b.Tensor]; !t.Buffer {
			parts = append([][][]float64{r.block(p, t, b, pass, ps, in)}, parts...)
		}
	}
	return parts
}

func (r *Runner[T]) block(p *part[T], t *layout.Tensor, b layout.Block, pass int, ps *Pass, in *Input[T]) [][]float64 {
	sums := make([][]float64, len(ps.Reduce))
	gathered := make([][]T, len(ps.Reduce))
	for i := range ps.Reduce {
		rd := &ps.Reduce[i]
		sums[i] = make([]float64, rd.PartialLen(t, b))
		if rd.Op == Gather && !rd.skips(t) {
			gathered[i] = make([]T, b.Len())
		}
		rd.Start(sums[i])
	}
	step := r.span
	if step <= 0 || r.spec.Reductions() > 0 {
		step = SpanLen
	}
	for lo := b.Lo; lo < b.Hi; {
		lo = in.next(lo)
		hi := min(lo+step, in.until(lo), b.Hi)
		if lo >= b.Hi {
			break
		}
		s := Span[T]{Tensor: &p.tensors[b.Tensor], At: lo - t.Offset, Block: b, Sums: sums, FirstRow: FirstRow(t, b)}
		s.W = p.w[lo-p.Lo : hi-p.Lo : hi-p.Lo]
		s.Out = p.hand[lo-p.Lo : hi-p.Lo : hi-p.Lo]
		for role, g := range in.G {
			if g != nil {
				s.G[role] = append([]T(nil), g[lo:hi]...)
			}
		}
		s.Slots, s.Scratch = cut(p.slots, lo-p.Lo, hi-p.Lo), cut(p.scratch, lo-p.Lo, hi-p.Lo)
		for i := range s.Slots {
			if in := r.spec.Slots[i].In(t); in == nil || in.Class != Element {
				s.Slots[i] = nil
			}
		}
		s.Gathered = cut(gathered, lo-b.Lo, hi-b.Lo)
		r.rule.Apply(pass, &r.k, &s)
		lo = hi
	}
	for i, g := range gathered {
		for j, x := range g {
			sums[i][j] = float64(x)
		}
	}
	return sums
}

// next is the first parameter from lo on that the input names.
func (in *Input[T]) next(lo int) int {
	if in.Runs == nil {
		return lo
	}
	for _, run := range in.Runs {
		if lo < run.Hi {
			return max(lo, run.Lo)
		}
	}
	return math.MaxInt
}

// until is the end of the run that holds parameter lo.
func (in *Input[T]) until(lo int) int {
	for _, run := range in.Runs {
		if lo < run.Hi {
			return run.Hi
		}
	}
	return math.MaxInt
}

// cut takes [lo:hi] of each slice that is there.
func cut[T any](xs [][]T, lo, hi int) [][]T {
	out := make([][]T, len(xs))
	for i, x := range xs {
		if x != nil {
			out[i] = x[lo:hi:hi]
		}
	}
	return out
}

// combine adds up the partial values, which come last block first, and gives
// every shard its own copy of the totals.
func (r *Runner[T]) combine(ps *Pass, parts [][][]float64) {
	for _, p := range r.shards {
		tt := NewTotals(ps, r.l, nil)
		i := len(parts)
		for c := range r.l.Chunks() {
			for _, b := range r.l.Blocks(nil, c) {
				if !r.l.Tensors[b.Tensor].Buffer {
					i--
					tt.Add(b, parts[i])
				}
			}
		}
		for ti := range p.tensors {
			p.tensors[ti].Reduced = append(p.tensors[ti].Reduced, tt.Tensor(ti))
		}
		if p == r.shards[0] {
			r.k.Reduced = append(r.k.Reduced, tt.Model())
		}
	}
}

// T is the number of steps taken.
func (r *Runner[T]) T() uint64 { return r.k.T }

// Params returns a copy of the parameters.
func (r *Runner[T]) Params() []T {
	out := make([]T, 0, r.l.P)
	for _, p := range r.shards {
		out = append(out, p.w...)
	}
	return out
}

// Slot returns a copy of an element slot, or nil if there is none.
func (r *Runner[T]) Slot(name string) []T {
	for si, sl := range r.spec.Slots {
		if sl.Name == name && sl.Elements() {
			out := make([]T, 0, r.l.P)
			for _, p := range r.shards {
				out = append(out, p.slots[si]...)
			}
			return out
		}
	}
	return nil
}

// SetSlot overwrites an element slot with x, of length P, to start from a
// given state.
func (r *Runner[T]) SetSlot(name string, x []T) {
	checkLen(r.l.P, len(x))
	for si, sl := range r.spec.Slots {
		if sl.Name == name && sl.Elements() {
			for _, p := range r.shards {
				copy(p.slots[si], x[p.Lo:p.Hi])
			}
			return
		}
	}
	panic(fmt.Sprintf("optim: %s has no element slot %q", r.spec.Name, name))
}

// Point returns a copy of the parameters at a point; at Perturbed, what the
// last phase handed out, which is the parameters again once a step is done.
func (r *Runner[T]) Point(p Point) []T {
	switch {
	case p == Eval && r.spec.Eval != "":
		return r.Slot(r.spec.Eval)
	case p == Perturbed:
		out := make([]T, 0, r.l.P)
		for _, x := range r.shards {
			out = append(out, x.hand...)
		}
		return out
	}
	return r.Params()
}

// Phase takes one phase of a step alone, phases in their order. Step does all
// of them.
func (r *Runner[T]) Phase(phase int, in Input[T]) {
	if phase == 0 {
		r.k.T++
	}
	r.phase(phase, &in)
}

// ModelSlot returns the value of a slot of the model.
func (r *Runner[T]) ModelSlot(name string) float64 {
	i := 0
	for _, sl := range r.spec.Slots {
		if sl.Class != Model {
			continue
		}
		if sl.Name == name {
			return r.model[i]
		}
		i++
	}
	panic(fmt.Sprintf("optim: %s has no slot %q of the model", r.spec.Name, name))
}
