package optim

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"tributary/layout"
)

// probe is a rule made to test reductions: pass 0 reduces the parameters in
// every way there is, with widths, and the last pass checks that every span
// sees the totals, then lowers each parameter by one.
type probe struct {
	t    fataler
	want *probeWant
}

var probeSpec = Spec{Name: "probe",
	Slots: []Slot{{Name: "rows", Class: Row, Init: 1}, {Name: "steps", Class: Model}},
	Phases: []Phase{{Needs: []Role{Grad}, Passes: []Pass{
		{Scratch: 1, Reduce: []Reduction{
			{Name: "row", Op: Sum, Over: Row, Width: 2},
			{Name: "column", Op: Max, Over: Column},
			{Name: "tensor", Op: Max, Over: Tensor},
			{Name: "model", Op: Sum, Over: Model},
			{Name: "all", Op: Gather, Over: Tensor},
		}},
		{},
	}}}}

func (p *probe) Spec() *Spec { return &probeSpec }

func (p *probe) Prepare(pass int, k *Step) {
	if pass == 1 {
		k.Next[0] = k.Model[0] + k.Reduced[0][3][0]
	}
}

func (p *probe) Apply(pass int, k *Step, s *Span[float64]) {
	cols := s.Tensor.Info.RowLen()
	if pass == 0 {
		for i, w := range s.W {
			row, col := (s.At+i)/cols, (s.At+i)%cols
			s.Sums[0][2*(row-s.FirstRow)] += w
			s.Sums[0][2*(row-s.FirstRow)+1] += 1
			s.Sums[1][col] = max(s.Sums[1][col], w)
			s.Sums[2][0] = max(s.Sums[2][0], w)
			s.Sums[3][0] += w
			s.Gathered[4][i] = w
			s.Scratch[0][i] = w
		}
		return
	}
	if got, want := fmt.Sprint(s.Tensor.Reduced[0]), p.want.tensor[s.Tensor.Info.Name]; got != want {
		p.t.Fatal(fmt.Sprintf("%s: totals %s, want %s", s.Tensor.Info.Name, got, want))
	}
	if k.Reduced[0][3][0] != p.want.model {
		p.t.Fatal(fmt.Sprintf("model total %v, want %v", k.Reduced[0], p.want.model))
	}
	for i, w := range s.W {
		if s.Scratch[0][i] != w {
			p.t.Fatal("scratch was not kept")
		}
		s.Out[i] = w - 1
		row := (s.At + i) / cols
		s.Tensor.Next[0][row] = s.Tensor.Slots[0][row] + 1
	}
}

type probeWant struct {
	tensor map[string]string
	model  float64
}

// probeTwin computes the totals directly from the vector.
func probeTwin(l *layout.Layout, w []float64) *probeWant {
	pw := &probeWant{tensor: map[string]string{}}
	for ti := range l.Tensors {
		t := &l.Tensors[ti]
		if t.Buffer {
			continue
		}
		x := w[t.Offset : t.Offset+t.Len]
		cols := t.RowLen()
		rows, column := make([]float64, 2*(t.Len/cols)), slices.Repeat([]float64{math.Inf(-1)}, cols)
		for i, v := range x {
			rows[2*(i/cols)] += v
			rows[2*(i/cols)+1]++
			column[i%cols] = max(column[i%cols], v)
			pw.model += v
		}
		pw.tensor[t.Name] = fmt.Sprint([][]float64{rows, column, {slices.Max(x)}, nil, x})
	}
	return pw
}

func TestReductions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := testModel(t, rapid.IntRange(1, 30).Draw(t, "chunk"))
		// Small whole numbers: sums are exact, so any order gives the twin's.
		ints := rapid.SliceOfN(rapid.IntRange(-9, 9), l.P, l.P).Draw(t, "w")
		w := make([]float64, l.P)
		for i, x := range ints {
			w[i] = float64(x)
		}
		p := &probe{t: t}
		r := NewRunner[float64](p, l, w, RunnerOptions{
			Shards: rapid.IntRange(1, 5).Draw(t, "shards"), Span: rapid.IntRange(0, 4).Draw(t, "span")})
		sum := 0.0
		for range 2 {
			p.want = probeTwin(l, r.Params())
			sum += p.want.model
			r.Step(Input[float64]{G: [NumRoles][]float64{Grad: w}})
		}
		if r.model[0] != sum {
			t.Fatalf("model slot %v, want %v", r.model[0], sum)
		}
		for _, sh := range r.shards {
			for _, b := range sh.blocks {
				if ts := &sh.tensors[b.Tensor]; !ts.Info.Buffer {
					for e := b.Lo; e < b.Hi; e++ {
						if x := ts.Slots[0][(e-ts.Info.Offset)/ts.Info.RowLen()]; x != 3 {
							t.Fatalf("row slot %v after two steps, want 3", x)
						}
					}
				}
			}
		}
	})
}

// Blocks are added in ascending order, whatever it costs in accuracy: 1e16 + 1
// + 1 in this order stays 1e16.
func TestTotalsOrder(t *testing.T) {
	l, err := layout.New([]layout.Tensor{{Name: "x", Shape: []int{3}}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	p := &Pass{Reduce: []Reduction{{Name: "s", Over: Tensor}, {Name: "m", Over: Model}}}
	tt := NewTotals(p, l, nil)
	for c, v := range []float64{1e16, 1, 1} {
		tt.Add(l.Blocks(nil, c)[0], [][]float64{{v}, {v}})
	}
	if got := tt.Tensor(0)[0][0]; got != 1e16 || tt.Model()[1][0] != 1e16 {
		t.Errorf("total %v, want 1e16", got)
	}
	if tt.Tensor(0)[1] != nil || tt.Model()[0] != nil {
		t.Error("totals over tensor and model are mixed up")
	}
	b := l.Blocks(nil, 0)[0]
	if !panics(func() { tt.Add(b, [][]float64{{1}, {1}}) }) {
		t.Error("a block out of order: no panic")
	}
	for _, bad := range [][][]float64{nil, {{1}}, {{1}, {1, 2}}, {{}, {1}}} {
		if tt.Check(b, bad) == nil {
			t.Errorf("Check(%v): no error", bad)
		}
	}
	none := NewTotals(p, l, func(int) bool { return false })
	none.Add(b, [][]float64{{1}, {1}})
	if none.Tensor(0) != nil || none.Model()[1][0] != 1 {
		t.Error("a shard without the tensor keeps the model's totals alone")
	}
}

// A NaN in a maximum must not hide behind larger numbers.
func TestMaxKeepsNaN(t *testing.T) {
	r := &Reduction{Op: Max, Over: Tensor}
	x := make([]float64, 1)
	r.Start(x)
	for _, v := range []float64{1, math.NaN(), 2} {
		r.fold(x, nil, layout.Block{}, []float64{v})
	}
	if x[0] == x[0] {
		t.Errorf("max = %v, want NaN", x[0])
	}
}

func TestRunnerRefuses(t *testing.T) {
	l := testModel(t, 0)
	r := NewRunner(newRule[float32](t, ruleVariants[0]), l, make([]float32, l.P), RunnerOptions{})
	if !panics(func() { r.Step() }) {
		t.Error("Step without input: no panic")
	}
	if !panics(func() { r.SetSlot("nope", make([]float32, l.P)) }) {
		t.Error("SetSlot of an unknown slot: no panic")
	}
	if !panics(func() { NewRunner(newRule[float32](t, ruleVariants[0]), l, make([]float32, 3), RunnerOptions{}) }) {
		t.Error("parameters of the wrong length: no panic")
	}
	if r.Slot("nope") != nil || r.T() != 0 {
		t.Error("a new runner has steps or unknown slots")
	}
	if !equalBits(r.Point(Eval), r.Params()) {
		t.Error("a point without slot is the parameters")
	}
}
