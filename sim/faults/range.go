package faults

import (
	"context"
	"runtime"
	"sync"
)

// Summary is the outcome of a range of seeds.
type Summary struct {
	From   uint64   `json:"from"`
	Seeds  uint64   `json:"seeds"` // run; fewer than asked for if it was interrupted
	Failed []uint64 `json:"failed"`
	Counts Counts   `json:"counts"` // in sum
}

// Range runs n seeds from one on, each on one thread, workers of them at a time
// (0: as many as there are cores). Results are handed to each one at a time in
// the order of their seeds, whoever is done first. When ctx ends, Range returns
// once the seeds under way have ended.
func Range(ctx context.Context, from, n uint64, workers int, each func(Result)) Summary {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	type slot chan Result
	// order holds a place for every seed under way; its capacity bounds how far
	// ahead of the slowest the others may run.
	order := make(chan slot, 4*workers)
	work := make(chan func())
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for f := range work {
				f()
			}
		})
	}
	wg.Go(func() {
		defer close(order)
		defer close(work)
		for i := range n {
			s := make(slot, 1)
			select {
			case order <- s:
			case <-ctx.Done():
				return
			}
			work <- func() { s <- Run(from+i, nil) }
		}
	})
	sum := Summary{From: from, Failed: []uint64{}}
	for s := range order {
		r := <-s
		sum.Seeds++
		sum.Counts.add(&r.Counts)
		if !r.OK {
			sum.Failed = append(sum.Failed, r.Seed)
		}
		if each != nil {
			each(r)
		}
	}
	wg.Wait()
	return sum
}
