package optim

import (
	"math"

	"tributary/internal/vec"
	"tributary/layout"
)

func init() {
	Register(Def{
		Name:  "adafactor",
		Doc:   "Adam-like steps whose second moments of a matrix take the memory of its rows and columns",
		Paper: "Shazeer and Stern, ICML 2018, arXiv:1804.04235; jettify/pytorch-optimizer torch_optimizer/adafactor.py",
		Hypers: []Hyper{
			{Name: "lr", Default: 0.0, Max: inf, Doc: "base learning rate, handed to the schedule; 0 with relative_step, which has its own"},
			{Name: "eps2", Default: Pair{1e-30, 1e-3}, Max: inf, Doc: "added to squares of gradients; least size of a tensor's parameters that steps are relative to"},
			number("clip_threshold", 1, 0x1p-126, inf, "the root mean square of a tensor's step, over the rate, is at most this"),
			number("decay_rate", -0.8, -inf, 0, "second moments of step t decay by 1 − t^decay_rate"),
			number("beta1", 0, 0, Below1, "decay rate of the mean of steps; 0 for none, which saves its memory"),
			number("weight_decay", 0, 0, inf, "decoupled decay: w shrinks by weight_decay times the rate"),
			flag("scale_parameter", true, "multiply the rate by the root mean square of the tensor"),
			flag("relative_step", true, "the rate is 1/√t, at most 0.01, whatever the schedule is"),
			flag("warmup_init", false, "with relative_step: at most t/10⁶ in place of 0.01"),
		},
		New32: newAdafactor[float32],
		New64: newAdafactor[float64],
	})
}

// adafactor is Adafactor. With B = 1 − t^decay_rate it does, for every tensor,
//
//	Q = g² + ε₁
//	r ← B·r + (1−B)·(mean of Q over a row),  c ← B·c + (1−B)·(mean over a column)
//	u = g / (√(r/mean(r))·√c)
//	ρ = lr, or min(0.01, 1/√t), or min(10⁻⁶·t, 1/√t);  times max(ε₂, rms(w)) if so set
//	u ← ρ·u / max(1, rms(u)/clip)
//	m ← β₁·m + (1−β₁)·u,  u = m                  if β₁ is above 0
//	w ← w·(1 − λ·ρ) − u
//
// where rms is the root of the mean square over the tensor. Rows and columns are
// those of the matrices that the last two dimensions span: a tensor of more
// dimensions is a stack of them, each with a mean(r) of its own. Tensors of fewer
// dimensions have v ← B·v + (1−B)·Q for every element, and u = g/√v.
//
// With relative_step the learning rate and its schedule are not used, as in the
// reference; so lr must then be 0, lest somebody takes it for the rate.
//
// Pass 0 adds up squares of g over rows and columns, and of w; pass 1 those of u;
// pass 2 takes the step. r and c are float64, so that ε₁ = 1e-30 counts in them.
// Slot v holds c of tensors that have rows and columns. Tensors marked NoDecay
// have λ = 0.
//
// Out may be W; other overlaps are not allowed. A NaN or Inf in g reaches all of
// its tensor. Apply does not allocate; PrepareTensor does so in the first step.
//
// Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory
// Cost", ICML 2018, Algorithms 4 to 6, arXiv:1804.04235.
type adafactor[T Float] struct {
	eps1, eps2, clip, decayRate, b1, wd float64
	scaled, relative, warmup            bool
	r, v                                int // positions of slots
	spec                                Spec
}

// Positions of the reductions of pass 0.
const (
	adaRows = iota
	adaColumns
	adaWW // only with scale_parameter
)

// adaFactors are the slots by tensor at the position of v.
var (
	adaElements = Slot{Name: "v"}
	adaFactors  = Slot{Name: "v", Class: LastColumn}
)

func newAdafactor[T Float](v Values) (Rule[T], error) {
	r := &adafactor[T]{clip: v.Float("clip_threshold"), decayRate: v.Float("decay_rate"), b1: v.Float("beta1"), wd: v.Float("weight_decay"),
		scaled: v.Bool("scale_parameter"), relative: v.Bool("relative_step"), warmup: v.Bool("warmup_init")}
	r.eps1, r.eps2 = v.Pair("eps2")
	problem := func(name, text string) (Rule[T], error) {
		return nil, &HyperError{"adafactor", name, "adafactor: " + name + ": " + text}
	}
	switch lr := v.Float("lr"); {
	case r.relative && lr != 0:
		return problem("lr", "relative_step has a rate of its own: leave lr out or set relative_step to false")
	case !r.relative && lr == 0:
		return problem("lr", "without relative_step a learning rate is needed")
	case r.warmup && !r.relative:
		return problem("warmup_init", "acts with relative_step alone")
	case r.eps1 < 0x1p-126:
		return problem("eps2", "want a first number of 1.2e-38 or more: a float32 holds no smaller one well")
	}
	var slots []Slot
	if r.b1 != 0 {
		slots = append(slots, Slot{Name: "m"})
	}
	r.v, r.r = len(slots), len(slots)+1
	r.spec = elementWise("adafactor", append(slots, Slot{Name: "v", By: func(t *layout.Tensor) *Slot {
		if hasRows(t) {
			return &adaFactors
		}
		return &adaElements
	}}, Slot{Name: "r", Class: LastRow})...)
	first := []Reduction{{Name: "rows", Op: Sum, Over: LastRow, Only: hasRows}, {Name: "columns", Op: Sum, Over: LastColumn, Only: hasRows}}
	if r.scaled {
		first = append(first, Reduction{Name: "parameters", Op: Sum, Over: Tensor})
	}
	r.spec.Phases[0].Passes = []Pass{{Reduce: first}, {Reduce: []Reduction{{Name: "step", Op: Sum, Over: Tensor}}}, {}}
	return r, nil
}

// Spec implements [Rule].
func (r *adafactor[T]) Spec() *Spec { return &r.spec }

// Prepare implements [Rule].
func (r *adafactor[T]) Prepare(_ int, k *Step) {
	t := float64(k.T)
	rate := k.LR
	if r.relative {
		most := 1e-2
		if r.warmup {
			most = float64(1e-6 * t)
		}
		rate = min(most, 1/math.Sqrt(t))
	}
	k.Coef = append(k.Coef[:0], powReal(t, r.decayRate), rate)
}

// adafactorWork holds the factors of a tensor's rows and columns in a step.
type adafactorWork[T Float] struct{ rows, cols []T }

// Scalars of a tensor in the last pass.
const (
	adaStep   = iota // factor of u
	adaShrink        // 1 − λ·ρ
)

// PrepareTensor implements [TensorPreparer].
func (r *adafactor[T]) PrepareTensor(pass int, k *Step, ts *TensorState) {
	if pass == 0 {
		return
	}
	if hasRows(ts.Info) {
		r.factor(k.Coef[0], ts, pass == 2)
	}
	if pass == 1 {
		return
	}
	n := float64(ts.Info.Len)
	rate := k.Coef[1]
	if r.scaled {
		rate = float64(rate * max(r.eps2, math.Sqrt(ts.Reduced[0][adaWW][0]/n)))
	}
	step := rate / max(1, math.Sqrt(ts.Reduced[1][0][0]/n)/r.clip)
	shrink := 1 - float64(r.wd*rate)
	if ts.Info.NoDecay {
		shrink = 1
	}
	ts.Coef = append(ts.Coef[:0], step, shrink)
}

// factor finds the moments of rows and columns, of which fresh is 1−B, and from
// them the factors of u; if so told, it keeps the moments.
func (r *adafactor[T]) factor(fresh float64, ts *TensorState, keep bool) {
	rows, cols := lastDims(ts.Info)
	work, ok := ts.Work.(*adafactorWork[T])
	if !ok {
		work = &adafactorWork[T]{make([]T, len(ts.Slots[r.r])), make([]T, len(ts.Slots[r.v]))}
		ts.Work = work
	}
	moment := func(old, sum float64, n int) float64 {
		return float64((1-fresh)*old) + float64(fresh*(sum/float64(n)+r.eps1))
	}
	oldR, sumR := ts.Slots[r.r], ts.Reduced[0][adaRows]
	for lo := 0; lo < len(oldR); lo += rows { // a matrix of the stack
		mean := 0.0
		for i := lo; i < lo+rows; i++ {
			mean += moment(oldR[i], sumR[i], cols)
		}
		mean /= float64(rows)
		for i := lo; i < lo+rows; i++ {
			x := moment(oldR[i], sumR[i], cols)
			work.rows[i] = T(math.Sqrt(mean / x))
			if keep {
				ts.Next[r.r][i] = x
			}
		}
	}
	for j, old := range ts.Slots[r.v] {
		x := moment(old, ts.Reduced[0][adaColumns][j], rows)
		work.cols[j] = T(1 / math.Sqrt(x))
		if keep {
			ts.Next[r.v][j] = x
		}
	}
}

// Apply implements [Rule].
func (r *adafactor[T]) Apply(pass int, k *Step, s *Span[T]) {
	n := len(s.W)
	checkLen(n, len(s.G[Grad]))
	matrix := hasRows(s.Tensor.Info)
	if !matrix {
		checkLen(n, len(s.Slots[r.v]))
	}
	if r.b1 != 0 {
		checkLen(n, len(s.Slots[0]))
	}
	if pass == 0 {
		r.addSquares(s)
		return
	}
	if pass == 2 {
		checkLen(n, len(s.Out))
	}
	var buf [2][tile]T
	for lo := 0; lo < n; lo += tile {
		hi := min(lo+tile, n)
		g, u := s.G[Grad][lo:hi], buf[0][:hi-lo]
		if matrix {
			r.scale(u, g, s.At+lo, s.Tensor)
		} else {
			v := s.Slots[r.v][lo:hi]
			newV := v
			if pass == 1 {
				newV = buf[1][:hi-lo]
			}
			fresh := k.Coef[0]
			vec.AxpbySquare(newV, T(1-fresh), v, T(fresh), g)
			vec.AddConst(newV, newV, T(float64(fresh*r.eps1)))
			vec.Sqrt(u, newV)
			vec.Div(u, g, u)
		}
		if pass == 1 {
			s.Sums[0][0] += vec.Dot(u, u)
			continue
		}
		step, shrink := T(s.Tensor.Coef[adaStep]), T(s.Tensor.Coef[adaShrink])
		if r.b1 != 0 {
			m := s.Slots[0][lo:hi]
			vec.Axpby(m, T(r.b1), m, T(float64((1-r.b1)*s.Tensor.Coef[adaStep])), u)
			u, step = m, 1
		}
		vec.Axpby(s.Out[lo:hi], shrink, s.W[lo:hi], -step, u)
	}
}

// addSquares is pass 0.
func (r *adafactor[T]) addSquares(s *Span[T]) {
	if r.scaled {
		s.Sums[adaWW][0] += vec.Dot(s.W, s.W)
	}
	t, reduce := s.Tensor.Info, r.spec.Phases[0].Passes[0].Reduce
	if !hasRows(t) {
		return
	}
	rows, cols := lastDims(t)
	firstRow, firstCol := reduce[adaRows].First(t, s.Block), reduce[adaColumns].First(t, s.Block)
	for lo := 0; lo < len(s.W); {
		row, col := (s.At+lo)/cols, (s.At+lo)%cols
		hi := min(lo+cols-col, len(s.W))
		g := s.G[Grad][lo:hi]
		s.Sums[adaRows][row-firstRow] += vec.Dot(g, g)
		at := row/rows*cols + col - firstCol
		vec.AddSquares(s.Sums[adaColumns][at:at+len(g)], g)
		lo = hi
	}
}

// scale is u = g times the factors of its rows and columns, where g begins at
// index at of the tensor.
func (r *adafactor[T]) scale(u, g []T, at int, ts *TensorState) {
	rows, cols := lastDims(ts.Info)
	work := ts.Work.(*adafactorWork[T])
	for lo := 0; lo < len(u); {
		row, col := (at+lo)/cols, (at+lo)%cols
		hi := min(lo+cols-col, len(u))
		factors := work.cols[row/rows*cols+col:][:hi-lo]
		vec.Mul(u[lo:hi], g[lo:hi], factors)
		vec.Scale(u[lo:hi], work.rows[row], u[lo:hi])
		lo = hi
	}
}
