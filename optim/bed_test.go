package optim

import (
	"testing"

	"tributary/layout"
)

// bed runs the passes of a rule over one tensor, all of it in one block, without
// the Runner: to see what Apply writes and allocates. Every slice of elements
// lies between two sentinels.
type bed[T Float] struct {
	t      fataler
	rule   Rule[T]
	spec   *Spec
	l      *layout.Layout
	k      Step
	ts     TensorState
	s      Span[T]
	whole  []T // parameters
	out    []T // what is handed out
	input  [NumRoles][]T
	guards [][]T // all slices with their sentinels
}

const sentinel = -77

// newBed prepares step t of rule over a tensor of the given shape.
func newBed[T Float](t fataler, rule Rule[T], step uint64, shape ...int) *bed[T] {
	l, err := layout.New([]layout.Tensor{{Name: "x", Shape: shape}}, 1<<18)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed[T]{t: t, rule: rule, spec: rule.Spec(), l: l}
	b.k = Step{T: step, LR: 0.01, Loss: 1.5, Examples: 1}
	b.ts.Info = &l.Tensors[0]
	b.s.Tensor, b.s.Block = &b.ts, l.Blocks(nil, 0)[0]
	b.whole, b.out = b.elements(1), b.elements(2)
	for i := range b.spec.Slots {
		b.slot(&b.spec.Slots[i])
	}
	b.s.Slots = append(b.s.Slots, make([][]T, len(b.spec.Slots)-len(b.s.Slots))...)
	return b
}

// elements are values about x, one per element of the tensor.
func (b *bed[T]) elements(x float64) []T {
	n := b.l.P
	all := make([]T, n+2)
	for i := range all {
		all[i] = T(x + float64(i)/float64(n))
	}
	all[0], all[n+1] = sentinel, sentinel
	b.guards = append(b.guards, all)
	return all[1 : n+1]
}

func (b *bed[T]) slot(sl *Slot) {
	in := sl.In(b.ts.Info)
	var elements []T
	var x []float64
	switch {
	case in == nil:
	case in.Class == Element:
		elements = b.elements(0.5)
	case in.Class == Model:
		b.k.Model, b.k.Next = append(b.k.Model, in.Init), append(b.k.Next, in.Init)
	default:
		x = make([]float64, in.Class.Values(b.ts.Info))
		for i := range x {
			x[i] = in.Init
		}
	}
	b.s.Slots = append(b.s.Slots, elements)
	b.ts.Slots, b.ts.Next = append(b.ts.Slots, x), append(b.ts.Next, append([]float64(nil), x...))
}

// phase prepares a phase: its inputs and scratch.
func (b *bed[T]) phase(phase int) {
	b.k.Phase, b.k.Reduced, b.ts.Reduced = phase, nil, nil
	b.input = [NumRoles][]T{}
	for _, role := range b.spec.Roles(phase, b.k.T) {
		b.input[role] = b.elements(float64(role)/4 + 0.5)
	}
	b.s.Scratch = nil
	for _, ps := range b.spec.Phases[phase].Passes {
		for range ps.Scratch {
			b.s.Scratch = append(b.s.Scratch, b.elements(0))
		}
	}
}

// pass runs a pass of the current phase. It must not allocate if the rule does
// not, once ready has been called for it.
func (b *bed[T]) pass(pass int) {
	b.rule.Prepare(pass, &b.k)
	PrepareTensor(b.rule, pass, &b.k, &b.ts)
	s := &b.s
	for i := range b.spec.Phases[b.k.Phase].Passes[pass].Reduce {
		b.spec.Phases[b.k.Phase].Passes[pass].Reduce[i].Start(s.Sums[i])
	}
	s.W, s.Out, s.G = b.whole, b.out, b.input
	b.rule.Apply(pass, &b.k, s)
}

// ready makes room for the sums of a pass.
func (b *bed[T]) ready(pass int) {
	b.s.Sums, b.s.Gathered = nil, nil
	for i := range b.spec.Phases[b.k.Phase].Passes[pass].Reduce {
		rd := &b.spec.Phases[b.k.Phase].Passes[pass].Reduce[i]
		b.s.Sums = append(b.s.Sums, make([]float64, rd.PartialLen(b.ts.Info, b.s.Block)))
		var gathered []T
		if rd.Op == Gather && !rd.skips(b.ts.Info) {
			gathered = make([]T, b.l.P)
		}
		b.s.Gathered = append(b.s.Gathered, gathered)
	}
}

// reduce adds up what a pass summed, for the later ones.
func (b *bed[T]) reduce(pass int) {
	for i, g := range b.s.Gathered {
		for j, x := range g {
			b.s.Sums[i][j] = float64(x)
		}
	}
	tt := NewTotals(&b.spec.Phases[b.k.Phase].Passes[pass], b.l, nil)
	tt.Add(b.s.Block, b.s.Sums)
	b.ts.Reduced = append(b.ts.Reduced, tt.Tensor(0))
	b.k.Reduced = append(b.k.Reduced, tt.Model())
}

// run takes the whole step. Around every pass it calls around, if there is one,
// which must call the pass; last says that it is the last pass of the step.
func (b *bed[T]) run(around func(pass func(), last bool)) {
	for ph := range b.spec.Phases {
		b.phase(ph)
		passes := b.spec.Phases[ph].Passes
		for p := range passes {
			b.ready(p)
			f := func() { b.pass(p) }
			if around != nil {
				around(f, ph == len(b.spec.Phases)-1 && p == len(passes)-1)
			} else {
				f()
			}
			b.reduce(p)
		}
	}
}

// bedShapes are vectors around the length of a vector register and of a tile,
// and tensors of more dimensions. All fit into one span.
var bedShapes = [][]int{{1}, {2}, {3}, {7}, {8}, {9}, {17}, {tile}, {2*tile + 1}, {3, 5}, {5, 3}, {24, 20}, {2, 3, 4, 5}}

// Only the last pass of a step writes parameters and slots, in place or not;
// slices are written to their length and no further.
func TestApplyWrites(t *testing.T) {
	for _, v := range ruleVariants {
		rule := newRule[float32](t, v)
		for _, shape := range bedShapes {
			for step := range uint64(2) {
				apart := newBed(t, rule, step+1, shape...)
				apart.run(func(pass func(), last bool) { apart.checkWrites(t, v, pass, last) })
				if len(rule.Spec().Phases) > 1 {
					continue
				}
				in := newBed(t, rule, step+1, shape...)
				in.out = in.whole
				in.run(nil)
				if !equalBits(apart.out, in.out) {
					t.Errorf("%v: in place %v, otherwise %v", v, in.out, apart.out)
				}
				for i, x := range apart.s.Slots {
					if !equalBits(x, in.s.Slots[i]) {
						t.Errorf("%v: slot %d: in place %v, otherwise %v", v, i, in.s.Slots[i], x)
					}
				}
			}
		}
	}
}

func (b *bed[T]) checkWrites(t *testing.T, v ruleVariant, pass func(), last bool) {
	// Parameters, what is handed out and the slots were made first.
	state := 2
	for _, x := range b.s.Slots {
		if x != nil {
			state++
		}
	}
	var before [][]T
	for _, x := range b.guards[:state] {
		before = append(before, append([]T(nil), x...))
	}
	model, slots := append([]float64(nil), b.k.Model...), clone2(b.ts.Slots)
	pass()
	for i, x := range b.guards {
		if x[0] != sentinel || x[len(x)-1] != sentinel {
			t.Errorf("%v: slice %d: written outside its %d elements", v, i, b.l.P)
		}
	}
	for i, x := range before {
		// A phase that is not the last hands out a point in its last pass.
		mayWrite := last || i == 1 && len(b.spec.Phases) > 1
		if (i == 0 || !mayWrite) && !equalBits(x, b.guards[i]) {
			t.Errorf("%v: phase %d changed slice %d", v, b.k.Phase, i)
		}
	}
	for i, x := range slots {
		if !equalBits(x, b.ts.Slots[i]) {
			t.Errorf("%v: a slot of the tensor was changed in place", v)
		}
	}
	if !equalBits(model, b.k.Model) {
		t.Errorf("%v: a slot of the model was changed in place", v)
	}
}

func clone2(x [][]float64) (out [][]float64) {
	for _, y := range x {
		out = append(out, append([]float64(nil), y...))
	}
	return out
}

// Steps allocate nothing once the first of them is done.
func TestStepsDoNotAllocate(t *testing.T) {
	for _, v := range ruleVariants {
		checkAllocs[float32](t, v)
		checkAllocs[float64](t, v)
	}
}

func checkAllocs[T Float](t *testing.T, v ruleVariant) {
	rule := newRule[T](t, v)
	for _, shape := range [][]int{{2*tile + 1}, {24, 20}, {2, 3, 4, 5}} {
		for step := range uint64(2) {
			b := newBed(t, rule, step+1, shape...)
			b.run(func(pass func(), _ bool) {
				if n := testing.AllocsPerRun(3, pass); n != 0 {
					t.Errorf("%v, %T, shape %v, phase %d: %v allocations in a pass", v, T(0), shape, b.k.Phase, n)
				}
			})
		}
	}
}

// Slices that differ in length are a mistake in the program.
func TestApplyPanicsOnLengths(t *testing.T) {
	for _, v := range ruleVariants {
		rule := newRule[float32](t, v)
		roles := rule.Spec().Roles(len(rule.Spec().Phases)-1, 1)
		for short := range 2 + len(roles) + len(rule.Spec().Slots) {
			b := newBed(t, rule, 1, 3, 5)
			b.run(func(pass func(), last bool) {
				x := &b.whole
				switch slot := short - 2 - len(roles); {
				case slot >= 0:
					x = &b.s.Slots[slot]
				case short >= 2:
					x = &b.input[roles[short-2]]
				case short == 1:
					x = &b.out
				}
				if !last || *x == nil { // a slot may hold no elements
					pass()
					return
				}
				*x = (*x)[:len(*x)-1]
				if !panics(pass) {
					t.Errorf("%v: slice %d is too short: no panic", v, short)
				}
			})
		}
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}
