package shard

import (
	"testing"

	"tributary/internal/deptest"
)

// A shard knows no network, disk, clock or log, nor who owns it.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "comm/wire", "internal/rng", "layout", "ledger", "optim", "internal/vec")
	deptest.Pure(t)
}
