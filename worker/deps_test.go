package worker

import (
	"testing"

	"tributary/internal/deptest"
)

// The built-in worker is a user of the client, not of the cluster.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "checkpoint", "client", "comm", "comm/wire", "internal/rng", "job", "layout", "ledger", "optim", "internal/vec", "shard", "train")
}
