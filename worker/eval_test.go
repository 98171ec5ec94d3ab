package worker

import (
	"testing"

	"tributary/client"
	"tributary/job"
	"tributary/layout"
)

// All phases of an update are taken on the same examples, and no two updates on
// the same.
func TestExamplesOfAnUpdate(t *testing.T) {
	s := rulesJob(t, "sam")
	p, plan, calc := calculatorOf(t, s)
	params := make([]float32, p.Layout.P)
	p.Layout.InitParams(s.Seed, layout.Range{Hi: p.Layout.P}, params)
	var losses []float64
	for step := range uint64(4) {
		losses = append(losses, calc.contribution(&client.Work{Step: step, Params: params, Update: plan.Update(step), Phase: int(step % 2), Roles: plan.Roles(step)}, 0).Loss)
	}
	if losses[0] != losses[1] || losses[2] != losses[3] || losses[0] == losses[2] {
		t.Errorf("losses of two updates of two phases at one point: %v", losses)
	}
}

// The model is evaluated by the worker of rank 0, between updates, once for each
// version that the job names.
func TestEvaluationIsDue(t *testing.T) {
	for _, c := range []struct {
		name             string
		staleness        int
		every, evaluated uint64
		work             client.Work
		made             uint64
		due              bool
	}{
		{"never", 0, 0, 0, client.Work{Step: 10, Version: 10, Update: 11, Ranks: []int{0}}, 10, false},
		{"at the start", 0, 5, 0, client.Work{Update: 1, Ranks: []int{0}}, 0, false},
		{"on time", 0, 5, 5, client.Work{Step: 10, Version: 10, Update: 11, Ranks: []int{0, 1}}, 10, true},
		{"between", 0, 5, 5, client.Work{Step: 9, Version: 9, Update: 10, Ranks: []int{0}}, 9, false},
		{"twice", 0, 5, 10, client.Work{Step: 10, Version: 10, Update: 11, Ranks: []int{0}}, 10, false},
		{"another's", 0, 5, 5, client.Work{Step: 10, Version: 10, Update: 11, Ranks: []int{1}}, 10, false},
		{"in mid-update", 0, 5, 0, client.Work{Step: 11, Version: 11, Update: 6, Phase: 1, Ranks: []int{0}}, 5, false},
		{"between updates", 0, 5, 0, client.Work{Step: 10, Version: 10, Update: 6, Ranks: []int{0}}, 5, true},
		{"the version counts", 2, 5, 0, client.Work{Step: 12, Version: 10, Update: 13, Ranks: []int{0}}, 10, true},
		{"not the step", 2, 5, 0, client.Work{Step: 10, Version: 8, Update: 11, Ranks: []int{0}}, 8, false},
		{"there is no version", -1, 5, 0, client.Work{Step: 10, Version: 977, Update: 11, Ranks: []int{0}}, 10, true},
	} {
		tr := &trainer{evaluated: c.evaluated, calc: &calculator{task: &Task{Spec: &job.Spec{Eval: job.Evaluation{Every: c.every}}}, plan: &client.Plan{Staleness: c.staleness}}}
		if made, due := tr.due(&c.work); made != c.made || due != c.due {
			t.Errorf("%s: after %d updates %v, want %d, %v", c.name, made, due, c.made, c.due)
		}
	}
}
