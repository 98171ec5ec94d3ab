package checkpoint

import (
	"testing"

	"tributary/internal/deptest"
)

// Bytes to disk: no rule, no network.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "internal/rng", "layout", "ledger")
}
