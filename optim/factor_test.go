package optim

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// Whoever asks gets the factor of what was given, however many ask for it and
// for others at the same time; those who ask for the same share the work.
func TestFactors(t *testing.T) {
	const rows, cols, shards, steps = 9, 14, 4, 30
	r := rand.New(rand.NewPCG(1, 2))
	gs, want := make([][]float64, steps), make([][]float32, steps)
	for i := range gs {
		gs[i] = make([]float64, rows*cols)
		for j := range gs[i] {
			gs[i][j] = r.NormFloat64()
		}
		var ns newtonSchulz[float32]
		want[i] = slices.Clone(ns.run(gs[i], rows, cols))
	}
	var fs factors[float32]
	var wg sync.WaitGroup
	var barrier [steps]sync.WaitGroup // steps of one job end together, others' do not
	for i := range barrier {
		barrier[i].Add(shards)
	}
	for range shards {
		wg.Go(func() {
			got := make([]float32, rows*cols)
			for i := range steps {
				fs.tensor("w").copy(got, gs[i], rows, cols)
				if !slices.Equal(got, want[i]) {
					t.Errorf("step %d: another factor", i)
				}
				fs.tensor("other").copy(got, gs[(i*7+3)%steps], rows, cols)
				if !slices.Equal(got, want[(i*7+3)%steps]) {
					t.Errorf("step %d: another factor of the other tensor", i)
				}
				barrier[i].Done()
				barrier[i].Wait()
			}
		})
	}
	wg.Wait()
	if n := fs.tensor("w").misses; n != steps {
		t.Errorf("computed %d factors for %d steps", n, steps)
	}
}
