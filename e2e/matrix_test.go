package e2e

import (
	"fmt"
	"os"
	"testing"

	"tributary/optim"
)

// TestSameBits: at staleness 0 the result depends neither on the number of
// shards, servers and workers nor on the order in which contributions arrive,
// for every update rule. Everything is in one process, so that there can be
// many runs.
func TestSameBits(t *testing.T) {
	l := newLab(t, 3) // not parallel to other tests, which look at what happens when
	type shape struct{ shards, servers, workers int }
	shapes := []shape{{1, 1, 4}, {1, 1, 1}, {2, 1, 2}, {3, 3, 4}, {7, 3, 1}, {7, 1, 4}, {3, 3, 2}}
	if os.Getenv("TRIBUTARY_LONG") == "1" {
		shapes = shapes[:1]
		for _, shards := range []int{1, 2, 3, 7} {
			for _, servers := range []int{1, 3} {
				for _, workers := range []int{1, 2, 4} {
					shapes = append(shapes, shape{shards, servers, workers})
				}
			}
		}
	}
	for _, rule := range optim.Names() {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			run := func(x shape, seed uint64) *final {
				return l.run(t, smallJob(t, "name="+rule, "steps=20", "chunk=128", "checkpoint.every=7", "optimizer={rule: "+rule+", hyper: {lr: 0.01}}",
					fmt.Sprintf("shards=%d", x.shards), fmt.Sprintf("servers=%d", x.servers), fmt.Sprintf("workers=%d", x.workers)), seed)
			}
			want := run(shapes[0], 0)
			for i, x := range shapes[1:] {
				seed := uint64(i + 1)
				if d := run(x, seed).differs(want); d != "" {
					t.Errorf("%d shards on %d servers, %d workers, arrival order %d: %s", x.shards, x.servers, x.workers, seed, d)
				}
			}
		})
	}
}

// TestSameBitsBroker: the same nodes and workers over a broker, with the
// authority in its store, give the bits that they give inside the process.
func TestSameBitsBroker(t *testing.T) {
	l := newBrokerLab(t, 3)
	for i, rule := range optim.Names() {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			spec := smallJob(t, "name="+rule, "steps=20", "servers=3", "shards=7", "workers=2", "optimizer={rule: "+rule+", hyper: {lr: 0.01}}")
			want := reference(t, spec)
			same(t, l.run(t, spec, uint64(i+1)), want)
		})
	}
}
