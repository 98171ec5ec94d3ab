// Package optim holds update rules: pure functions over []float32 or
// []float64 that know no network, clock or disk.
//
// A rule is an ordered list of passes over the parameters. Each pass but the
// last may only write scratch and the partial sums of its declared
// reductions; parameters, slots and scalars change in the last pass alone, so
// a step can be repeated at any point before it (docs/consistency.md, C9).
// The same rule therefore runs unsharded in a test and on many shards in a
// cluster, with the same bits.
package optim

import "tributary/layout"

// Float is the precision a rule runs in.
type Float interface{ ~float32 | ~float64 }

// Role says what a pushed tensor is to the rule.
type Role uint8

// The roles a pushed tensor can have. Numbers are part of the wire format.
const (
	Grad     Role = iota // gradient of the loss
	GradKD               // gradient of a distillation loss (DOT)
	HessDiag             // Hutchinson sample of the Hessian's diagonal
	HessGrad             // gradient with labels sampled from the model (Sophia-G)
	GradPrev             // gradient of the same batch at the previous parameters (OASIS, SPIDER)
	FullGrad             // gradient over all examples
	Delta                // local minus global parameters (federated rounds)
	Buffer               // values of buffers (running means)
	NumRoles
)

var roleNames = [NumRoles]string{"grad", "grad_kd", "hess_diag", "hess_grad", "grad_prev", "full_grad", "delta", "buffer"}

// String is the name of the role on the wire and in documents.
func (r Role) String() string {
	if r < NumRoles {
		return roleNames[r]
	}
	return "unknown role"
}

// Point is a place in parameter space that a rule hands out.
type Point uint8

// The points of a rule. Numbers are part of the wire format.
const (
	Train     Point = iota // where workers take gradients
	Eval                   // what is evaluated and served
	Perturbed              // a moved point of a second phase (SAM)
	NumPoints
)

// Class is the shape class of a slot or of a reduction: how many values there
// are and along what they lie.
type Class uint8

// The shape classes. A row is one index of a tensor's first dimension.
const (
	Element Class = iota // one value per parameter
	Row                  // one per row of a tensor
	Column               // one per column of a tensor
	Tensor               // one per tensor
	Model                // one per model
)

// Slot is a piece of optimizer state. Element slots have the precision of the
// parameters; all other classes are float64 and are replicated on every shard
// that holds a part of the tensor.
type Slot struct {
	Name  string
	Class Class
	Init  float64 // value at the start
	// FromParams starts an element slot as a copy of the parameters.
	FromParams bool
	// Noise starts an element slot as normal noise of this deviation, drawn
	// by (model seed, tensor name, element).
	Noise float64
}

// Op is how the partial values of a reduction are combined.
type Op uint8

// The reductions. Gather hands every shard the whole tensor's values.
const (
	Sum Op = iota
	Max
	Gather
)

// Reduction is one family of values that a pass needs summed (or maximised, or
// gathered) over all shards before the next pass may start.
type Reduction struct {
	Name  string
	Op    Op
	Over  Class // Row, Column, Tensor or Model
	Width int   // values per row, tensor or model; 0 means 1
}

// Pass is one sweep over the parameters.
type Pass struct {
	Reduce  []Reduction // available to all later passes
	Scratch int         // element-sized scratch arrays kept until the step ends
}

// Phase is one push within a step. Nearly all rules have one; SAM has two.
type Phase struct {
	// Needs lists the roles every contribution must carry in this phase.
	Needs  []Role
	Passes []Pass
	// Hands is the point workers pull after this phase.
	Hands Point
}

// Spec is what a rule declares about itself.
type Spec struct {
	Name   string
	Slots  []Slot
	Phases []Phase
	// Points maps a point to the element slot that holds it; a point that is
	// absent is the parameters themselves.
	Points map[Point]string
	// NeedsLoss says that every contribution must carry the loss of its batch.
	NeedsLoss bool
	// Optional returns the roles a contribution to step t (1-based) carries
	// beside the needed ones; nil means none.
	Optional func(t uint64) []Role
}

// Reductions counts the declared reductions of all phases.
func (s *Spec) Reductions() int {
	n := 0
	for _, ph := range s.Phases {
		for _, p := range ph.Passes {
			n += len(p.Reduce)
		}
	}
	return n
}

// Step holds the scalars of one step. They are computed once by the owner of a
// shard and travel in its log (C18); all of them are float64.
type Step struct {
	T        uint64    // number of this update, from 1
	Phase    int       // phase within the step
	LR       float64   // value of the learning-rate schedule at T
	Loss     float64   // weighted mean loss of the contributions
	Examples float64   // sum of the contributions' examples
	Model    []float64 // model-class slots before the step, in Spec order
	Next     []float64 // model-class slots after it; Prepare of the last pass fills it
	Coef     []float64 // scalars of the coming pass; Prepare fills it
	// Reduced holds, for each pass done and each of its reductions over Model,
	// the total: Reduced[pass][reduction][k], k below Width.
	Reduced [][][]float64
}

// TensorState is what all blocks of one tensor share during a step.
type TensorState struct {
	Info *layout.Tensor
	// Slots holds the Row, Column and Tensor slots in Spec order (nil for
	// other classes); Next the values after the step.
	Slots, Next [][]float64
	// Reduced is as Step.Reduced for reductions over Row, Column and Tensor:
	// width values per row, column or tensor.
	Reduced [][][]float64
}

// Span is a run of consecutive elements of one block that a pass works on.
// Slices that belong to elements all have the length of W.
type Span[T Float] struct {
	Tensor  *TensorState
	At      int           // index of W[0] in the tensor, row-major
	W       []T           // parameters before the step; read only
	Out     []T           // parameters after it; written by the last pass only; may be W itself
	G       [NumRoles][]T // combined contributions by role; nil where not pushed
	Slots   [][]T         // element slots in Spec order (nil for other classes); written by the last pass only
	Scratch [][]T         // scratch arrays of all passes of the phase
	// Sums accumulates this block's partials, [reduction][k] in float64: k runs
	// over Width for Tensor and Model, over (rows or columns of the block ×
	// Width) from the row or column FirstRow for Row and over all columns for
	// Column. Gather copies its elements to Gathered[reduction].
	Sums     [][]float64
	FirstRow int
	Gathered [][]T
}

// Rule is an update rule with its hyper-parameters. A Rule is immutable and
// safe for concurrent use: all state is in the arguments.
type Rule[T Float] interface {
	// Spec declares the rule's slots and passes. The result is shared and must
	// not be changed.
	Spec() *Spec
	// Prepare fills k.Coef for the given pass of k.Phase and, for the last
	// pass, k.Next. It sees the results of all earlier passes.
	Prepare(pass int, k *Step)
	// Apply runs the pass over one span. Spans of a block arrive in ascending
	// order; it allocates nothing and panics if slices differ in length.
	Apply(pass int, k *Step, s *Span[T])
}
