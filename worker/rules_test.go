package worker

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/aggregate"
	"tributary/checkpoint"
	"tributary/client"
	"tributary/comm/wire"
	"tributary/job"
	"tributary/layout"
	"tributary/optim"
	"tributary/sim/local"
	"tributary/train"
)

// rulesJob is a small network on real data, in so many chunks that matrices
// reach over several shards and are cut inside of rows.
func rulesJob(t *testing.T, rule string, sets ...string) *job.Spec {
	t.Helper()
	s := job.Default()
	for _, set := range append([]string{"name=" + rule, "model={kind: mlp, hidden: [12]}", "chunk=100", "shards=5", "servers=3", "ranks=3", "workers=2",
		"batch=16", "steps=11", "checkpoint.every=0", "eval.every=5", "optimizer.rule=" + rule}, sets...) {
		if err := s.Set(set); err != nil {
			t.Fatal(err)
		}
	}
	if rule == "dot" {
		s.Distill.Teacher, s.Distill.Hidden = someTeacher(t, s), []int{20}
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// someTeacher writes a teacher to distil: one that knows nothing will do.
func someTeacher(t *testing.T, s *job.Spec) string {
	t.Helper()
	task, err := NewTask(&job.Spec{Model: s.Model, Data: s.Data, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := train.NewModel(train.ModelSpec{Kind: "mlp", Hidden: []int{20}}, task.Train.Shape())
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.New(m.Tensors(), 0)
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float32, l.P)
	l.InitParams(99, layout.Range{Hi: l.P}, x)
	b, err := checkpoint.Safetensors(l, x, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "teacher.safetensors")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// calculatorOf is what a worker of the job computes with.
func calculatorOf(t *testing.T, s *job.Spec) (*job.Pipeline, *client.Plan, *calculator) {
	t.Helper()
	task, err := NewTask(s)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := task.Record()
	if err != nil {
		t.Fatal(err)
	}
	p, err := job.Compile(rec)
	if err != nil {
		t.Fatal(err)
	}
	plan := client.NewPlan(p)
	calc, err := newCalculator(task, plan)
	if err != nil {
		t.Fatal(err)
	}
	return p, plan, calc
}

// plain trains the job in one loop, without servers: what the rules' runner
// makes of what the ranks compute.
func plain(t *testing.T, s *job.Spec) []float32 {
	t.Helper()
	p, plan, calc := calculatorOf(t, s)
	w := make([]float32, p.Layout.P)
	p.Layout.InitParams(s.Seed, layout.Range{Hi: p.Layout.P}, w)
	r := optim.NewRunner(p.Rule, p.Layout, w, optim.RunnerOptions{Seed: s.Seed})
	var prev []float32
	for step := range p.Steps {
		work := client.Work{Step: step, Version: step, Params: r.Point(optim.Perturbed), Prev: prev, Update: plan.Update(step),
			Phase: int(step % p.Phases), Roles: plan.Roles(step)}
		r.Phase(work.Phase, combine(t, p, calc, &work))
		prev = work.Params
	}
	return r.Point(optim.Eval)
}

// combine is what all ranks push in a step, combined in rank order.
func combine(t *testing.T, p *job.Pipeline, calc *calculator, work *client.Work) optim.Input[float32] {
	var cs []client.Contribution
	var ms []aggregate.Meta
	for rank := range p.Ranks {
		c := calc.contribution(work, rank)
		cs = append(cs, c)
		ms = append(ms, aggregate.Meta{Rank: rank, Examples: c.Examples, Loss: c.Loss})
	}
	weights := p.Agg.Weights(nil, ms, nil)
	in := optim.Input[float32]{LR: p.LR(work.Update)}
	for i, m := range ms {
		in.Loss += float64(weights[i] * m.Loss)
		in.Examples += m.Examples
	}
	for _, role := range work.Roles {
		var gs [][]float32
		for i := range cs {
			g := cs[i].Grad
			if role != optim.Grad {
				g = cs[i].Extra[role]
			}
			if len(g) != p.Layout.P {
				t.Fatalf("rank %d pushes %d numbers as %v", i, len(g), role)
			}
			gs = append(gs, travels(p, g))
		}
		in.G[role] = make([]float32, p.Layout.P)
		for i := range in.G[role] {
			var at [][]float32
			for k, g := range gs {
				if at = append(at, nil); names(&cs[k], i) {
					at[k] = g[i : i+1]
				}
			}
			p.Agg.Combine(in.G[role][i:i+1], at, weights)
		}
	}
	if slices.ContainsFunc(cs, func(c client.Contribution) bool { return c.Runs != nil }) {
		for i := range p.Layout.P {
			if slices.ContainsFunc(cs, func(c client.Contribution) bool { return names(&c, i) }) {
				in.Runs = append(in.Runs, layout.Range{Lo: i, Hi: i + 1})
			}
		}
	}
	return in
}

// names says whether c pushes parameter i.
func names(c *client.Contribution, i int) bool {
	return c.Runs == nil || slices.ContainsFunc(c.Runs, func(r layout.Range) bool { return r.Lo <= i && i < r.Hi })
}

// travels is g as it arrives.
func travels(p *job.Pipeline, g []float32) []float32 {
	if p.Spec.Encoding != job.BF16 {
		return g
	}
	half, out := make([]uint16, len(g)), make([]float32, len(g))
	wire.ToHalf(half, g)
	for i, h := range half {
		out[i] = wire.FromHalf(h)
	}
	return out
}

// inCluster trains the job with real servers and workers.
func inCluster(t *testing.T, s *job.Spec) []float32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := local.Start(ctx, local.Options{Servers: s.Servers, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	rec, err := NewRecord(s)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err = c.Submit(ctx, rec); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for i := range s.Workers {
		conn := c.Connect(fmt.Sprintf("w%d", i))
		g.Go(func() error {
			defer conn.Close() // an in-process connection ends without error
			_, err := Run(ctx, Options{Data: conn, Job: s.Name, Name: fmt.Sprintf("w%d", i)})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	snap, err := c.Fetch(ctx, rec)
	if err != nil {
		t.Fatal(err)
	}
	if snap.Step != s.Steps {
		t.Fatalf("the model has made %d updates, want %d", snap.Step, s.Steps)
	}
	return snap.Params
}

// Every rule works for the built-in models: servers, shards and workers give,
// bit for bit, what one loop gives that computes all that the rule asks for.
func TestEveryRule(t *testing.T) {
	for _, rule := range optim.Names() {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			s := rulesJob(t, rule)
			sameVector(t, inCluster(t, s), plain(t, s))
		})
	}
}

// So it is with the other ways in which numbers travel. Of the features that a
// row-sparse contribution leaves out the test checks that there are some.
func TestEncodings(t *testing.T) {
	for _, c := range [][]string{
		{"adamw", "encoding=bf16"}, {"lamb", "encoding=bf16"}, {"sam", "encoding=bf16"},
		{"adagrad", "model={kind: sparse, hidden: []}"}, {"ftrl", "model={kind: sparse, hidden: []}"}, {"adam_lazy", "model={kind: sparse, hidden: []}"}, {"sgd", "model={kind: sparse, hidden: []}"},
	} {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			t.Parallel()
			s := rulesJob(t, c[0], c[1:]...)
			got := inCluster(t, s)
			sameVector(t, got, plain(t, s))
			if s.Model.Kind != "sparse" {
				return
			}
			if still := untouched(t, s, got); still == 0 || still == len(got) {
				t.Errorf("%d of %d parameters are as they were at the start", still, len(got))
			}
		})
	}
}

// untouched counts the parameters that are as they were at the start.
func untouched(t *testing.T, s *job.Spec, params []float32) (n int) {
	t.Helper()
	rec, err := NewRecord(s)
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.New(rec.Tensors, s.Chunk)
	if err != nil {
		t.Fatal(err)
	}
	w := make([]float32, l.P)
	l.InitParams(s.Seed, layout.Range{Hi: l.P}, w)
	for i, x := range w {
		if x == params[i] {
			n++
		}
	}
	return n
}

func sameVector(t *testing.T, got, want []float32) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("parameter %d is %v, in the plain loop %v", i, got[i], want[i])
		}
	}
}
