package wire

import (
	"testing"

	"tributary/internal/deptest"
)

// The format knows no transport, so that the pure state machines may use it.
func TestDeps(t *testing.T) {
	deptest.Ours(t, "internal/rng", "layout", "optim", "internal/vec")
	deptest.Pure(t, "github.com/vmihailenco/msgpack/v5")
}
