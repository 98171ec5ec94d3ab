package optim

import (
	"math"
	"sort"
)

// curve is a schedule with its updates counted from 0. What begins with a
// warm-up rises to start, which differs from at(0) only for inverse_sqrt and for
// a curve of no updates.
type curve struct {
	start float64
	at    func(s uint64) float64
}

// curve makes the schedule of a checked s for total updates.
func (s *ScheduleSpec) curve(lr float64, total uint64) curve {
	n := total - s.Warmup
	var c curve
	switch s.kind() {
	case "constant":
		c = s.constant(lr)
	case "step", "exponential", "inverse_sqrt", "cosine_restarts":
		f := s.endless(lr)
		last := max(n, 1) - 1
		c = curve{lr, func(s uint64) float64 { return f(min(s, last)) }}
	case "cosine", "polynomial":
		c = s.falling(lr, or(s.Over, n))
	case "linear":
		from, to := float64(lr*or(s.From, 1)), float64(lr*s.To)
		left := remaining(or(s.Over, n))
		c = curve{from, func(s uint64) float64 { return between(from, to, left(s)) }}
	case "one_cycle":
		c = s.oneCycle(lr, or(s.Over, n))
	case "wsd":
		c = s.stableDecay(lr, n)
	case "stages":
		c = s.inStages(lr, n)
	case "product":
		c = s.multiplied(lr, n)
	}
	return c.warmed(s.Warmup, s.WarmupFrom)
}

// or is x, or the default of a field that is absent.
func or[T uint64 | float64 | string](x, def T) T {
	var zero T
	if x == zero {
		return def
	}
	return x
}

// between goes from a at share 1 to b at share 0.
func between(a, b, share float64) float64 { return b + float64((a-b)*share) }

// remaining is the share of n updates that is left at s: 1 − s/n, and 0 from
// update n on.
func remaining(n uint64) func(s uint64) float64 {
	return func(s uint64) float64 {
		if s >= n {
			return 0
		}
		return float64(n-s) / float64(n)
	}
}

// halfCosine is (1 + cos πx)/2.
func halfCosine(x float64) float64 { return float64(0.5 * (1 + cosPi(x))) }

// warmed rises to the start of c in a straight line over the updates before.
func (c curve) warmed(warmup uint64, from float64) curve {
	if warmup == 0 {
		return c
	}
	left, foot := remaining(warmup), float64(c.start*from)
	rise := func(t uint64) float64 {
		if t == warmup {
			return c.start
		}
		return float64(c.start*float64(t))/float64(warmup) + float64(foot*left(t))
	}
	return curve{rise(1), func(s uint64) float64 {
		if s < warmup {
			return rise(s + 1)
		}
		return c.at(s - warmup)
	}}
}

func (s *ScheduleSpec) constant(lr float64) curve {
	first, over := float64(lr*or(s.Factor, 1)), or(s.Over, math.MaxUint64)
	return curve{first, func(s uint64) float64 {
		if s < over {
			return first
		}
		return lr
	}}
}

// endless are the kinds that know no length.
func (s *ScheduleSpec) endless(lr float64) func(s uint64) float64 {
	low, every := s.Min, s.Every
	switch s.Kind {
	case "step":
		factor, milestones := or(s.Factor, 0.1), s.Milestones
		return func(s uint64) float64 {
			n := uint64(0)
			if every > 0 {
				n = s / every
			} else {
				n = uint64(sort.Search(len(milestones), func(i int) bool { return milestones[i] > s }))
			}
			return max(float64(lr*powInt(factor, n)), low)
		}
	case "exponential":
		factor := s.Factor
		if every <= 1 {
			return func(s uint64) float64 { return max(float64(lr*powInt(factor, s)), low) }
		}
		return func(s uint64) float64 {
			return max(float64(lr*powReal(factor, float64(s)/float64(every))), low)
		}
	case "inverse_sqrt":
		warmup := s.Warmup
		scale := float64(max(warmup, 1))
		return func(s uint64) float64 {
			return max(float64(lr*math.Sqrt(scale/float64(warmup+1+s))), low)
		}
	}
	growth := or(s.Growth, 1)
	return func(s uint64) float64 {
		k, period := inPeriod(s, every, growth)
		return between(lr, low, halfCosine(float64(k)/float64(period)))
	}
}

// inPeriod cuts the updates into periods of first·growthⁱ updates and returns
// the place of s in its period, and the period.
func inPeriod(s, first, growth uint64) (k, period uint64) {
	if growth == 1 {
		return s % first, first
	}
	for period = first; s >= period; { // at most 64 times: periods double
		s -= period
		if period > math.MaxUint64/growth {
			return s, math.MaxUint64
		}
		period *= growth
	}
	return s, period
}

// falling are the kinds that fall from lr to Min in n updates.
func (s *ScheduleSpec) falling(lr float64, n uint64) curve {
	low, power := s.Min, or(s.Power, 1)
	if s.Kind == "cosine" {
		return curve{lr, func(s uint64) float64 {
			if s >= n {
				return low
			}
			return between(lr, low, halfCosine(float64(s)/float64(n)))
		}}
	}
	left := remaining(n)
	return curve{lr, func(s uint64) float64 { return between(lr, low, powReal(left(s), power)) }}
}

func (s *ScheduleSpec) oneCycle(lr float64, n uint64) curve {
	first := lr / or(s.Div, 25)
	final := first / or(s.FinalDiv, 1e4)
	straight := s.Shape == "linear"
	top, last := float64(or(s.Rise, 0.3)*float64(n))-1, float64(n)-1
	along := func(a, b, x float64) float64 {
		if straight {
			return between(a, b, 1-x)
		}
		return between(a, b, halfCosine(x))
	}
	at := func(s uint64) float64 {
		switch k := float64(s); {
		case n == 0:
			return first
		case k < top:
			return along(first, lr, k/top)
		case top >= last: // a cycle that only rises
			return lr
		case k >= last:
			return final
		default:
			return along(lr, final, (k-top)/(last-top))
		}
	}
	return curve{at(0), at}
}

func (s *ScheduleSpec) stableDecay(lr float64, n uint64) curve {
	low, shape := s.Min, or(s.Shape, wsdShapes[0])
	decay := or(s.Decay, n/10)
	stable := n - decay
	return curve{lr, func(s uint64) float64 {
		switch {
		case s < stable:
			return lr
		case s >= n:
			return low
		}
		switch x := float64(s-stable) / float64(decay); shape {
		case "cosine":
			return between(lr, low, halfCosine(x))
		case "sqrt":
			return between(lr, low, 1-math.Sqrt(x))
		case "exponential":
			return float64(lr * powReal(low/lr, x))
		default:
			return between(lr, low, 1-x)
		}
	}}
}

// inStages are curves one after the other.
func (s *ScheduleSpec) inStages(lr float64, n uint64) curve {
	type stage struct {
		end uint64
		at  func(s uint64) float64
	}
	var stages []stage
	start, end := 0.0, uint64(0)
	for i := range s.Stages {
		length := or(s.Stages[i].Length, n-end)
		c := s.Stages[i].curve(lr, length)
		if i == 0 {
			start = c.start
		}
		end += length
		stages = append(stages, stage{end, c.at})
	}
	return curve{start, func(s uint64) float64 {
		begin, last := uint64(0), len(stages)-1
		for i := range last {
			if s < stages[i].end {
				return stages[i].at(s - begin)
			}
			begin = stages[i].end
		}
		return stages[last].at(s - begin)
	}}
}

// multiplied is lr times the product of curves with base rate 1.
func (s *ScheduleSpec) multiplied(lr float64, n uint64) curve {
	var factors []func(s uint64) float64
	start := lr
	for i := range s.Product {
		c := s.Product[i].curve(1, n)
		start = float64(start * c.start)
		factors = append(factors, c.at)
	}
	return curve{start, func(s uint64) float64 {
		r := lr
		for _, f := range factors {
			r = float64(r * f(s))
		}
		return r
	}}
}
