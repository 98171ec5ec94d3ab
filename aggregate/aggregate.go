// Package aggregate turns the contributions of many ranks into one, the stage
// before the update rule. Its rules are pure functions over []float32 or
// []float64 that know no network, clock or disk.
//
// Contributions come in rank order and are summed in that order with every
// product rounded, so the result does not depend on when they arrived
// (docs/consistency.md, C1, C18).
package aggregate

import (
	"errors"
	"fmt"
	"slices"

	"tributary/optim"
)

// Meta is what a rule may know of a contribution beside its numbers.
type Meta struct {
	Rank      int
	Examples  float64 // examples it stands for
	Loss      float64 // mean loss over them
	Staleness uint64  // version at apply − version at pull
	Null      bool    // explicitly nothing: weight 0
}

// Spec is what a rule declares about itself for m contributions.
type Spec struct {
	Name string
	// Passes are the reductions over the contributions that the weights need;
	// none for rules that need only Meta.
	Passes []optim.Pass
	// Coordinate says that every parameter is combined by itself, so that a
	// step may close chunk by chunk.
	Coordinate bool
	Slots      []optim.Slot
}

// Rule combines contributions. It is immutable and safe for concurrent use.
type Rule[T optim.Float] interface {
	// Spec declares the rule for m contributions.
	Spec(m int) *Spec
	// Weights appends the weight of each contribution to dst[:0] and returns
	// it. They sum to one unless every contribution is null. The owner
	// computes them once per step from ms and the totals of all passes
	// (reduced[pass][reduction][k]); they travel in the log.
	Weights(dst []float64, ms []Meta, reduced [][][]float64) []float64
	// Pass adds the partial values of one span of the contributions to sums,
	// [reduction][k]. in[i] is nil for null contributions.
	Pass(pass int, in [][]T, sums [][]float64)
	// Combine overwrites out with the combination of in, which is in rank
	// order; in[i] is nil for null contributions, all others have the length
	// of out. It allocates nothing and panics if lengths differ.
	Combine(out []T, in [][]T, w []float64)
	// CombineHalf is Combine of contributions in bfloat16, the upper half of
	// float32.
	CombineHalf(out []T, in [][]uint16, w []float64)
}

// Rules are the names of the rules, and Bys the ways mean can weigh.
var (
	Rules = []string{"mean"}
	Bys   = []string{"uniform", "examples"}
)

// Errors of [New]; match them with errors.Is.
var (
	// ErrUnknownRule: no rule has the name.
	ErrUnknownRule = errors.New("unknown aggregation rule")
	// ErrHyper: a hyper-parameter is unknown or has a value it cannot have.
	ErrHyper = errors.New("bad hyper-parameter of the aggregation")
)

// New makes the named rule. mean takes "by", one of [Bys]; what hyper leaves
// out takes its default, "examples". All problems are joined.
func New[T optim.Float](name string, hyper map[string]any) (Rule[T], error) {
	if name != "mean" {
		return nil, fmt.Errorf("%w %q: %s", ErrUnknownRule, name, optim.Suggest(name, Rules))
	}
	var errs []error
	by := "examples"
	given := make([]string, 0, len(hyper))
	for k := range hyper {
		given = append(given, k)
	}
	slices.Sort(given)
	for _, k := range given {
		if k != "by" {
			errs = append(errs, fmt.Errorf("%w: mean has no %q: %s", ErrHyper, k, optim.Suggest(k, []string{"by"})))
			continue
		}
		if s, ok := hyper[k].(string); ok && slices.Contains(Bys, s) {
			by = s
			continue
		}
		errs = append(errs, fmt.Errorf("%w: by: got %v: %s", ErrHyper, hyper[k], optim.Suggest(fmt.Sprint(hyper[k]), Bys)))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &mean[T]{byExamples: by == "examples"}, nil
}
