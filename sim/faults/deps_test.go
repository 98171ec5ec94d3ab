package faults

import (
	"testing"

	"tributary/internal/deptest"
)

// The simulated cluster is the real one without its doors.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "checkpoint", "client", "cluster/place", "comm", "comm/wire", "internal/rng", "job", "layout", "ledger", "optim", "internal/vec", "shard")
	// A schedule is a function of its seed; only ranges run several at a time.
	deptest.Timeless(t, "audit.go", "authority.go", "counts.go", "golden.go", "nemesis.go", "network.go", "plan.go", "rules.go", "run.go",
		"server.go", "trace.go", "worker.go", "world.go")
}
