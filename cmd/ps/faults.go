package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"tributary/sim/faults"
)

// faultsCmd runs schedules of the fault simulation.
type faultsCmd struct {
	Seeds   uint64 `help:"How many seeds to run." default:"100"`
	From    uint64 `help:"The first seed." default:"1"`
	Trace   bool   `help:"Print what happens in the first seed, line by line."`
	Workers int    `help:"Seeds run at a time (0: one per core)." default:"0"`
	Quiet   bool   `help:"No progress on stderr."`
}

// Run prints a JSON line for every seed that breaks a promise, and one with the
// sum at the end. It fails if one did.
func (c *faultsCmd) Run(ctx context.Context) error {
	out := json.NewEncoder(os.Stdout)
	if c.Trace {
		r := faults.Run(c.From, os.Stdout)
		if err := out.Encode(r); err != nil {
			return err
		}
		if !r.OK {
			return fmt.Errorf("seed %d: %s", r.Seed, r.Fault)
		}
		return nil
	}
	start, told, n := time.Now(), time.Now(), uint64(0)
	var werr error
	sum := faults.Range(ctx, c.From, c.Seeds, c.Workers, func(r faults.Result) {
		n++
		if !r.OK && werr == nil {
			werr = out.Encode(r)
		}
		if !c.Quiet && time.Since(told) > 2*time.Second {
			told = time.Now()
			fmt.Fprintf(os.Stderr, "%d of %d seeds, %.0f per second\n", n, c.Seeds, float64(n)/time.Since(start).Seconds())
		}
	})
	if werr == nil {
		werr = out.Encode(struct {
			faults.Summary
			Seconds float64 `json:"seconds"`
		}{sum, time.Since(start).Seconds()})
	}
	switch {
	case werr != nil:
		return werr
	case len(sum.Failed) > 0:
		return fmt.Errorf("%d of %d seeds failed; each line above has the command that replays it", len(sum.Failed), sum.Seeds)
	case sum.Seeds < c.Seeds:
		return fmt.Errorf("interrupted after %d of %d seeds", sum.Seeds, c.Seeds)
	}
	return nil
}
