package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"tributary/checkpoint"
	"tributary/job"
	"tributary/layout"
	"tributary/optim"
	"tributary/worker"
)

// TestSameBits: at staleness 0 the result depends neither on the number of
// shards, servers and workers nor on the order in which contributions arrive,
// for every update rule. Everything is in one process, so that there can be
// many runs.
func TestSameBits(t *testing.T) {
	type shape struct{ shards, servers, workers int }
	shapes := []shape{{1, 1, 4}, {7, 3, 3}}
	if os.Getenv("TRIBUTARY_LONG") == "1" {
		shapes = shapes[:1]
		for _, shards := range []int{1, 2, 3, 7} {
			shapes = append(shapes, shape{shards, 1, 1}, shape{shards, 3, 2})
		}
	}
	for _, rule := range optim.Names() {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 3) // of its own: jobs that have ended still take time
			run := func(x shape, seed uint64) *final {
				return l.run(t, ruleJob(t, rule, "checkpoint.every=3", "chunk=150",
					fmt.Sprintf("shards=%d", x.shards), fmt.Sprintf("servers=%d", x.servers), fmt.Sprintf("workers=%d", x.workers)), seed)
			}
			want := run(shapes[0], 0)
			for i, x := range shapes[1:] {
				seed := uint64(i + 1)
				if d := run(x, seed).differs(want); d != "" {
					t.Errorf("%d shards on %d servers, %d workers, arrival order %d: %s", x.shards, x.servers, x.workers, seed, d)
				}
			}
		})
	}
}

// TestSameBitsBroker: the same nodes and workers over a broker, with the
// authority in its store, give the bits that they give inside the process.
func TestSameBitsBroker(t *testing.T) {
	for i, rule := range optim.Names() {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			l := newBrokerLab(t, 3)
			spec := ruleJob(t, rule, "servers=3", "shards=7", "workers=2")
			want := reference(t, spec)
			same(t, l.run(t, spec, uint64(i+1)), want)
		})
	}
}

// ruleJob is a short job with a rule at its defaults and all that it asks for.
func ruleJob(t *testing.T, rule string, sets ...string) *job.Spec {
	t.Helper()
	sets = append([]string{"name=" + rule, "steps=8", "chunk=128", "optimizer.rule=" + rule}, sets...)
	r, err := optim.New[float32](rule, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range r.Spec().AllRoles() {
		if role == optim.GradKD {
			sets = append(sets, "distill.kind=softmax", "distill.teacher="+teacher(t))
		}
	}
	return smallJob(t, sets...)
}

// teacher writes a model to distil: one that knows nothing will do.
func teacher(t *testing.T) string {
	t.Helper()
	rec, err := worker.NewRecord(smallJob(t, "model={kind: softmax, hidden: []}"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.New(rec.Tensors, 0)
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
