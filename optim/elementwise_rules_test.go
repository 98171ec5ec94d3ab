package optim

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// Values that make no sense together are refused with the name to change.
func TestElementwiseRefuse(t *testing.T) {
	for _, c := range []struct {
		rule  string
		hyper map[string]any
		name  string
	}{
		{"sgdw", map[string]any{"nesterov": true}, "nesterov"},
		{"sgdw", map[string]any{"nesterov": true, "momentum": 0.9, "dampening": 0.1}, "nesterov"},
		{"nag4", map[string]any{"gamma": 0}, "gamma"},
		{"nag_gs", map[string]any{"gamma": 0}, "gamma"},
		{"dot", map[string]any{"momentum": 0.05}, "delta"},
		{"dot", map[string]any{"momentum": 0.95}, "delta"},
		{"ftrl", map[string]any{"beta": 0}, "beta"},
		{"ftrl", map[string]any{"lr_power": 0.5}, "lr_power"},
		{"sophia_g", map[string]any{"hessian_interval": 2.5}, "hessian_interval"},
	} {
		_, err := New[float32](c.rule, c.hyper)
		var h *HyperError
		if !errors.As(err, &h) || h.Rule != c.rule || h.Name != c.name || !strings.Contains(err.Error(), c.name) {
			t.Errorf("New(%q, %v): %v, want a HyperError of %s", c.rule, c.hyper, err, c.name)
		}
	}
}

// A tensor with one of the two gradients moves as plain momentum at the mean
// rate, with decay; the other buffer rests.
func TestDOTWithOneGradient(t *testing.T) {
	l := testModel(t, 4)
	w := jumble[float64](l.P, 0)
	dot, err := New[float64]("dot", map[string]any{"momentum": 0.75, "delta": 0.125, "dampening": 0.25, "weight_decay": 0.5})
	if err != nil {
		t.Fatal(err)
	}
	sgd, err := New[float64]("sgd", map[string]any{"momentum": 0.75, "dampening": 0.25, "weight_decay": 0.5})
	if err != nil {
		t.Fatal(err)
	}
	for role, buffers := range map[Role][2]string{Grad: {"u", "k"}, GradKD: {"k", "u"}} {
		a, b := NewRunner(dot, l, w, RunnerOptions{Shards: 2}), NewRunner(sgd, l, w, RunnerOptions{})
		for i := range 3 {
			in, plain := Input[float64]{LR: 0.1}, Input[float64]{LR: 0.1}
			in.G[role] = jumble[float64](l.P, i+1)
			plain.G[Grad] = in.G[role]
			a.Step(in)
			b.Step(plain)
		}
		if !equalBits(a.Params(), b.Params()) || !equalBits(a.Slot(buffers[0]), b.Slot("u")) {
			t.Errorf("with %v alone: %v, want %v", role, a.Params(), b.Params())
		}
		if !equalBits(a.Slot(buffers[1]), make([]float64, l.P)) {
			t.Errorf("with %v alone buffer %s moved", role, buffers[1])
		}
		before := a.Params()
		a.Step(Input[float64]{LR: 0.1})
		if !equalBits(a.Params(), before) {
			t.Error("without gradients parameters moved")
		}
	}
}

// At a rate of 0 FTRL, which divides by it, rests.
func TestFTRLAtRateZero(t *testing.T) {
	l := testModel(t, 4)
	rule, err := New[float32]("ftrl", nil)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRunner(rule, l, make([]float32, l.P), RunnerOptions{})
	step(r, 0.1, constantly(jumble[float32](l.P, 1)))
	before := snapshot(r)
	step(r, 0, constantly(jumble[float32](l.P, 2)))
	for i, x := range snapshot(r) {
		if !equalBits(x, before[i]) {
			t.Errorf("vector %d moved", i)
		}
	}
}

// Sophia-G asks for its second gradient at steps 1, 1+k, 1+2k, …
func TestSophiaInterval(t *testing.T) {
	rule, err := New[float32]("sophia_g", map[string]any{"hessian_interval": 3})
	if err != nil {
		t.Fatal(err)
	}
	for step := uint64(1); step <= 10; step++ {
		asks := slices.Contains(rule.Spec().Roles(0, step), HessGrad)
		if want := step%3 == 1; asks != want {
			t.Errorf("step %d: asks for the second gradient: %v", step, asks)
		}
	}
}

// The scalars of the model follow their formulas and survive in slots.
func TestModelScalars(t *testing.T) {
	l := testModel(t, 4)
	run := func(name string, hyper map[string]any, lr ...float64) *Runner[float64] {
		rule, err := New[float64](name, hyper)
		if err != nil {
			t.Fatal(err)
		}
		r := NewRunner(rule, l, jumble[float64](l.P, 0), RunnerOptions{Shards: 3})
		for i, lr := range lr {
			step(r, lr, constantly(jumble[float64](l.P, i)))
		}
		return r
	}
	check := func(r *Runner[float64], slot string, want float64) {
		t.Helper()
		if got := r.ModelSlot(slot); !(got-want < 1e-15 && want-got < 1e-15) {
			t.Errorf("%s: %s = %v, want %v", r.spec.Name, slot, got, want)
		}
	}
	// γ ← (γ + a·μ)/(1 + a): from 2 with μ = 1 and a = 1 to 3/2 and 5/4.
	check(run("nag_gs", map[string]any{"gamma": 2}, 1, 1), "gamma", 1.25)
	// ψ so large that μ₁ = μ₂ = β₁.
	check(run("nadam", map[string]any{"betas": []any{0.5, 0.5}, "momentum_decay": 1e6}, 1, 1), "pi", 0.25)
	// Rates ½ (warm-up), 1 and ¼ weigh ¼, 1 and, as the largest counts, 1.
	sf := run("schedule_free_sgd", map[string]any{"warmup_steps": 2}, 1, 1, 0.25)
	check(sf, "lr_max", 1)
	check(sf, "weight_sum", 2.25)
	// Before any rate above 0 there is nothing to average.
	none := run("schedule_free_sgd", nil, 0, 0)
	check(none, "weight_sum", 0)
	if !equalBits(none.Point(Eval), jumble[float64](l.P, 0)) {
		t.Error("schedule_free_sgd: x moved at rate 0")
	}
}
