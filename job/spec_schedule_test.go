package job

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// Schedules are read, written back and explained.
func TestSchedules(t *testing.T) {
	for _, c := range []struct {
		yaml string
		at   uint64
		want float64 // of an lr of 0.001 and 300 updates
	}{
		{"{}", 300, 1e-3},
		{"{kind: constant, factor: 0.5, over: 10}", 10, 5e-4},
		{"{kind: step, every: 100, factor: 0.5, min: 3e-4}", 300, 3e-4},
		{"{kind: step, milestones: [10, 20]}", 21, 1e-5},
		{"{kind: exponential, factor: 0.25, every: 10}", 6, 5e-4},
		{"{kind: cosine, warmup: 10, warmup_from: 0.5, over: 100}", 5, 7.5e-4},
		{"{kind: cosine_restarts, every: 10, growth: 2}", 21, 5e-4},
		{"{kind: linear, from: 0.5, to: 0.25}", 151, 3.75e-4},
		{"{kind: polynomial, power: 2}", 151, 2.5e-4},
		{"{kind: inverse_sqrt, warmup: 25}", 100, 5e-4},
		{"{kind: one_cycle, rise: 0.5, div: 10, final_div: 100, shape: linear}", 300, 1e-6},
		{"{kind: wsd, decay: 100, shape: exponential, min: 2.5e-4}", 251, 5e-4},
		{"{kind: stages, stages: [{factor: 0.1, length: 100}, {kind: linear, warmup: 100}]}", 150, 5e-4},
		{"{kind: product, product: [{kind: linear}, {kind: step, every: 100}]}", 151, 5e-5},
	} {
		s, err := Parse([]byte("optimizer: {schedule: " + c.yaml + "}"))
		if err != nil {
			t.Errorf("%s: %v", c.yaml, err)
			continue
		}
		checkRoundTrip(t, s)
		at, err := s.NewSchedule()
		if err != nil || math.Abs(at(c.at)-c.want) > 1e-15 {
			t.Errorf("%s: rate of update %d is %v, %v, want %v", c.yaml, c.at, at(c.at), err, c.want)
		}
		// The same, set field by field.
		set := Default()
		for _, a := range strings.SplitAfter(strings.Trim(c.yaml, "{}"), ", ") {
			if strings.Contains(c.yaml, "[") {
				break
			}
			if key, value, ok := strings.Cut(strings.TrimSuffix(a, ", "), ": "); ok {
				if err := set.Set("optimizer.schedule." + key + "=" + value); err != nil {
					t.Errorf("Set(%s): %v", a, err)
				}
			}
		}
		if again, err := set.NewSchedule(); !strings.Contains(c.yaml, "[") && (err != nil || again(c.at) != at(c.at)) {
			t.Errorf("%s, set field by field: %v", c.yaml, err)
		}
	}
	s := Default()
	if err := errors.Join(s.Set("optimizer.schedule.kind=stages"), s.Set("optimizer.schedule.stages=[{kind: linear, length: 30}, {}]")); err != nil || s.Validate() != nil {
		t.Errorf("stages by Set: %v, %v", err, s.Validate())
	}
}

func TestExplainNamesTheSchedule(t *testing.T) {
	p := compile(t, tensorsJob(func(s *Spec) {
		s.Optimizer.Schedule.Kind, s.Optimizer.Schedule.Warmup, s.Optimizer.Schedule.Min = "cosine", 5, 1e-4
	}))
	if want := "cosine rate down to 0.0001 after a warm-up of 5 updates → publish"; !strings.Contains(p.Explain(), want) {
		t.Errorf("explain lacks %q:\n%s", want, p.Explain())
	}
}
