package faults

import (
	"context"
	"os"
	"strconv"
	"testing"
)

// seeds is how many seeds TestSeeds runs; FAULT_SEEDS says otherwise, and
// FAULT_FROM where they begin.
func number(t *testing.T, name string, n uint64) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return n
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, s, err)
	}
	return n
}

// TestSeeds runs a hundred schedules.
func TestSeeds(t *testing.T) {
	sum := Range(context.Background(), number(t, "FAULT_FROM", 1), number(t, "FAULT_SEEDS", 100), 0, func(r Result) {
		if !r.OK {
			t.Errorf("seed %d: %s\n\t%s\n\treplay: %s", r.Seed, r.Plan, r.Fault, r.Replay)
		}
	})
	t.Logf("%+v", sum)
}

// TestReplay: equal seeds have equal traces, different seeds different ones.
func TestReplay(t *testing.T) {
	for seed := range uint64(15) {
		a, b, c := Run(seed, nil), Run(seed, nil), Run(seed+1, nil)
		if a != b {
			t.Errorf("seed %d: %+v, then %+v", seed, a, b)
		}
		if a.Hash == c.Hash {
			t.Errorf("seeds %d and %d have the same trace", seed, seed+1)
		}
	}
}
