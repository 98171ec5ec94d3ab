package optim

import (
	"math"

	"tributary/internal/vec"
	"tributary/layout"
)

func init() {
	Register(Def{
		Name:  "muon",
		Doc:   "momentum whose matrices are made orthogonal; AdamW for all that is no matrix",
		Paper: "Jordan et al., 2024; KellerJordan/Muon muon.py",
		Hypers: []Hyper{
			rate(0.02),
			number("momentum", 0.95, 0, Below1, "decay rate of the momentum of matrices"),
			number("weight_decay", 0, 0, inf, "decoupled decay of matrices: w shrinks by lr·weight_decay"),
			flag("nesterov", true, "look ahead along the momentum"),
			number("aux_lr", 3e-4, 0, inf, "base learning rate of all that is no matrix; the schedule acts on it as on lr"),
			pair("aux_betas", 0.9, 0.95, "decay rates of its two moments"),
			number("aux_eps", 1e-10, 0, inf, "added to the root of its second moment"),
			number("aux_weight_decay", 0, 0, inf, "its decoupled decay"),
		},
		New32: newMuon[float32],
		New64: newMuon[float64],
	})
}

// muon is Muon. For every matrix, with decay λ, it does
//
//	u ← β·u + (1−β)·g
//	G = (1−β)·g + β·u with nesterov, else u
//	O = orthogonal factor of G ([newtonSchulz]) · √max(1, rows/columns)
//	w ← w·(1 − lr·λ) − lr·O
//
// Matrices are tensors of two dimensions, and of four (kernels of convolutions),
// of which all dimensions but the first make up a row. For those the reference
// takes height and width of the kernel for rows and columns in the factor of O,
// this the matrix. All else takes the step of AdamW with the hyper-parameters that
// begin with aux, at the rate aux_lr·(lrₜ/lr), where lrₜ is the schedule's value.
// Who wants AdamW for some of the matrices, such as the last layer, gives them a
// parameter group.
//
// O depends on the whole matrix. So pass 0 gathers G of the matrices, and before
// pass 1 every process that holds a part of one computes O, all of it, for itself
// ([factors]): it costs time and memory but no further message, and gives the same
// bits on all.
// The reference iterates in bfloat16, this in the precision of T. Tensors marked
// NoDecay have λ = 0. Of a matrix slot m is u, and v is missing.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches all of
// its matrix, or the same element of other tensors. Apply does not allocate;
// PrepareTensor does so in the first step.
//
// Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
// https://kellerjordan.github.io/posts/muon.
type muon[T Float] struct {
	lr, momentum, wd float64
	nesterov         bool
	auxLR            float64
	aux              adamHyper
	spec             Spec
	factors          factors[T]
}

// muonV is the second moment of tensors that are no matrices.
var muonV = Slot{Name: "v"}

func newMuon[T Float](v Values) (Rule[T], error) {
	r := &muon[T]{lr: v.Float("lr"), momentum: v.Float("momentum"), wd: v.Float("weight_decay"), nesterov: v.Bool("nesterov"), auxLR: v.Float("aux_lr")}
	r.aux = adamHyper{eps: v.Float("aux_eps"), wd: v.Float("aux_weight_decay")}
	r.aux.b1, r.aux.b2 = v.Pair("aux_betas")
	r.spec = elementWise("muon", Slot{Name: "m"}, Slot{Name: "v", By: func(t *layout.Tensor) *Slot {
		if isMatrix(t) {
			return nil
		}
		return &muonV
	}})
	r.spec.Phases[0].Passes = []Pass{{Reduce: []Reduction{{Name: "momentum", Op: Gather, Over: Tensor, Only: isMatrix}}}, {}}
	return r, nil
}

// isMatrix says whether Muon's own step is for t.
func isMatrix(t *layout.Tensor) bool { return len(t.Shape) == 2 || len(t.Shape) == 4 }

// Spec implements [Rule].
func (r *muon[T]) Spec() *Spec { return &r.spec }

// Indices of the scalars of a step.
const (
	muonLR     = iota
	muonShrink // 1 − lr·λ
	muonStep   // of AdamW, with its correction
	muonRoot   // 1/√c₂
	muonAuxShrink
)

// Prepare implements [Rule].
func (r *muon[T]) Prepare(_ int, k *Step) {
	lr := float64(r.auxLR * multiplier(k.LR, r.lr))
	k.Coef = append(k.Coef[:0], k.LR, 1-float64(k.LR*r.wd),
		lr/biasCorrection(r.aux.b1, k.T), 1/math.Sqrt(biasCorrection(r.aux.b2, k.T)), 1-float64(lr*r.aux.wd))
}

// muonWork is what a tensor keeps between the passes and from step to step.
type muonWork[T Float] struct {
	factor    *factor[T]
	direction []T // orthogonal factor of the step
}

// PrepareTensor implements [TensorPreparer].
func (r *muon[T]) PrepareTensor(pass int, _ *Step, ts *TensorState) {
	if pass == 0 || !isMatrix(ts.Info) {
		return
	}
	work, ok := ts.Work.(*muonWork[T])
	if !ok {
		work = &muonWork[T]{factor: r.factors.tensor(ts.Info.Name), direction: make([]T, ts.Info.Len)}
		ts.Work = work
	}
	cols := ts.Info.RowLen()
	rows := ts.Info.Len / cols
	work.factor.copy(work.direction, ts.Reduced[0][0], rows, cols)
	ts.Coef = append(ts.Coef[:0], math.Sqrt(max(1, float64(rows)/float64(cols))))
}

// Apply implements [Rule].
func (r *muon[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]), len(s.Slots[0]))
	if pass == 1 {
		checkLen(n, len(s.Out))
	}
	switch {
	case !isMatrix(s.Tensor.Info):
		checkLen(n, len(s.Slots[1]))
		if pass == 1 {
			r.adamW(k, s)
		}
	case pass == 0:
		r.gather(s)
	default:
		shrink, step := T(k.Coef[muonShrink]), T(k.Coef[muonLR]*s.Tensor.Coef[0])
		if s.Tensor.Info.NoDecay {
			shrink = 1
		}
		vec.Axpby(s.Slots[0], T(r.momentum), s.Slots[0], T(1-r.momentum), s.G[Grad])
		direction := s.Tensor.Work.(*muonWork[T]).direction[s.At : s.At+n]
		vec.Axpby(s.Out, shrink, s.W, -step, direction)
	}
}

// gather hands out G.
func (r *muon[T]) gather(s *Span[T]) {
	to, g := s.Gathered[0], s.G[Grad]
	checkLen(len(g), len(to))
	b, a := T(r.momentum), T(1-r.momentum)
	vec.Axpby(to, b, s.Slots[0], a, g)
	if r.nesterov {
		vec.Axpby(to, b, to, a, g)
	}
}

// adamW is the step of tensors that are no matrices.
func (r *muon[T]) adamW(k *Step, s *Span[T]) {
	shrink := k.Coef[muonAuxShrink]
	if s.Tensor.Info.NoDecay {
		shrink = 1
	}
	h := &r.aux
	vec.AdamW(s.Out, s.W, s.G[Grad], s.Slots[0], s.Slots[1], &vec.AdamCoef[T]{
		B1: T(h.b1), A1: T(1 - h.b1), B2: T(h.b2), A2: T(1 - h.b2), Step: T(k.Coef[muonStep]), Root: T(k.Coef[muonRoot]), Eps: T(h.eps), Decay: T(shrink),
	})
}
