package ledger

import (
	"testing"

	"tributary/internal/deptest"
)

// Decisions are plain data.
func TestDeps(t *testing.T) {
	deptest.Ours(t)
	deptest.Pure(t)
}
