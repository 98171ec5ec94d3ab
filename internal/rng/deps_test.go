package rng

import (
	"testing"

	"tributary/internal/deptest"
)

// Random numbers depend on nothing.
func TestDeps(t *testing.T) {
	deptest.Ours(t)
	deptest.Pure(t)
}
