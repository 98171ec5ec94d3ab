package client

import (
	"testing"

	"tributary/internal/deptest"
)

// A worker knows nothing of servers, placement, disks or built-in models.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "comm", "comm/wire", "internal/rng", "job", "layout", "ledger", "optim", "internal/vec", "shard")
	deptest.Timeless(t, "session.go", "recv.go", "send.go", "plan.go") // the session is a pure state machine
}
