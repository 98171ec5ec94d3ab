package comm

import (
	"testing"

	"tributary/internal/deptest"
)

// Transports know nothing of jobs, shards or rules beyond the names of roles.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "comm/wire", "internal/rng", "layout", "optim", "internal/vec")
}
