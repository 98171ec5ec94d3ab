package kernelbench

import (
	"context"
	"math"
	"testing"

	"tributary/layout"
	"tributary/optim"
)

// What is measured is whole steps: they give the parameters of the plain
// runner.
func TestStepsAreTheRunners(t *testing.T) {
	l, err := layout.New([]layout.Tensor{{Name: "w0", Shape: []int{Side, Side}}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"adamw", "lamb", "sam", "sophia_g", "sgd momentum=0.9"} {
		m, err := freshModel(name, 1)
		if err != nil {
			t.Fatal(err)
		}
		r := optim.NewRunner(m.rule, l, m.w, optim.RunnerOptions{})
		for step := uint64(1); step <= 3; step++ {
			var in []optim.Input[float32]
			for ph := range m.spec.Phases {
				x := optim.Input[float32]{LR: 1e-4, Loss: 1, Examples: 32}
				for _, role := range m.spec.Roles(ph, step) {
					x.G[role] = m.g[role]
				}
				in = append(in, x)
			}
			r.Step(in...)
			m.step()
		}
		for i, want := range r.Params() {
			if math.Float32bits(m.w[i]) != math.Float32bits(want) {
				t.Errorf("%s: parameter %d is %v, want %v", name, i, m.w[i], want)
				break
			}
		}
	}
}

func TestBandwidth(t *testing.T) {
	ctx := context.Background()
	program, how, err := CompileC(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if program == "" {
		t.Log("NOT TESTED: no C compiler")
	}
	t.Log(how)
	for _, p := range []string{"", program} {
		for threads := 1; threads <= 2; threads++ {
			w, err := NewBandwidth(ctx, p, 5000, threads)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := w.Pass(); err != nil || b <= 0 {
				t.Errorf("%s: %v bytes per second, %v", w.Loop, b, err)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
