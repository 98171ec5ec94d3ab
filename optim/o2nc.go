package optim

import (
	"fmt"
	"math"

	"tributary/internal/rng"
	"tributary/internal/vec"
)

func init() {
	Register(Def{
		Name:  "o2nc",
		Doc:   "online learning of the steps themselves, for losses that are neither convex nor smooth",
		Paper: "Cutkosky, Mehta and Orabona, ICML 2023, arXiv:2302.03775",
		Hypers: []Hyper{
			rate(0.01),
			number("radius", 0.1, 0, inf, "no step is longer than this"),
			number("epoch", 10, 2, maxPeriod, "steps from one start of the online learner to the next"),
			number("seed", 0, 0, 1<<53, "of the random draws; a whole number"),
		},
		New32: newO2NC[float32],
		New64: newO2NC[float64],
	})
}

// o2nc is online-to-nonconvex conversion with projected online gradient descent
// as the learner. Its parameters are w, where workers take gradients: a random
// point on the way from x to where the step leads. At step n, with Δ₁ = 0,
//
//	xₙ = xₙ₋₁ + Δₙ,  wₙ = xₙ₋₁ + sₙ·Δₙ,  sₙ uniform in [0, 1)
//	Δₙ₊₁ = (Δₙ − lr·g) · min(1, D/‖Δₙ − lr·g‖),  or 0 where an epoch of T steps ends
//
// where the norm runs over the whole model and D is the radius. After step n
// slot x is xₙ, slot delta is Δₙ₊₁, and wₙ₊₁ is handed out.
//
// The answer of the method is the mean of w over one epoch, drawn at random. It
// is kept by reservoir sampling: the mean of epoch e takes the place of the
// answer with probability 1/e. While the first epoch lasts the answer is the mean
// so far. The draws are keyed by seed and step, or epoch, and are the same on all
// shards. Pass 0 adds up the square of the norm; pass 1 computes Δ again.
//
// Out may be W; other overlaps are not allowed. A NaN in g makes NaN of all
// parameters, unless the epoch ends with this step, which then has no effect. An
// Inf is projected to Δ = 0, as at the end of an epoch. Apply does not allocate.
//
// Cutkosky, Mehta and Orabona, "Optimal Stochastic Non-smooth Non-convex
// Optimization through Online-to-Non-convex Conversion", ICML 2023, Algorithm 1
// with the learner of section 3, arXiv:2302.03775.
type o2nc[T Float] struct {
	radius float64
	epoch  uint64
	seed   uint64
	// uniform is draw n for s; tests replay recorded ones.
	uniform func(n uint64) float64
	spec    Spec
}

// Indices of the slots.
const (
	o2ncX = iota
	o2ncDelta
	o2ncMean
	o2ncAnswer
)

// Indices of the scalars of a step.
const (
	o2ncRate   = iota // lr
	o2ncShrink        // the projection's factor; 0 where an epoch ends
	o2ncS             // s of the next step
	o2ncShare         // weight of w in the mean of its epoch
	o2ncChosen        // 1 where the mean becomes the answer
)

func newO2NC[T Float](v Values) (Rule[T], error) {
	for _, name := range []string{"epoch", "seed"} {
		if x := v.Float(name); x != math.Trunc(x) {
			return nil, &HyperError{"o2nc", name, fmt.Sprintf("o2nc: %s: want a whole number, got %v", name, x)}
		}
	}
	r := &o2nc[T]{radius: v.Float("radius"), epoch: uint64(v.Float("epoch")), seed: uint64(v.Float("seed"))}
	r.uniform = rng.New(r.seed, "o2nc").Float64
	r.spec = elementWise("o2nc", Slot{Name: "x", FromParams: true}, Slot{Name: "delta"},
		Slot{Name: "mean", FromParams: true}, Slot{Name: "answer", FromParams: true})
	r.spec.Eval = "answer"
	r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "norm", Op: Sum, Over: Model}}}, {}}
	return r, nil
}

// Spec implements [Rule].
func (r *o2nc[T]) Spec() *Spec { return &r.spec }

// ends says whether an epoch ends with step t.
func (r *o2nc[T]) ends(t uint64) bool { return t%r.epoch == 0 }

// chosen says whether the mean, as it is after step t, becomes the answer.
func (r *o2nc[T]) chosen(t uint64) bool {
	e := t / r.epoch
	return t <= r.epoch || r.ends(t) && rng.New(r.seed, "o2nc epoch").IntN(e, int(e)) == 0
}

// Prepare implements [Rule].
func (r *o2nc[T]) Prepare(pass int, k *Step) {
	k.Coef = append(k.Coef[:0], k.LR, 1, r.uniform(k.T+1), 1/float64((k.T-1)%r.epoch+1), 0)
	if pass == 0 {
		return
	}
	switch norm := math.Sqrt(k.Reduced[0][0][0]); {
	case r.ends(k.T):
		k.Coef[o2ncShrink] = 0
	case !(norm <= r.radius): // a NaN must not hide
		k.Coef[o2ncShrink] = r.radius / norm
	}
	if r.chosen(k.T) {
		k.Coef[o2ncChosen] = 1
	}
}

// Apply implements [Rule].
func (r *o2nc[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[o2ncX]), len(s.Slots[o2ncDelta]), len(s.Slots[o2ncMean]), len(s.Slots[o2ncAnswer]))
	rate := T(k.Coef[o2ncRate])
	if pass == 0 {
		if !r.ends(k.T) {
			r.addNorm(rate, s)
		}
		return
	}
	checkLen(n, len(s.Out))
	x, delta, mean := s.Slots[o2ncX], s.Slots[o2ncDelta], s.Slots[o2ncMean]
	shrink, share := T(k.Coef[o2ncShrink]), T(k.Coef[o2ncShare])
	vec.Add(x, x, delta)
	if shrink == 0 {
		clear(delta)
	} else {
		vec.Axpby(delta, shrink, delta, T(-k.Coef[o2ncShrink]*k.Coef[o2ncRate]), s.G[Grad])
	}
	vec.Axpby(mean, 1-share, mean, share, s.W)
	if k.Coef[o2ncChosen] != 0 {
		copy(s.Slots[o2ncAnswer], mean)
	}
	vec.AddScaled(s.Out, x, T(k.Coef[o2ncS]), delta)
}

// addNorm adds the squares of Δ − lr·g.
func (r *o2nc[T]) addNorm(rate T, s *Span[T]) {
	var buf [tile]T
	for lo := 0; lo < len(s.W); lo += tile {
		hi := min(lo+tile, len(s.W))
		next := buf[:hi-lo]
		vec.SubScaled(next, s.Slots[o2ncDelta][lo:hi], rate, s.G[Grad][lo:hi])
		s.Sums[0][0] += vec.Dot(next, next)
	}
}
