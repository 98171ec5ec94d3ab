package job

import (
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tributary/layout"
	"tributary/optim"
)

// network is a job over tensors as frameworks name them.
func network(t *testing.T, optimizer string) *Spec {
	t.Helper()
	s, err := Parse([]byte(`
model:
  kind: tensors
  tensors:
    - {name: fc1.weight, shape: [90, 7]}
    - {name: fc1.bias, shape: [90]}
    - {name: norm1.scale, shape: [7]}
    - {name: norm1.mean, shape: [7], buffer: true}
    - {name: head.weight, shape: [10, 90]}
    - {name: head.bias, shape: [10], no_decay: true}
data: {name: none}
chunk: 256
optimizer: ` + optimizer))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// changed are the tensors that two steps with zero gradients move: those that
// decay.
func changed(t *testing.T, p *Pipeline) (names []string) {
	t.Helper()
	w := slices.Repeat([]float32{1}, p.Layout.P)
	r := optim.NewRunner(p.Rule, p.Layout, w, optim.RunnerOptions{Shards: 3})
	for i := range uint64(2) {
		in := optim.Input[float32]{LR: p.LR(i + 1)}
		in.G[optim.Grad] = make([]float32, p.Layout.P)
		r.Step(in)
	}
	got := r.Params()
	for i := range p.Layout.Tensors {
		ti := &p.Layout.Tensors[i]
		if !slices.Equal(got[ti.Offset:ti.Offset+ti.Len], w[ti.Offset:ti.Offset+ti.Len]) {
			names = append(names, ti.Name)
		}
	}
	return names
}

// Patterns say which tensors decay, whatever else is done.
func TestNoDecay(t *testing.T) {
	for _, c := range []struct {
		optimizer string
		want      string
	}{
		{"{rule: adamw}", "fc1.weight fc1.bias norm1.scale head.weight"},
		{"{rule: adamw, no_decay: ['*.bias', '*norm*']}", "fc1.weight head.weight"},
		{"{rule: sgd, hyper: {weight_decay: 0.1}, no_decay: ['*.bias', 'norm?.*']}", "fc1.weight head.weight"},
		{"{rule: lamb, hyper: {weight_decay: 0.1}, no_decay: ['*.bias', '*norm*'], clip: {norm: 1}}", "fc1.weight head.weight"},
		{"{rule: adamw, no_decay: ['*.bias'], groups: [{match: ['head.*', 'norm*'], rule: sgd}]}", "fc1.weight"},
		{"{rule: adamw, no_decay: ['*']}", ""},
		{"{rule: adamw, hyper: {weight_decay: 0}, groups: [{match: ['*.weight'], hyper: {weight_decay: 0.1}}]}", "fc1.weight head.weight"},
	} {
		if got := strings.Join(changed(t, compile(t, network(t, c.optimizer))), " "); got != c.want {
			t.Errorf("%s: %s decay, want %s", c.optimizer, got, c.want)
		}
	}
}

func TestGroupsCompile(t *testing.T) {
	s := network(t, `
  rule: adamw
  hyper: {lr: 0.01, betas: [0.8, 0.9]}
  clip: {value: 3, norm: 1}
  groups:
    - {match: [head.*]}
    - {match: ["*.bias"], rule: sgd, hyper: {lr: 0.1}}
    - {match: ["norm*", "fc1.bias"], rule: adamw, hyper: {lr: 0.02, weight_decay: 0}}
`)
	checkRoundTrip(t, s)
	p := compile(t, s)
	var groups []int
	for _, x := range p.Layout.Tensors {
		groups = append(groups, x.Group)
	}
	// The head's bias is in the first group that matches it.
	if want := []int{0, 2, 3, 0, 1, 1}; !slices.Equal(groups, want) {
		t.Errorf("groups %v, want %v", groups, want)
	}
	if s.Model.Tensors[1].Group != 0 {
		t.Error("Compile changed the job's tensors")
	}
	for i, want := range []map[string]any{
		{"lr": 0.01, "betas": []any{0.8, 0.9}}, {"lr": 0.1}, {"lr": 0.02, "betas": []any{0.8, 0.9}, "weight_decay": 0.0},
	} {
		if _, got := s.Optimizer.group(&s.Optimizer.Groups[i]); !reflect.DeepEqual(got, want) {
			t.Errorf("group %d has %v, want %v", i, got, want)
		}
	}
	if len(s.Optimizer.Hyper) != 2 {
		t.Errorf("a group changed the optimizer's hyper-parameters: %v", s.Optimizer.Hyper)
	}
	// Its first step of plain descent is its rate times the clipped gradient.
	g := slices.Repeat([]float32{1}, p.Layout.P)
	r := optim.NewRunner(p.Rule, p.Layout, make([]float32, p.Layout.P), optim.RunnerOptions{Shards: 3})
	in := optim.Input[float32]{LR: p.LR(1)}
	in.G[optim.Grad] = g
	r.Step(in)
	want := -0.1 / math.Sqrt(1637) // trained parameters
	if x := float64(r.Params()[p.Layout.Tensors[1].Offset]); math.Abs(x-want) > 1e-6 {
		t.Errorf("bias after one step %v, want %v", x, want)
	}
	// A record carries all that follows.
	b, err := NewRecord(s, nil).Encode()
	if err != nil {
		t.Fatal(err)
	}
	rec, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Compile(rec)
	if err != nil || !reflect.DeepEqual(again.Layout, p.Layout) {
		t.Errorf("from its record: %v, layout %+v", err, again)
	}
}

// Built-in models are known only when the job is compiled.
func TestPatternsOfBuiltIn(t *testing.T) {
	s := Default()
	s.Optimizer.NoDecay = []string{"*.bais"}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	_, err := Compile(NewRecord(s, []layout.Tensor{{Name: "fc.weight", Shape: []int{3}}, {Name: "fc.bias", Shape: []int{3}}}))
	if !errors.Is(err, ErrSpec) || !strings.Contains(err.Error(), `optimizer.no_decay[0]: "*.bais" matches no tensor`) || !strings.Contains(err.Error(), "fc.weight, fc.bias") {
		t.Errorf("Compile: %v", err)
	}
	many := make([]layout.Tensor, 150)
	for i := range many {
		many[i].Name = "x"
	}
	if got := tensorNames(many); !strings.HasSuffix(got, "x and 50 more") {
		t.Errorf("names: %s", got)
	}
}

// Set reaches hyper-parameters inside hyper-parameters and leaves the others.
func TestSetNested(t *testing.T) {
	s := Default()
	for _, a := range []string{"optimizer.rule=sam", "optimizer.hyper.base=adamw", "optimizer.hyper.base_hyper.lr=0.1"} {
		if err := s.Set(a); err != nil {
			t.Fatal(err)
		}
	}
	before := s.clone()
	for _, a := range []string{"optimizer.hyper.base_hyper.betas=[0.5, 0.6]", "optimizer.groups=[]", "optimizer.clip.norm=2"} {
		if err := s.Set(a); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"lr": 0.1, "betas": []any{0.5, 0.6}}
	if got := s.Optimizer.Hyper["base_hyper"]; !reflect.DeepEqual(got, want) {
		t.Errorf("base_hyper %v, want %v", got, want)
	}
	if inner := before.Optimizer.Hyper["base_hyper"]; !reflect.DeepEqual(inner, map[string]any{"lr": 0.1}) {
		t.Errorf("Set reached a copy: %v", inner)
	}
	if lr, err := s.BaseLR(); err != nil || lr != 0.1 {
		t.Errorf("base rate %v, %v", lr, err)
	}
	checkRoundTrip(t, s)
	if err := s.Set("optimizer.hyper.base_hyper={}"); err != nil || len(s.Optimizer.Hyper["base_hyper"].(map[string]any)) != 2 {
		t.Errorf("nothing to add: %v, %v", err, s.Optimizer.Hyper)
	}

	// Another rule drops hyper-parameters, also of groups that have no rule of
	// their own.
	s = Default()
	s.Optimizer.Groups = []Group{{Match: []string{"a"}, Hyper: map[string]any{"eps": 1.0}}, {Match: []string{"b"}, Rule: "adam", Hyper: map[string]any{"eps": 2.0}}}
	c := s.clone()
	if err := c.Set("optimizer.rule=sgd"); err != nil {
		t.Fatal(err)
	}
	if g := c.Optimizer.Groups; g[0].Hyper != nil || !maps.Equal(g[1].Hyper, map[string]any{"eps": 2.0}) || s.Optimizer.Groups[0].Hyper == nil {
		t.Errorf("groups %v, before %v", g, s.Optimizer.Groups)
	}
}
