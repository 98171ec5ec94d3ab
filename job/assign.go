package job

import (
	"cmp"
	"slices"

	"tributary/ledger"
)

// OnLoss says what happens to the ranks of a worker that is lost.
type OnLoss string

// The policies of C1.
const (
	Reassign OnLoss = "reassign" // other workers take them over and recompute the open step
	Wait     OnLoss = "wait"     // the job waits until the worker is back
	Shrink   OnLoss = "shrink"   // steps close without them until somebody takes them
)

// Assign maps ranks to workers. prev is the last view (entries may be empty),
// alive the live workers with their newest incarnations. It is a pure function:
// ranks stay where they are as long as their worker lives, orphans go to the
// least loaded worker, and loads differ by one at most. out marks ranks that
// belong to nobody and, under Shrink, are left out of the set.
func Assign(prev []ledger.Member, alive []ledger.Member, policy OnLoss) (ranks []ledger.Member, out []bool) {
	ranks = slices.Clone(prev)
	alive = slices.Clone(alive)
	slices.SortFunc(alive, func(a, b ledger.Member) int { return cmp.Compare(a.Worker, b.Worker) })
	load := make([]int, len(alive))
	var orphans []int
	for r, m := range ranks {
		i := slices.IndexFunc(alive, func(a ledger.Member) bool { return a.Worker == m.Worker })
		switch {
		case i >= 0:
			ranks[r] = alive[i] // maybe a newer incarnation
			load[i]++
		case m.Worker != "" && policy == Wait:
			// stays with the absent worker
		default:
			orphans = append(orphans, r)
		}
	}
	first := len(prev) > 0 && len(orphans) == len(prev)
	if policy == Shrink && !first {
		// Only workers that serve nothing take orphans, as many as others serve,
		// so that a loss shrinks the set instead of doubling somebody's work.
		share := 1
		var idle []int
		for i, n := range load {
			if share = max(share, n); n == 0 {
				idle = append(idle, i)
			}
		}
		rest := orphans[:0]
		for n, r := range orphans {
			if n >= share*len(idle) {
				rest = append(rest, r)
				continue
			}
			ranks[r] = alive[idle[n%len(idle)]]
		}
		out = make([]bool, len(ranks))
		for _, r := range rest {
			ranks[r], out[r] = ledger.Member{}, true
		}
		if len(rest) == 0 {
			out = nil
		}
		return ranks, out
	}
	for _, r := range orphans {
		if len(alive) == 0 {
			break
		}
		i := slices.Index(load, slices.Min(load))
		ranks[r] = alive[i]
		load[i]++
	}
	balance(ranks, alive, load)
	return ranks, nil
}

// balance moves ranks from the most to the least loaded worker until loads
// differ by one at most.
func balance(ranks, alive []ledger.Member, load []int) {
	if len(alive) == 0 {
		return
	}
	for {
		hi, lo := slices.Index(load, slices.Max(load)), slices.Index(load, slices.Min(load))
		if load[hi]-load[lo] <= 1 {
			return
		}
		for r := len(ranks) - 1; r >= 0; r-- {
			if ranks[r] == alive[hi] {
				ranks[r] = alive[lo]
				load[hi]--
				load[lo]++
				break
			}
		}
	}
}
