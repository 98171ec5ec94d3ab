package faults

import (
	"testing"

	"tributary/internal/deptest"
)

// The simulated cluster is the real one without its doors.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "checkpoint", "client", "cluster/place", "comm", "comm/wire", "internal/rng", "job", "layout", "ledger", "optim", "internal/vec", "shard")
}
