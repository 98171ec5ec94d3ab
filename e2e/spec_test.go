package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"tributary/job"
)

// smallJob is a small network on real data, cut into many chunks so that a
// push has many messages, with times that suit a test. The assignments come
// last.
func smallJob(t *testing.T, sets ...string) *job.Spec {
	t.Helper()
	s := job.Default()
	for _, set := range append([]string{
		"name=small", "model={kind: mlp, hidden: [16]}", "chunk=64", "shards=4", "servers=2", "ranks=4", "workers=4", "window=2", "batch=16",
		"optimizer={rule: adamw, hyper: {lr: 0.01}, schedule: {kind: cosine, warmup: 5}}",
		"steps=60", "checkpoint.every=10", "eval.every=0", "timeouts={worker: 1s, start: 60s, retry: 100ms}",
	}, sets...) {
		if err := s.Set(set); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// write writes the job as a file and returns its name.
func write(t *testing.T, s *job.Spec) string {
	t.Helper()
	b, err := s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return writeText(t, string(b))
}

func writeText(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
