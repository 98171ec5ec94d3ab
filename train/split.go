package train

import (
	"slices"

	"tributary/internal/rng"
)

// Split is the indices of a data set's examples in each part, ascending.
type Split struct{ Train, Test []int }

// NewSplit sets one fifth of each class, to the nearest number, aside for
// testing. Which ones follows from the labels and the seed alone.
func NewSplit(y []int32, classes int, seed uint64) *Split {
	quota := make([]int, classes)
	for _, c := range y {
		quota[c]++
	}
	for c, n := range quota {
		quota[c] = (n + 2) / 5
	}
	order := make([]int, len(y))
	rng.New(seed, "split").Perm(order)
	s := &Split{}
	for _, i := range order {
		if c := y[i]; quota[c] > 0 {
			quota[c]--
			s.Test = append(s.Test, i)
		} else {
			s.Train = append(s.Train, i)
		}
	}
	slices.Sort(s.Train)
	slices.Sort(s.Test)
	return s
}
