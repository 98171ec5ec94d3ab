package layout

import (
	"testing"

	"tributary/internal/deptest"
)

// A layout depends on nothing but random numbers.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "internal/rng")
	deptest.Pure(t)
}
