// Package place decides which node owns which shard: a pure function.
package place

import (
	"cmp"
	"slices"

	"tributary/internal/rng"
)

// Shards maps every shard of a job to one of nodes by rendezvous hashing with
// bounded load: no node gets more than ⌈shards/nodes⌉. prev is the placement
// so far (empty strings or nil for none): a shard stays where it is as long as
// its node is there and not over the bound. The result depends on the set of
// nodes, not on their order. It is nil when there are no nodes.
//
// Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996;
// Mirrokni et al., "Consistent hashing with bounded loads", arXiv:1608.01350.
func Shards(job string, shards int, nodes, prev []string) []string {
	if len(nodes) == 0 {
		return nil
	}
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes)))
	bound := (shards + len(nodes) - 1) / len(nodes)
	load := make(map[string]int, len(nodes))
	out := make([]string, shards)
	for s := range min(shards, len(prev)) {
		if n := prev[s]; slices.Contains(nodes, n) && load[n] < bound {
			out[s] = n
			load[n]++
		}
	}
	for s := range out {
		if out[s] != "" {
			continue
		}
		for _, n := range Ranked(job, uint64(s), nodes) {
			if load[n] < bound {
				out[s] = n
				load[n]++
				break
			}
		}
	}
	return out
}

// Ranked returns nodes in the order in which they would own item, best first.
func Ranked(job string, item uint64, nodes []string) []string {
	score := func(n string) uint64 { return rng.New(item, "place").WithString(job).WithString(n).Uint64(0) }
	return slices.SortedFunc(slices.Values(nodes), func(a, b string) int {
		return cmp.Or(cmp.Compare(score(b), score(a)), cmp.Compare(a, b))
	})
}
