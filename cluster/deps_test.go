package cluster

import (
	"testing"

	"tributary/internal/deptest"
)

// Who owns what knows no model and no data.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "checkpoint", "cluster/authority", "cluster/place", "comm", "comm/wire", "internal/rng", "job", "layout", "ledger", "optim", "internal/vec", "shard")
}
