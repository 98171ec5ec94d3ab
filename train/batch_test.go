package train

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// An obviously right Batch: the rank's whole stream written out from fresh
// permutations, then cut.
func batchTwin(n, ranks, rank int, seed, step uint64, size int) (indices []int, epoch uint64) {
	var stream []int
	for e := uint64(0); len(stream) < int(step+1)*size; e++ {
		p := NewSampler(n, ranks, seed).perm(e)
		for k := range n / ranks {
			stream = append(stream, p[rank+k*ranks])
		}
	}
	return stream[int(step)*size : int(step+1)*size], step * uint64(size) / uint64(n/ranks)
}

// Neither the order of calls nor what was asked before changes a batch.
func TestBatchIsAPureFunction(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "n")
		ranks := rapid.IntRange(1, n).Draw(t, "ranks")
		seed := rapid.Uint64().Draw(t, "seed")
		size := rapid.IntRange(1, 12).Draw(t, "size")
		s := NewSampler(n, ranks, seed)
		for range rapid.IntRange(1, 20).Draw(t, "calls") {
			rank := rapid.IntRange(0, ranks-1).Draw(t, "rank")
			step := rapid.Uint64Range(0, 30).Draw(t, "step")
			want, wantEpoch := batchTwin(n, ranks, rank, seed, step, size)
			got, epoch := s.Batch([]int{-7}, rank, step, size)
			if got[0] != -7 || !slices.Equal(got[1:], want) || epoch != wantEpoch {
				t.Fatalf("Sampler.Batch(rank %d, step %d) = %v, %d; want %v, %d", rank, step, got[1:], epoch, want, wantEpoch)
			}
			if got, epoch := Batch(nil, n, ranks, rank, seed, step, size); !slices.Equal(got, want) || epoch != wantEpoch {
				t.Fatalf("Batch(rank %d, step %d) = %v, %d; want %v, %d", rank, step, got, epoch, want, wantEpoch)
			}
		}
	})
}

// In an epoch the ranks see every example once, but for the n mod ranks that
// rest; and another epoch or seed has another order.
func TestEpochCoversTheData(t *testing.T) {
	const n, ranks, size = 103, 4, 5 // 25 examples a rank: 5 steps an epoch
	epochs := make([][]int, 3)
	for e := range epochs {
		for rank := range ranks {
			for step := range 5 {
				got, epoch := Batch(nil, n, ranks, rank, 9, uint64(5*e+step), size)
				if epoch != uint64(e) {
					t.Errorf("step %d is in epoch %d, want %d", 5*e+step, epoch, e)
				}
				epochs[e] = append(epochs[e], got...)
			}
		}
		sorted := slices.Clone(epochs[e])
		slices.Sort(sorted)
		if len(slices.Compact(sorted)) != 100 || sorted[0] < 0 || sorted[99] >= n {
			t.Errorf("epoch %d: %v, want 100 different examples below %d", e, sorted, n)
		}
	}
	if slices.Equal(epochs[0], epochs[1]) || slices.Equal(epochs[1], epochs[2]) || slices.Equal(epochs[0], epochs[2]) {
		t.Error("two epochs in the same order")
	}
	a, _ := Batch(nil, n, ranks, 0, 1, 0, 20)
	b, _ := Batch(nil, n, ranks, 0, 2, 0, 20)
	if slices.Equal(a, b) {
		t.Error("two seeds in the same order")
	}
}

// Frozen: a change of the data order would silently change every logged run.
func TestBatchGolden(t *testing.T) {
	got, epoch := Batch(nil, 10, 2, 1, 1, 1, 4)
	if want := []int{9, 1, 2, 3}; !slices.Equal(got, want) || epoch != 0 {
		t.Errorf("Batch = %v, %d; want %v, 0", got, epoch, want)
	}
}

// The shares of all ranks are the data, once each.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "n")
		ranks := rapid.IntRange(1, n).Draw(t, "ranks")
		s := NewSampler(n, ranks, 1)
		seen := make([]int, n)
		for rank := range ranks {
			share := s.Share([]int{-7}, rank)
			if share[0] != -7 || share[1] != rank || !slices.IsSorted(share) {
				t.Fatalf("share of rank %d of %d: %v", rank, ranks, share)
			}
			for _, i := range share[1:] {
				seen[i]++
			}
			if want := float64(len(share)-1) * float64(ranks) / float64(n); s.ShareWeight(rank) != want {
				t.Fatalf("weight of rank %d of %d for %d examples: %v, want %v", rank, ranks, n, s.ShareWeight(rank), want)
			}
		}
		if slices.Min(seen) != 1 || slices.Max(seen) != 1 {
			t.Fatalf("%d ranks see %v", ranks, seen)
		}
	})
}

// Weighted by their shares, the ranks' gradients have the full one for their
// mean.
func TestFullGradient(t *testing.T) {
	data, _, _, err := Load("digits", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	const ranks = 37 // of 1438 examples: 38 or 39 each
	m := newModel(t, ModelSpec{Kind: "softmax"}, data.Shape())
	params := start(m, 1)
	off, grad := make([]float32, len(params)), make([]float32, len(params))
	want, _ := m.Grad(params, data.X, data.Y, data.N, off)
	s, size, mean := NewSampler(data.N, ranks, 1), norm(off), 0.0
	for rank := range ranks {
		part := data.pick(s.Share(nil, rank))
		loss, _ := m.Grad(params, part.X, part.Y, part.N, grad)
		mean += loss * s.ShareWeight(rank) / ranks
		for i, g := range grad {
			off[i] -= g * float32(s.ShareWeight(rank)/ranks)
		}
	}
	if !(math.Abs(mean-want) <= 1e-9) || !(norm(off) <= 1e-5*size) {
		t.Errorf("mean loss %v, want %v; gradient off by %v of %v", mean, want, norm(off), size)
	}
}

func TestSamplerDoesNotAllocate(t *testing.T) {
	s := NewSampler(1000, 3, 1)
	dst := make([]int, 0, 64)
	for step := range uint64(16) {
		s.Batch(dst, 0, step, 64)
	}
	step := uint64(16)
	if got := testing.AllocsPerRun(50, func() { s.Batch(dst, 2, step, 64); step++ }); got != 0 {
		t.Errorf("%v allocations a batch", got)
	}
}

func TestBatchPanics(t *testing.T) {
	for _, c := range []struct{ n, ranks, rank int }{{3, 4, 0}, {3, 0, 0}, {3, 2, 2}, {3, 2, -1}, {0, 0, 0}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Batch of %+v did not panic", c)
				}
			}()
			Batch(nil, c.n, c.ranks, c.rank, 1, 0, 1)
		}()
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("the share of %+v did not panic", c)
				}
			}()
			NewSampler(c.n, c.ranks, 1).Share(nil, c.rank)
		}()
	}
}
