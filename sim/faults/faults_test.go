package faults

import (
	"os"
	"strconv"
	"testing"
)

// TestSeeds runs a hundred schedules (FAULT_SEEDS says how many otherwise);
// the final state of each equals its undisturbed run bit for bit.
func TestSeeds(t *testing.T) {
	n := 100
	if s := os.Getenv("FAULT_SEEDS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("FAULT_SEEDS=%q: %v", s, err)
		}
	}
	for seed := range uint64(n) {
		if r := Run(seed+1, nil); !r.OK {
			t.Errorf("%s\n\t%s\n\treplay: %s", r.Plan, r.Fault, r.Replay)
		}
	}
}

// TestReplay: equal seeds have equal traces, different seeds different ones.
func TestReplay(t *testing.T) {
	for _, seed := range []uint64{3, 17} {
		a, b, c := Run(seed, nil), Run(seed, nil), Run(seed+1, nil)
		if a.Hash != b.Hash || a.Counts != b.Counts {
			t.Errorf("seed %d: trace hashes %s and %s", seed, a.Hash, b.Hash)
		}
		if a.Hash == c.Hash {
			t.Errorf("seeds %d and %d have the same trace", seed, seed+1)
		}
	}
}
