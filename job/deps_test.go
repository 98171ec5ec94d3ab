package job

import (
	"testing"

	"tributary/internal/deptest"
)

// The coordinator knows no network, disk, clock or log, and no model.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "aggregate", "comm/wire", "internal/rng", "layout", "ledger", "optim", "internal/vec", "shard")
	deptest.Pure(t, "go.yaml.in/yaml/v3")
}
