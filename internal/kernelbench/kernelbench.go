// Package kernelbench measures update rules and the combination of
// contributions against the bandwidth of the machine's memory.
//
// The measure is a loop a[i] += s·b[i], compiled from C where there is a
// compiler, in a process of its own, or else the one of package vec. It moves
// 12 bytes per element. Every figure is paired with passes of that loop made
// just before and after, since the bandwidth of a shared machine changes from
// one second to the next.
package kernelbench

import (
	"slices"
	"sync"
	"time"
)

// updateBytes is what a[i] += s·b[i] moves per element.
const updateBytes = 12

// Range is the median of several figures, the least and the greatest.
type Range struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// RangeOf is the median, the least and the greatest of xs; 0 of none.
func RangeOf(xs []float64) Range {
	if len(xs) == 0 {
		return Range{}
	}
	s := slices.Sorted(slices.Values(xs))
	n := len(s)
	return Range{Median: (s[(n-1)/2] + s[n/2]) / 2, Min: s[0], Max: s[n-1]}
}

// parallel runs f for every thread and returns how long it took.
func parallel(threads int, f func(thread int)) time.Duration {
	start := time.Now()
	if threads == 1 {
		f(0)
		return time.Since(start)
	}
	var wg sync.WaitGroup
	for i := range threads {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
	return time.Since(start)
}
