package place

import (
	"testing"

	"tributary/internal/deptest"
)

// Placement is a pure function.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "internal/rng")
	deptest.Pure(t)
}
