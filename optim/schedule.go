package optim

import (
	"errors"
	"fmt"
	"math"
)

// Schedule gives the learning rate of update t, counted from 1. It is a pure
// function: the owner of a shard evaluates it once per step and the value
// travels in the log.
type Schedule func(t uint64) float64

// Constant is the schedule that always gives lr.
func Constant(lr float64) Schedule {
	return func(uint64) float64 { return lr }
}

// Cosine falls from lr at the first update towards low:
//
//	η(t) = low + (lr − low)/2 · (1 + cos(π·(t−1)/total))   and low beyond total
//
// Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5 without restarts,
// arXiv:1608.03983. Counted as in PyTorch's CosineAnnealingLR, so that the
// last of total updates still has a rate a little above low.
func Cosine(lr float64, total uint64, low float64) Schedule {
	return WarmupCosine(lr, 0, total, low)
}

// WarmupCosine rises in a straight line, η(t) = lr·t/warmup up to update
// warmup, and then falls as [Cosine] over the remaining total − warmup updates.
func WarmupCosine(lr float64, warmup, total uint64, low float64) Schedule {
	return func(t uint64) float64 {
		switch {
		case t <= warmup:
			return ramp(lr, t, warmup)
		case t > total:
			return low
		}
		x := float64(t-1-warmup) / float64(total-warmup)
		half := float64(0.5 * (1 + cosPi(x)))
		return low + float64((lr-low)*half)
	}
}

// WarmupConstant rises as [WarmupCosine] and then stays at lr.
func WarmupConstant(lr float64, warmup uint64) Schedule {
	return func(t uint64) float64 { return ramp(lr, t, warmup) }
}

func ramp(lr float64, t, warmup uint64) float64 {
	if t >= warmup {
		return lr
	}
	return float64(lr*float64(t)) / float64(warmup)
}

// ScheduleKinds are the names a [ScheduleSpec] knows.
var ScheduleKinds = []string{"constant", "cosine"}

// ScheduleSpec describes a schedule in a job file.
type ScheduleSpec struct {
	Kind   string  `json:"kind,omitempty" yaml:"kind"`     // one of ScheduleKinds; empty means constant
	Warmup uint64  `json:"warmup,omitempty" yaml:"warmup"` // updates in which the rate rises to its base
	Min    float64 `json:"min,omitempty" yaml:"min"`       // rate at the end of a cosine
}

// ErrSchedule is wrapped by every error of [ScheduleSpec.New].
var ErrSchedule = errors.New("bad schedule")

// New makes the schedule with base rate lr for a job of total updates. All
// problems are joined.
func (s ScheduleSpec) New(lr float64, total uint64) (Schedule, error) {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrSchedule}, args...)...))
	}
	if !(lr >= 0) || math.IsInf(lr, 0) {
		bad("base rate %v", lr)
	}
	if s.Warmup > total {
		bad("warmup %d is longer than the job's %d updates", s.Warmup, total)
	}
	switch s.Kind {
	case "", "constant":
		if s.Min != 0 {
			bad("min %v has no meaning for a constant rate", s.Min)
		}
	case "cosine":
		if !(s.Min >= 0 && s.Min <= lr) {
			bad("min %v, want 0 to the base rate %v", s.Min, lr)
		}
	default:
		bad("unknown kind %q: %s", s.Kind, Suggest(s.Kind, ScheduleKinds))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if s.Kind == "cosine" {
		return WarmupCosine(lr, s.Warmup, total, s.Min), nil
	}
	return WarmupConstant(lr, s.Warmup), nil
}
