package optim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"tributary/layout"
)

// grouped is l with its tensors in the given groups.
func grouped(t fataler, l *layout.Layout, groups []int) *layout.Layout {
	tensors := slices.Clone(l.Tensors)
	for i := range tensors {
		tensors[i].Group = groups[i]
	}
	out, err := layout.New(tensors, l.ChunkLen)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// onlyGroup is l with all other groups made buffers: nothing touches them, and
// every block and chunk is where it was.
func onlyGroup(t fataler, l *layout.Layout, group int) *layout.Layout {
	tensors := slices.Clone(l.Tensors)
	for i := range tensors {
		tensors[i].Buffer = tensors[i].Buffer || tensors[i].Group != group
	}
	out, err := layout.New(tensors, l.ChunkLen)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// wideModel has a matrix that three shards hold parts of, cut inside rows.
func wideModel(t fataler) *layout.Layout {
	l, err := layout.New([]layout.Tensor{
		{Name: "fc.weight", Shape: []int{37, 331}},
		{Name: "fc.bias", Shape: []int{37}, NoDecay: true},
		{Name: "conv.weight", Shape: []int{5, 2, 3, 3}},
		{Name: "norm.scale", Shape: []int{}},
	}, 4096)
	if err != nil {
		t.Fatal(err)
	}
	for _, shards := range []int{3} {
		cuts := l.Shards(shards)
		for _, c := range cuts[1:] {
			if at := l.Chunk(c.Lo).Lo; at%331 == 0 || at > l.Tensors[0].Len {
				t.Fatal(fmt.Sprintf("shards do not cut inside a row: %d", at))
			}
		}
	}
	return l
}

func drawGroups(t *rapid.T, l *layout.Layout, n int) []int {
	return rapid.SliceOfN(rapid.IntRange(0, n-1), len(l.Tensors), len(l.Tensors)).Draw(t, "groups")
}

// A composition of one rule with itself has the bits of that rule, unless it
// sums over the model; slots included, however the tensors are grouped and the
// model is cut.
func TestGroupsOfOneRule(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
		l = grouped(t, l, drawGroups(t, l, 3))
		vector := rapid.SliceOfN(draw32(-100, 100), l.P, l.P)
		w := vector.Draw(t, "w")
		inputs := drawInputs(t, 3, vector)
		shards := rapid.SampledFrom([]int{1, 2, 3, 7}).Draw(t, "shards")
		for _, v := range ruleVariants {
			plain := newRule[float32](t, v)
			if spec := plain.Spec(); len(spec.Phases) > 1 || widest(spec) == Model {
				continue
			}
			again := newRule[float32](t, v)
			rule, err := Groups([]GroupRule[float32]{{plain, 0.1}, {again, 0.1}, {plain, 0.1}})
			if err != nil {
				t.Fatalf("%v: %v", v, err)
			}
			a, b := NewRunner(plain, l, w, RunnerOptions{Seed: 3}), NewRunner(rule, l, w, RunnerOptions{Shards: shards, Seed: 3})
			for i := range 3 {
				step(a, 0.1/float64(i+1), inputs(i))
				step(b, 0.1/float64(i+1), inputs(i))
			}
			for p := range NumPoints {
				if x, y := a.Point(p), b.Point(p); !equalBits(x, y) {
					t.Fatalf("%v: point %d: %v and %v", v, p, x, y)
				}
			}
			for _, sl := range a.spec.Slots {
				if x, y := a.Slot(sl.Name), b.Slot(sl.Name); !equalBits(x, y) {
					t.Fatalf("%v: slot %s: %v and %v", v, sl.Name, x, y)
				}
				if sl.Class == Model && b.ModelSlot(sl.Name) != a.ModelSlot(sl.Name) {
					t.Fatalf("%v: slot %s: %v and %v", v, sl.Name, a.ModelSlot(sl.Name), b.ModelSlot(sl.Name))
				}
			}
		}
	})
}

// In any composition the tensors of a group go as under their rule alone, with
// sums over the model taken over the group.
func TestGroupsTwin(t *testing.T) {
	var single []ruleVariant
	for _, v := range ruleVariants {
		if len(newRule[float32](t, v).Spec().Phases) == 1 {
			single = append(single, v)
		}
	}
	composed := 0
	rapid.Check(t, func(t *rapid.T) {
		l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
		n := rapid.IntRange(2, 4).Draw(t, "n")
		composed += checkGroups(t, l, drawGroups(t, l, n), rapid.SliceOfN(rapid.SampledFrom(single), n, n).Draw(t, "rules"),
			rapid.SampledFrom([]int{1, 2, 3, 7}).Draw(t, "shards"))
	})
	if composed < 20 {
		t.Errorf("only %d compositions were possible", composed)
	}
	l := wideModel(t)
	for _, names := range [][]string{{"lamb", "momo", "adamp"}, {"adamp", "sgd", "normalized_gd"}, {"momo_adam", "lamb", "momo"}} {
		var vs []ruleVariant
		for _, name := range names {
			vs = append(vs, ruleVariant{name: name})
		}
		for _, groups := range [][]int{{0, 1, 2, 0}, {1, 1, 0, 2}, {2, 0, 1, 1}} {
			if checkGroups(t, l, groups, vs, 3) == 0 {
				t.Errorf("%q do not go together", names)
			}
		}
	}
}

// checkGroups says how many compositions it checked, 0 or 1.
func checkGroups(t fataler, l *layout.Layout, groups []int, vs []ruleVariant, shards int) int {
	l = grouped(t, l, groups)
	lrs := []float64{0.1, 0.02, 0.1, 0.5}
	var rules []GroupRule[float32]
	for i, v := range vs {
		rules = append(rules, GroupRule[float32]{newRule[float32](t, v), lrs[i]})
	}
	rule, err := Groups(rules)
	if err != nil {
		if !errors.Is(err, ErrGroups) {
			t.Fatal(err)
		}
		return 0
	}
	w := jumble[float32](l.P, 4)
	r := NewRunner(rule, l, w, RunnerOptions{Shards: shards, Seed: 3})
	var alone []*Runner[float32]
	for i := range vs {
		alone = append(alone, NewRunner(rules[i].Rule, onlyGroup(t, l, i), w, RunnerOptions{Seed: 3}))
	}
	for n := range 4 {
		lr := 0.1 / float64(n+1)
		values := func(role Role) []float32 { return jumble[float32](l.P, n+int(role)) }
		step(r, lr, values)
		for i := range alone {
			own := lr
			if lrs[i] != lrs[0] {
				own = lr / lrs[0] * lrs[i]
			}
			step(alone[i], own, values)
		}
	}
	for p := range Perturbed {
		got := r.Point(p)
		for ti := range l.Tensors {
			tensor := &l.Tensors[ti]
			if tensor.Buffer {
				continue
			}
			lo, hi := tensor.Offset, tensor.Offset+tensor.Len
			if want := alone[tensor.Group].Point(p)[lo:hi]; !equalBits(got[lo:hi], want) {
				t.Fatal(fmt.Sprintf("%v, groups %v, %d shards: point %d of %s is %.9v, want %.9v", vs, groups, shards, p, tensor.Name, got[lo:hi], want))
			}
		}
	}
	return 1
}

func TestGroupsSpec(t *testing.T) {
	compose := func(names ...string) (Rule[float32], error) {
		var rules []GroupRule[float32]
		for _, n := range names {
			rules = append(rules, GroupRule[float32]{newRule[float32](t, ruleVariant{name: n}), 1})
		}
		return Groups(rules)
	}
	for _, c := range []struct {
		names []string
		slots string
		ok    func(*Spec) bool
	}{
		{[]string{"sgd", "adamw", "lion"}, "m v", func(s *Spec) bool { return s.Reductions() == 0 && len(s.Phases[0].Passes) == 1 }},
		{[]string{"adam", "ftrl"}, "m+z v+n", func(s *Spec) bool { return !s.NeedsLoss }},
		{[]string{"sgd", "momo", "momo"}, "d f gam lb f.2 gam.2 lb.2", func(s *Spec) bool { return s.NeedsLoss && s.Reductions() == 2 && !s.Runs }},
		{[]string{"sgd", "adam_lazy"}, "m v", func(s *Spec) bool { return s.Runs }},
		{[]string{"sgd", "sophia_g", "adahessian"}, "", func(s *Spec) bool {
			return s.AbsHessian && slices.Equal(s.Roles(0, 1), []Role{Grad, HessDiag, HessGrad}) && slices.Equal(s.Roles(0, 2), []Role{Grad, HessDiag})
		}},
		{[]string{"sophia_g", "spider"}, "", func(s *Spec) bool { return s.History() == 1 && slices.Equal(s.Roles(0, 2), []Role{Grad, GradPrev}) }},
		{[]string{"schedule_free_adamw", "schedule_free_adamw"}, "", func(s *Spec) bool { return s.Eval != "" }},
		{[]string{"lamb", "sgd", "lamb"}, "m v", func(s *Spec) bool { return len(s.Phases[0].Passes) == 2 && len(s.Phases[0].Passes[0].Reduce) == 2 }},
	} {
		rule, err := compose(c.names...)
		if err != nil {
			t.Errorf("%q: %v", c.names, err)
			continue
		}
		var slots []string
		for _, sl := range rule.Spec().Slots {
			slots = append(slots, sl.Name)
		}
		if got := strings.Join(slots, " "); c.slots != "" && got != c.slots || !c.ok(rule.Spec()) {
			t.Errorf("%q: slots %s, want %s; %+v", c.names, got, c.slots, rule.Spec())
		}
	}
	for _, c := range []struct {
		names []string
		want  string
	}{
		{nil, "there are none"},
		{[]string{"adamw", "schedule_free_sgd"}, "adamw evaluates the parameters, schedule_free_sgd its slot"},
	} {
		if _, err := compose(c.names...); !errors.Is(err, ErrGroups) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.names, err, c.want)
		}
	}
	two := newTwoPhase[float32]()
	if _, err := Groups([]GroupRule[float32]{{newRule[float32](t, ruleVariant{name: "sgd"}), 1}, {two, 1}}); !errors.Is(err, ErrGroups) || !strings.Contains(err.Error(), "pushes 2 times") {
		t.Errorf("two phases: %v", err)
	}
	if one, err := Groups([]GroupRule[float32]{{two, 1}}); err != nil || one != Rule[float32](two) {
		t.Errorf("one group: %v, %v", one, err)
	}
}

// onlooker is a rule that checks what it is shown: nothing of other rules. It keeps
// how often it saw a tensor, and has one pass for each entry of scratch.
type onlooker struct {
	t    *testing.T
	spec Spec
}

func newOnlooker(t *testing.T, role Role, element Slot, scratch ...int) *onlooker {
	r := &onlooker{t, Spec{Name: "onlooker at " + role.String(), Slots: []Slot{element, {Name: "seen", Class: Tensor, Init: 1}, {Name: "steps", Class: Model}}, Phases: []Phase{{Needs: []Role{role}}}}}
	for i, n := range scratch {
		p := Pass{Scratch: n}
		if i < len(scratch)-1 {
			p.Reduce = []Reduction{{Name: "count", Over: Model}, {Name: "top", Op: Max, Over: Tensor, Width: i + 1}}
		}
		r.spec.Phases[0].Passes = append(r.spec.Phases[0].Passes, p)
	}
	return r
}

func (r *onlooker) Spec() *Spec { return &r.spec }

// same reports what a pass is shown and should not be.
func (r *onlooker) same(what string, pass int, got, want any) {
	if got != want {
		r.t.Errorf("%s, pass %d: %s: %v, want %v", r.spec.Name, pass, what, got, want)
	}
}

func (r *onlooker) Prepare(pass int, k *Step) {
	r.same("passes done", pass, len(k.Reduced), pass)
	for _, x := range k.Reduced {
		r.same("reductions", pass, len(x), 2)
		r.same("elements of the group", pass, x[0][0], 22.0)
	}
	r.same("slots of the model", pass, len(k.Model), 1)
	r.same("steps", pass, k.Model[0], float64(k.T-1))
	k.Next[0] = k.Model[0] + 1
	k.Coef = append(k.Coef, k.LR) // must be empty before
	r.same("scalars", pass, len(k.Coef), 1)
}

func (r *onlooker) PrepareTensor(pass int, k *Step, ts *TensorState) {
	r.same("slots of the tensor", pass, len(ts.Slots), len(r.spec.Slots))
	r.same("seen", pass, ts.Slots[1][0], float64(k.T))
	for i, x := range ts.Reduced {
		r.same("values by tensor", pass, len(x[1]), i+1)
		r.same("highest", pass, x[1][i], 1.0)
	}
	ts.Next[1][0] = ts.Slots[1][0] + 1
}

func (r *onlooker) Apply(pass int, k *Step, s *Span[float32]) {
	for role, g := range s.G {
		r.same(Role(role).String(), pass, g != nil, Role(role) == r.spec.Phases[0].Needs[0])
	}
	arrays := 0
	for _, p := range r.spec.Phases[0].Passes {
		arrays += p.Scratch
	}
	r.same("scratch", pass, len(s.Scratch), arrays)
	r.same("slots", pass, len(s.Slots), 1)
	start := float32(r.spec.Slots[0].Init)
	if r.spec.Slots[0].FromParams {
		start = s.W[0]
	}
	r.same("slot", pass, s.Slots[0][0], start)
	r.same("sums", pass, len(s.Sums), len(r.spec.Phases[0].Passes[pass].Reduce))
	at := 0
	for i, p := range r.spec.Phases[0].Passes { // earlier passes wrote i+1
		for range p.Scratch {
			if i < pass {
				r.same("scratch of an earlier pass", pass, s.Scratch[at][0], float32(i+1))
			} else if i == pass {
				s.Scratch[at][0] = float32(i + 1)
			}
			at++
		}
	}
	if len(s.Sums) > 0 {
		s.Sums[0][0] += float64(len(s.W))
		s.Sums[1][pass] = 1
	} else {
		copy(s.Out, s.W)
	}
}

// Every rule of a composition sees what it would see alone.
func TestGroupsShowNothingElse(t *testing.T) {
	rules := []GroupRule[float32]{
		{newOnlooker(t, Grad, Slot{Name: "x", Init: 3}, 0, 2, 0), 1},
		{newOnlooker(t, HessDiag, Slot{Name: "x", FromParams: true}, 1, 0, 1, 2), 1},
		{newOnlooker(t, GradKD, Slot{Name: "x"}, 0, 1), 1},
	}
	rule, err := Groups(rules)
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.New([]layout.Tensor{
		{Name: "a", Shape: []int{2, 11}}, {Name: "b", Shape: []int{13}, Group: 1}, {Name: "c", Shape: []int{9}, Group: 1}, {Name: "d", Shape: []int{22}, Group: 2},
	}, 5)
	if err != nil {
		t.Fatal(err)
	}
	for _, shards := range []int{1, 3} {
		r := NewRunner(rule, l, rising[float32](l.P, 1, 1), RunnerOptions{Shards: shards})
		for range 3 {
			step(r, 0.1, constantly(rising[float32](l.P, 0, 1)))
		}
	}
	passes := rule.Spec().Phases[0].Passes
	for c := range passes {
		for _, rd := range passes[c].Reduce {
			n := 0
			for _, b := range l.Blocks(nil, 4) { // holds the ends of a and b, whose groups differ
				n += min(1, rd.PartialLen(&l.Tensors[b.Tensor], b))
			}
			if n > 1 {
				t.Errorf("pass %d: %s runs over several groups", c, rd.Name)
			}
		}
	}
	if n := len(l.Blocks(nil, 4)); n != 2 {
		t.Fatalf("chunk 4 has %d blocks", n)
	}
}

// Slots at one position that start in different ways keep them.
func TestGroupsUnite(t *testing.T) {
	for _, sl := range []Slot{{Name: "y"}, {Name: "x", Init: 1}, {Name: "x", FromParams: true}, {Name: "x", Noise: 1}, {Name: "x", By: func(*layout.Tensor) *Slot { return nil }}} {
		rule, err := Groups([]GroupRule[float32]{{newOnlooker(t, Grad, Slot{Name: "x"}, 0), 1}, {newOnlooker(t, Grad, sl, 0), 1}})
		if err != nil {
			t.Fatal(err)
		}
		both := &rule.Spec().Slots[0]
		first, second := both.In(&layout.Tensor{}), both.In(&layout.Tensor{Group: 1})
		if first.Name != "x" || first.Init != 0 || first.FromParams || first.Noise != 0 {
			t.Errorf("%+v: the first rule's is %+v", sl, first)
		}
		if sl.By != nil && second != nil || sl.By == nil && (second.Name != sl.Name || second.Init != sl.Init || second.FromParams != sl.FromParams || second.Noise != sl.Noise) {
			t.Errorf("%+v: the second rule's is %+v", sl, second)
		}
	}
}

// A base rate of 0 in the default group freezes it and says nothing about the
// others.
func TestGroupsRates(t *testing.T) {
	sgd := newRule[float64](t, ruleVariant{name: "sgd"})
	for i := range 100 { // equal base rates change no bit
		lr := 0.3 / float64(i+1)
		r := &groups[float64]{base: 0.3}
		if got := r.rate(&groupPart[float64]{lr: 0.3}, lr); got != lr {
			t.Errorf("rate %v became %v", lr, got)
		}
	}
	for _, c := range []struct{ base, lr, want0, want1 float64 }{{0.5, 0.25, 0.25, 0.125}, {0, 0, 0, 0.25}, {0.5, 0, 0, 0}} {
		rule, err := Groups([]GroupRule[float64]{{sgd, c.base}, {sgd, 0.25}})
		if err != nil {
			t.Fatal(err)
		}
		l := grouped(t, testModel(t, 4), []int{0, 1, 0, 1})
		r := NewRunner(rule, l, make([]float64, l.P), RunnerOptions{Shards: 2})
		step(r, c.lr, constantly(slices.Repeat([]float64{-1}, l.P)))
		if w := r.Params(); w[0] != c.want0 || w[l.P-1] != c.want1 {
			t.Errorf("base %v, now %v: rates %v and %v, want %v and %v", c.base, c.lr, w[0], w[l.P-1], c.want0, c.want1)
		}
	}
}

// Compositions and clipping take their steps without allocating, once the first
// is done.
func TestGroupsAndClipDoNotAllocate(t *testing.T) {
	for _, names := range [][]string{{"sgd", "adamw"}, {"adamp", "lamb"}, {"sgd", "momo", "sophia_g"}} {
		for group := range names {
			var rules []GroupRule[float32]
			for i := range names { // the bed's tensor has the first of them
				n := names[(group+i)%len(names)]
				rules = append(rules, GroupRule[float32]{newRule[float32](t, ruleVariant{name: n}), 1})
			}
			for _, c := range []ClipSpec{{}, {Value: 1}, {Value: 1, Adaptive: 0.1, TensorNorm: 1, Norm: 1}} {
				rule, err := Groups(rules)
				if err != nil {
					t.Fatal(err)
				}
				if rule, err = Clip(rule, c); err != nil {
					t.Fatal(err)
				}
				b := newBed(t, rule, 1, 24, 20)
				b.run(func(pass func(), _ bool) {
					if n := testing.AllocsPerRun(3, pass); n != 0 {
						t.Errorf("%q, rule %d, %+v: %v allocations in a pass", names, group, c, n)
					}
				})
			}
		}
	}
}
