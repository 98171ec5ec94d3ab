package place

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// Where a shard lives is decided by whoever submits the job and found again by
// everybody: the answers of this package never change.
func TestGolden(t *testing.T) {
	var b strings.Builder
	nodes := []string{"ps-1", "ps-2", "ps-3", "ps-4", "eu_west", "A", "0"}
	for _, job := range []string{"job", "digits-16", ""} {
		for n := 1; n <= len(nodes); n++ {
			fmt.Fprintf(&b, "Shards(%q, 8, %v) = %v\n", job, nodes[:n], Shards(job, 8, nodes[:n], nil))
		}
		for _, item := range []uint64{0, 1, 7, 1 << 32, 1<<64 - 1} {
			fmt.Fprintf(&b, "Ranked(%q, %d) = %v\n", job, item, Ranked(job, item, nodes))
		}
	}
	prev := Shards("job", 8, nodes[:3], nil)
	fmt.Fprintf(&b, "after ps-2 left: %v\n", Shards("job", 8, []string{"ps-1", "ps-3"}, prev))
	fmt.Fprintf(&b, "after ps-4 came: %v\n", Shards("job", 8, nodes[:4], prev))
	const file = "testdata/placement.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		t.Errorf("placement changed:\n%s\nwant\n%s", got, want)
	}
}

func TestShards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z0-9-]{1,8}`)
		nodes := rapid.SliceOfNDistinct(name, 1, 9, rapid.ID).Draw(t, "nodes")
		job, shards := name.Draw(t, "job"), rapid.IntRange(0, 40).Draw(t, "shards")
		first := Shards(job, shards, nodes, nil)
		check := func(out, nodes []string) {
			load := map[string]int{}
			for _, n := range out {
				load[n]++
			}
			if len(out) != shards || load[""] > 0 {
				t.Fatalf("%v is no placement of %d shards", out, shards)
			}
			for n, x := range load {
				if !slices.Contains(nodes, n) || x > (shards+len(nodes)-1)/len(nodes) {
					t.Fatalf("%d of %d shards on %q of %v", x, shards, n, nodes)
				}
			}
		}
		check(first, nodes)
		// The order of nodes, and repetition, mean nothing.
		mixed := rapid.Permutation(append(slices.Clone(nodes), nodes[0])).Draw(t, "mixed")
		before := slices.Clone(mixed)
		if got := Shards(job, shards, mixed, nil); !slices.Equal(got, first) || !slices.Equal(mixed, before) {
			t.Fatalf("%v places %v, %v places %v", nodes, first, mixed, got)
		}
		// A placement stays as it is.
		if got := Shards(job, shards, nodes, first); !slices.Equal(got, first) {
			t.Fatalf("%v moved to %v for no reason", first, got)
		}
		// When a node leaves only its shards move; and all is placed when some
		// were nowhere or more shards come.
		if len(nodes) > 1 {
			left := slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return n == nodes[0] })
			got := Shards(job, shards, left, first)
			check(got, left)
			for s := range got {
				if first[s] != nodes[0] && got[s] != first[s] {
					t.Fatalf("shard %d moved from %s to %s when %s left", s, first[s], got[s], nodes[0])
				}
			}
		}
		// When one comes nobody gives up more than the new bound asks for.
		more := append(slices.Clone(nodes), "zz-new")
		got := Shards(job, shards, more, first)
		check(got, more)
		bound := (shards + len(more) - 1) / len(more)
		load, moved := map[string]int{}, map[string]int{}
		for s := range got {
			load[first[s]]++
			if got[s] != first[s] {
				moved[first[s]]++
			}
		}
		for n := range maps.Keys(moved) {
			if moved[n] != load[n]-bound {
				t.Fatalf("%s had %d shards and gave %d away; the bound is %d", n, load[n], moved[n], bound)
			}
		}
		check(Shards(job, shards, nodes, rapid.SliceOfN(rapid.SampledFrom(append(nodes, "", "gone")), 0, 50).Draw(t, "prev")), nodes)
	})
	if got := Shards("job", 3, nil, []string{"a"}); got != nil {
		t.Errorf("placed on no nodes: %v", got)
	}
}

// Ranked puts every node somewhere, whatever the order they are named in, and
// a node's place among the others does not depend on who else is there.
func TestRanked(t *testing.T) {
	first := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		nodes := []string{"a", "b", "c", "d", "e"}
		item := rapid.Uint64().Draw(t, "item")
		ranked := Ranked("job", item, nodes)
		if got := Ranked("job", item, rapid.Permutation(nodes).Draw(t, "mixed")); !slices.Equal(got, ranked) {
			t.Fatalf("ranked %v and %v", ranked, got)
		}
		if got := slices.Sorted(slices.Values(ranked)); !slices.Equal(got, nodes) {
			t.Fatalf("ranked %v", ranked)
		}
		some := slices.DeleteFunc(slices.Clone(ranked), func(n string) bool { return n == "c" })
		if got := Ranked("job", item, []string{"a", "b", "d", "e"}); !slices.Equal(got, some) {
			t.Fatalf("without c ranked %v, with it %v", got, ranked)
		}
	})
	for item := range uint64(1000) {
		first[Ranked("job", item, []string{"a", "b", "c", "d"})[0]]++
	}
	for n, x := range first {
		if x < 200 || x > 300 {
			t.Errorf("%s is first for %d of 1000 items", n, x)
		}
	}
}
