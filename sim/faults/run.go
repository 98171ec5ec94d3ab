package faults

import (
	"fmt"
	"io"
	"time"
)

// Result is the outcome of one seed.
type Result struct {
	Seed   uint64        `json:"seed"`
	OK     bool          `json:"ok"`
	Fault  string        `json:"fault,omitempty"` // the broken promise
	Plan   string        `json:"plan"`
	Hash   string        `json:"trace_hash"`
	Took   time.Duration `json:"virtual_ns"`
	Counts Counts        `json:"counts"`
	Replay string        `json:"replay,omitempty"` // command that shows how a failing seed came about
}

// Run runs one seed. trace, if not nil, gets one readable line per event; the
// result is the same with and without it.
func Run(seed uint64, trace io.Writer) Result {
	p := NewPlan(seed)
	res := Result{Seed: seed, Plan: p.String()}
	w, err := runPlan(p, trace)
	if err == nil {
		res.Hash, res.Took, res.Counts = fmt.Sprintf("%016x", w.hash), w.now, w.counts
		res.Fault = w.fault
	} else {
		res.Fault = err.Error()
	}
	res.OK = res.Fault == ""
	if !res.OK {
		res.Replay = fmt.Sprintf("go run ./cmd/ps faults --from %d --seeds 1 --trace", seed)
	}
	return res
}

// runPlan runs a plan and, if its numbers depend on the job alone, first its
// undisturbed twin.
func runPlan(p Plan, trace io.Writer) (*world, error) {
	var g *golden
	if p.Exact() {
		var err error
		if g, err = newGolden(p); err != nil {
			return nil, err
		}
	}
	w, err := newWorld(p, g, trace)
	if err != nil {
		return nil, err
	}
	w.printf("seed %d: %s", p.Seed, p)
	w.begin()
	w.run()
	if w.fault == "" {
		w.audit.end()
	}
	return w, nil
}
