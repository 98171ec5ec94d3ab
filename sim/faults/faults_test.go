package faults

import (
	"context"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// number is the value of an environment variable, or n.
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

// TestSeeds runs a hundred schedules: no promise is broken in any of them, and
// everything that can go wrong does. FAULT_FROM and FAULT_SEEDS choose others.
func TestSeeds(t *testing.T) {
	n := number(t, "FAULT_SEEDS", 100)
	next := number(t, "FAULT_FROM", 1)
	sum := Range(context.Background(), next, n, 0, func(r Result) {
		if r.Seed != next {
			t.Errorf("seed %d when %d was due", r.Seed, next)
		}
		next = r.Seed + 1
		if !r.OK {
			t.Errorf("seed %d: %s\n\t%s\n\treplay: %s", r.Seed, r.Plan, r.Fault, r.Replay)
		}
	})
	if sum.Seeds != n {
		t.Errorf("%d seeds run, want %d", sum.Seeds, n)
	}
	counts := reflect.ValueOf(sum.Counts)
	for i := range counts.NumField() {
		if counts.Field(i).Uint() == 0 && n >= 100 {
			t.Errorf("in %d seeds never once: %s", n, counts.Type().Field(i).Name)
		}
	}
	t.Logf("%+v", sum)
}

// TestPlans: a hundred seeds hold every kind of job.
func TestPlans(t *testing.T) {
	have := map[string]bool{}
	for seed := range uint64(100) {
		p := NewPlan(seed + 1)
		have[p.Mode.String()] = true
		have["bf16"] = have["bf16"] || p.Half
		have["sparse"] = have["sparse"] || p.Sparse
		have[p.Rule] = true
		have[string(p.OnLoss)] = true
		for what, on := range map[string]bool{"late workers": p.Late > 0, "pinned": p.Pinned, "not pinned": p.Staleness > 0 && !p.Pinned,
			"rank states": p.RankState, "no recomputing": !p.Recompute, "nulls": p.Nulls > 0, "a stop": p.Stop > 0, "a resumption": p.Resume, "broadcast": p.Broadcast,
			"atomic with staleness": p.Staleness > 0 && p.Mode.String() != "streaming", "not exact": !p.Exact()} {
			have[what] = have[what] || on
		}
	}
	for _, want := range []string{"streaming", "atomic, by reduction", "atomic, by decision", "asynchronous", "sgd", "adamw", "lamb", "sam", "oasis", "spider", "sophia_g", "schedule_free_sgd", "bf16", "sparse", twoRoles, allSums,
		"reassign", "wait", "shrink", "late workers", "pinned", "not pinned", "rank states", "no recomputing", "nulls", "a stop", "a resumption", "broadcast",
		"atomic with staleness", "not exact"} {
		if !have[want] {
			t.Errorf("no plan has %s", want)
		}
	}
}

// TestReplay: a seed has the same trace each time, read or not; different seeds
// have different ones.
func TestReplay(t *testing.T) {
	for seed := range uint64(8) {
		var trace, again strings.Builder
		a, b, c := Run(seed, nil), Run(seed, &trace), Run(seed+1, nil)
		if a != b {
			t.Errorf("seed %d: %+v, then %+v", seed, a, b)
		}
		if Run(seed, &again); trace.String() != again.String() {
			t.Errorf("seed %d: two traces", seed)
		}
		if a.Hash == c.Hash {
			t.Errorf("seeds %d and %d have the same trace", seed, seed+1)
		}
	}
}

// TestInterrupted: a range ends when its context does.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	sum := Range(ctx, 1, 1<<40, 2, func(Result) { cancel() })
	if sum.Seeds == 0 || sum.Seeds > 100 {
		t.Errorf("%d seeds run after an interrupt", sum.Seeds)
	}
}
