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
	Perturbed              // where workers take the gradients of a later phase (SAM)
	NumPoints
)

// Class is the shape class of a slot or of a reduction: how many values there
// are and along what they lie.
type Class uint8

// The shape classes. A row is one index of a tensor's first dimension, a
// column one index of all others together. LastRow and LastColumn see a tensor
// as a stack of matrices, which its last two dimensions span: a last row is one
// index of all dimensions but the last, a last column one of all dimensions but
// the last but one. Of a matrix both views are the same.
const (
	Element    Class = iota // one value per parameter
	Row                     // one per row of a tensor
	Column                  // one per column of a tensor
	Tensor                  // one per tensor
	Model                   // one per model
	LastRow                 // one per last row of a tensor
	LastColumn              // one per last column of a tensor
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
	// By, if set, gives the slot as it is in a tensor, where tensors differ: of
	// another class (never Model) or start, or nil where the tensor has none.
	// Name and Class above are then those that stand in documents. The result
	// is shared and must not be changed.
	By func(t *layout.Tensor) *Slot
}

// In is the slot as it is in tensor t; nil if t has none.
func (sl *Slot) In(t *layout.Tensor) *Slot {
	if sl.By != nil {
		return sl.By(t)
	}
	return sl
}

// Elements says whether the slot may hold a value per parameter.
func (sl *Slot) Elements() bool { return sl.Class == Element || sl.By != nil && sl.Class != Model }

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
	Over  Class // any but Element
	Width int   // values per row, tensor or model; 0 means 1
	// Only, if set, limits the reduction to some tensors.
	Only func(t *layout.Tensor) bool
}

func (r *Reduction) skips(t *layout.Tensor) bool { return r.Only != nil && !r.Only(t) }

// Pass is one sweep over the parameters.
type Pass struct {
	Reduce  []Reduction // available to all later passes
	Scratch int         // element-sized scratch arrays kept until the step ends
}

// Phase is one push within a step. Nearly all rules have one; SAM has two.
// The last pass of a phase hands out a vector in Span.Out: after the last phase
// the new parameters, before that the point at which workers compute what they
// push in the next phase. Slots and scalars change in the last pass of the last
// phase only.
type Phase struct {
	// Needs lists the roles every contribution must carry in this phase.
	Needs  []Role
	Passes []Pass
}

// Spec is what a rule declares about itself.
//
// The parameters are what workers take gradients at. A rule whose own iterate
// is another point keeps that in a slot.
type Spec struct {
	Name   string
	Slots  []Slot // those that hold a value per element first
	Phases []Phase
	// Eval names the element slot that is evaluated, served and exported; empty
	// means the parameters themselves.
	Eval string
	// NeedsLoss says that every contribution must carry the loss of its batch.
	NeedsLoss bool
	// Optional returns the roles a contribution to step t (1-based) carries
	// beside the needed ones; nil means none. The result is shared.
	Optional func(t uint64) []Role
	// AbsHessian says that HessDiag is |H·z| with, for tensors of four
	// dimensions, the mean over the last two in place of every element; if
	// false it is z·(H·z), with its sign.
	AbsHessian bool
	// Perturb, if above 0, asks workers to take their gradient at w + ρ·g/‖g‖,
	// with g their own gradient at w and ρ the value of Perturb (SAM without
	// its second push).
	Perturb float64
	// Runs says that a push may name runs of elements: all others keep their
	// parameters and slots. Only for rules of one phase and one pass.
	Runs bool
}

// Roles returns what a contribution to the given phase of step t (1-based)
// carries. It allocates only for rules with optional roles.
func (s *Spec) Roles(phase int, t uint64) []Role {
	need := s.Phases[phase].Needs
	if s.Optional == nil {
		return need
	}
	more := s.Optional(t)
	if len(more) == 0 {
		return need
	}
	return append(need[:len(need):len(need)], more...)
}

// AllRoles returns every role that some contribution carries, in ascending
// order. Optional roles are found by asking for the first steps.
func (s *Spec) AllRoles() []Role {
	var has [NumRoles]bool
	for ph := range s.Phases {
		for t := uint64(1); t <= optionalHorizon; t++ {
			for _, r := range s.Roles(ph, t) {
				has[r] = true
			}
			if s.Optional == nil {
				break
			}
		}
	}
	var all []Role
	for r, ok := range has {
		if ok {
			all = append(all, Role(r))
		}
	}
	return all
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

// optionalHorizon is the number of steps after which an optional role must have
// been asked for once.
const optionalHorizon = 1 << 10

// History is how many versions before the newest a worker needs: 1 if it
// computes a gradient at the previous parameters.
func (s *Spec) History() int {
	for _, r := range s.AllRoles() {
		if r == GradPrev {
			return 1
		}
	}
	return 0
}

// Step holds the scalars of one step. They are computed once by the owner of a
// shard and travel in its log (C18); all of them are float64.
type Step struct {
	T        uint64    // number of this update, from 1
	Phase    int       // phase within the step, from 0
	LR       float64   // value of the learning-rate schedule at T
	Loss     float64   // weighted mean loss of the contributions
	Examples float64   // sum of the contributions' examples
	Model    []float64 // model-class slots before the step, in Spec order
	Next     []float64 // model-class slots after it; Prepare of the last pass fills it
	Coef     []float64 // scalars of the coming pass; Prepare fills it
	// Reduced holds, for each pass done and each of its reductions over Model,
	// the total: Reduced[pass][reduction][k], k below Width.
	Reduced [][][]float64
	// Groups holds the scalars of the parts of a composed rule; it belongs to
	// the rule.
	Groups []Step
}

// TensorState is what all blocks of one tensor share during a step.
type TensorState struct {
	Info *layout.Tensor
	// Slots holds the slots of rows, columns and tensors in Spec order (nil for
	// other classes); Next the values after the step, which
	// [TensorPreparer.PrepareTensor] of the last pass fills.
	Slots, Next [][]float64
	// Reduced is as Step.Reduced for reductions over rows, columns and tensors:
	// width values per row, column or tensor.
	Reduced [][][]float64
	// Coef holds the tensor's scalars of the coming pass; it belongs to the rule.
	Coef []float64
	// Work is memory that the rule keeps from step to step to save allocations;
	// no state.
	Work any
}

// SpanLen is the length of the spans that the passes of a rule with reductions
// see: the first span of a block begins with the block, and only its last one
// is shorter. So sums that run in lanes have the same bits everywhere.
// Elsewhere spans are at most that long and begin anywhere.
const SpanLen = 4096

// Span is a run of consecutive elements of one block that a pass works on.
// Slices that belong to elements all have the length of W.
type Span[T Float] struct {
	Tensor *TensorState
	At     int // index of W[0] in the tensor, row-major
	W      []T // parameters before the step, in all its phases; read only
	// Out takes what the phase hands out; written by the last pass only. It may
	// be W itself in rules of one phase.
	Out     []T
	G       [NumRoles][]T // combined contributions by role, nil where not pushed; the pass may overwrite them
	Slots   [][]T         // element slots in Spec order (nil for other classes, and where the tensor has none); written by the last pass only
	Scratch [][]T         // scratch arrays of all passes of the phase
	// Sums accumulates this block's partials, [reduction][k] in float64: k runs
	// over Width for Tensor and Model, and over (index × Width) for the others,
	// from the index [Reduction.First] of the block, which is the row FirstRow
	// for Row and 0 for Column. Gather copies its elements to
	// Gathered[reduction].
	Sums     [][]float64
	Block    layout.Block // that the span is part of
	FirstRow int          // the block's first row
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

// TensorPreparer is a rule with something to compute once per tensor: scalars
// of a pass, or slots of rows, columns and tensors. Only rules with reductions
// may be one.
type TensorPreparer interface {
	// PrepareTensor runs before the given pass, after Rule.Prepare, for every
	// tensor, on every shard that holds a part of it. Before the last pass it
	// fills ts.Next.
	PrepareTensor(pass int, k *Step, ts *TensorState)
}

// PrepareTensor calls r's PrepareTensor if it has one.
func PrepareTensor[T Float](r Rule[T], pass int, k *Step, ts *TensorState) {
	if p, ok := r.(TensorPreparer); ok {
		p.PrepareTensor(pass, k, ts)
	}
}
