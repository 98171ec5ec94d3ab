package kernelbench

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"tributary/layout"
	"tributary/optim"
)

// Side is the number of rows and of columns of the matrices that the
// parameters are cut into.
const Side = 512

// model is what one thread updates with a rule: matrices of its own, worked
// on as a shard works, in spans of at most optim.SpanLen elements.
type model struct {
	rule    optim.Rule[float32]
	spec    *optim.Spec
	l       *layout.Layout
	blocks  []layout.Block
	w, out  []float32 // the same memory if the rule has one phase
	g       [optim.NumRoles][]float32
	copied  bool      // the rule overwrites what it is given: it gets a copy
	buf     []float32 // such copies, SpanLen for each role
	slots   [][]float32
	model   []float64
	scratch [][]float32
	tensors []optim.TensorState
	k       optim.Step
}

// Names are all rules with their default hyper-parameters, and in addition what
// is much used and no default.
func Names() []string {
	names := append(optim.Names(), "sgd momentum=0.9")
	slices.Sort(names)
	return names
}

// newRule makes a rule from its name and perhaps numbers for hyper-parameters.
func newRule(name string) (optim.Rule[float32], error) {
	words := strings.Fields(name)
	if len(words) == 0 {
		return nil, errors.New("a rule without a name")
	}
	hyper := map[string]any{}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		x, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %q is not a hyper-parameter with a number", name, w)
		}
		hyper[key] = x
	}
	return optim.New[float32](words[0], hyper)
}

// newModel returns a model of so many matrices that has taken some steps.
func newModel(name string, matrices int) (*model, error) {
	m, err := freshModel(name, matrices)
	if err != nil {
		return nil, err
	}
	return m, m.warm()
}

func freshModel(name string, matrices int) (*model, error) {
	rule, err := newRule(name)
	if err != nil {
		return nil, err
	}
	tensors := make([]layout.Tensor, matrices)
	for i := range tensors {
		tensors[i] = layout.Tensor{Name: fmt.Sprint("w", i), Shape: []int{Side, Side}}
	}
	l, err := layout.New(tensors, 0)
	if err != nil {
		return nil, err
	}
	m := &model{rule: rule, spec: rule.Spec(), l: l}
	for c := range l.Chunks() {
		m.blocks = l.Blocks(m.blocks, c)
	}
	r := rand.New(rand.NewPCG(1, 2))
	m.w = random(r, l.P, 0.1)
	m.out = m.w
	if len(m.spec.Phases) > 1 {
		m.out = slices.Clone(m.w)
	}
	for _, role := range m.spec.AllRoles() {
		m.g[role] = random(r, l.P, 0.01)
	}
	m.buf = make([]float32, int(optim.NumRoles)*optim.SpanLen)
	m.start(r)
	scratch := 0
	for _, ph := range m.spec.Phases {
		n := 0
		for _, p := range ph.Passes {
			n += p.Scratch
		}
		scratch = max(scratch, n)
	}
	for range scratch {
		m.scratch = append(m.scratch, filled(l.P, 0))
	}
	return m, nil
}

// start fills the slots with their first values.
func (m *model) start(r *rand.Rand) {
	m.tensors = make([]optim.TensorState, len(m.l.Tensors))
	for ti := range m.tensors {
		ts := &m.tensors[ti]
		ts.Info = &m.l.Tensors[ti]
		for si := range m.spec.Slots {
			var x []float64
			if in := m.spec.Slots[si].In(ts.Info); in != nil && in.Class != optim.Element && in.Class != optim.Model {
				x = make([]float64, in.Class.Values(ts.Info))
				for i := range x {
					x[i] = in.Init
				}
			}
			ts.Slots, ts.Next = append(ts.Slots, x), append(ts.Next, slices.Clone(x))
		}
	}
	for si := range m.spec.Slots {
		sl := &m.spec.Slots[si]
		if sl.Class == optim.Model {
			m.model = append(m.model, sl.Init)
		}
		if !m.hasElements(si) {
			m.slots = append(m.slots, nil)
			continue
		}
		switch in := sl.In(&m.l.Tensors[0]); {
		case in.FromParams:
			m.slots = append(m.slots, slices.Clone(m.w))
		case in.Noise != 0:
			m.slots = append(m.slots, random(r, m.l.P, in.Noise))
		default:
			m.slots = append(m.slots, filled(m.l.P, float32(in.Init)))
		}
	}
}

func (m *model) hasElements(slot int) bool {
	in := m.spec.Slots[slot].In(&m.l.Tensors[0])
	return in != nil && in.Class == optim.Element
}

// warm takes two steps and finds out whether the rule overwrites gradients.
func (m *model) warm() error {
	const rows = 8 * optim.SpanLen
	var before [optim.NumRoles][]float32
	for r, g := range m.g {
		before[r] = slices.Clone(g[:min(rows, len(g))])
	}
	m.step()
	for r, g := range m.g {
		if !slices.Equal(before[r], g[:len(before[r])]) {
			m.copied = true
		}
	}
	if m.copied {
		r := rand.New(rand.NewPCG(3, 4))
		for _, g := range m.g {
			refill(r, g, 0.01)
		}
	}
	m.step()
	for _, x := range m.out[:rows] {
		if x != x || math.IsInf(float64(x), 0) {
			return fmt.Errorf("%s: parameters that are no numbers after two steps", m.spec.Name)
		}
	}
	return nil
}

// step takes one step and returns the bytes it has to move per element: of
// every phase what is pushed, the parameters read and the vector handed out,
// and every slot with a value per element once read and once written. What a
// rule reads again in a later pass, and scratch, is not counted.
func (m *model) step() (bytes float64) {
	m.k.T++
	m.k.LR, m.k.Loss, m.k.Examples = 1e-4, 1, 32
	for ph := range m.spec.Phases {
		roles := m.spec.Roles(ph, m.k.T)
		bytes += 4 * float64(len(roles)+2)
		m.phase(ph, roles)
	}
	for _, x := range m.slots {
		if x != nil {
			bytes += 8
		}
	}
	return bytes
}

func (m *model) phase(phase int, roles []optim.Role) {
	k := &m.k
	k.Phase = phase
	k.Model = append(k.Model[:0], m.model...)
	k.Next = append(k.Next[:0], m.model...)
	k.Reduced = k.Reduced[:0]
	for ti := range m.tensors {
		ts := &m.tensors[ti]
		ts.Reduced = ts.Reduced[:0]
		for si := range ts.Slots {
			copy(ts.Next[si], ts.Slots[si])
		}
	}
	passes := m.spec.Phases[phase].Passes
	for pass := range passes {
		m.rule.Prepare(pass, k)
		for ti := range m.tensors {
			optim.PrepareTensor(m.rule, pass, k, &m.tensors[ti])
		}
		totals := optim.NewTotals(&passes[pass], m.l, nil)
		for _, b := range m.blocks {
			if sums := m.block(pass, passes[pass].Reduce, roles, b); len(sums) > 0 {
				totals.Add(b, sums)
			}
		}
		for ti := range m.tensors {
			m.tensors[ti].Reduced = append(m.tensors[ti].Reduced, totals.Tensor(ti))
		}
		k.Reduced = append(k.Reduced, totals.Model())
	}
	if phase < len(m.spec.Phases)-1 {
		return
	}
	m.w, m.out = m.out, m.w
	m.model = append(m.model[:0], k.Next...)
	for ti := range m.tensors {
		ts := &m.tensors[ti]
		for si := range ts.Slots {
			copy(ts.Slots[si], ts.Next[si])
		}
	}
}

// block runs a pass over one block and returns its partial sums.
func (m *model) block(pass int, reduce []optim.Reduction, roles []optim.Role, b layout.Block) [][]float64 {
	ts := &m.tensors[b.Tensor]
	var sums [][]float64
	var gathered [][]float32
	for i := range reduce {
		x := make([]float64, reduce[i].PartialLen(ts.Info, b))
		reduce[i].Start(x)
		sums = append(sums, x)
		gathered = append(gathered, nil)
		if reduce[i].Op == optim.Gather {
			gathered[i] = make([]float32, len(x))
		}
	}
	s := optim.Span[float32]{
		Tensor: ts, Block: b, Sums: sums, FirstRow: optim.FirstRow(ts.Info, b),
		Slots: make([][]float32, len(m.slots)), Scratch: make([][]float32, len(m.scratch)), Gathered: make([][]float32, len(gathered)),
	}
	for lo := b.Lo; lo < b.Hi; lo += optim.SpanLen {
		hi := min(lo+optim.SpanLen, b.Hi)
		s.At = lo - ts.Info.Offset
		s.W, s.Out = m.w[lo:hi], m.out[lo:hi]
		for _, r := range roles {
			s.G[r] = m.g[r][lo:hi]
			if m.copied {
				own := m.buf[int(r)*optim.SpanLen:][:hi-lo]
				copy(own, s.G[r])
				s.G[r] = own
			}
		}
		cut(s.Slots, m.slots, lo, hi)
		cut(s.Scratch, m.scratch, lo, hi)
		cut(s.Gathered, gathered, lo-b.Lo, hi-b.Lo)
		m.rule.Apply(pass, &m.k, &s)
	}
	for i, g := range gathered {
		for j, x := range g {
			sums[i][j] = float64(x)
		}
	}
	return sums
}

func cut(dst, src [][]float32, lo, hi int) {
	for i, x := range src {
		if dst[i] = nil; len(x) > 0 {
			dst[i] = x[lo:hi]
		}
	}
}

func random(r *rand.Rand, n int, deviation float64) []float32 {
	x := make([]float32, n)
	refill(r, x, deviation)
	return x
}

// refill repeats a few thousand draws, since drawing takes longer than a step.
func refill(r *rand.Rand, x []float32, deviation float64) {
	const draws = 4093
	for i := range x {
		if i < draws {
			x[i] = float32(r.NormFloat64() * deviation)
		} else {
			x[i] = x[i-draws]
		}
	}
}

// RuleResult is how fast a rule updates.
type RuleResult struct {
	Rule    string  `json:"rule"`
	Threads int     `json:"threads"`
	Bytes   float64 `json:"bytes_per_element"`
	Rate    Range   `json:"elements_per_second"`
	// Traffic is Rate·Bytes, and Fraction that over the bandwidth measured
	// just before and after.
	Traffic  Range `json:"bytes_per_second"`
	Fraction Range `json:"fraction_of_bandwidth"`
}

const (
	leastRounds = 3
	enough      = 5 * time.Second
)

// Rule measures a rule on so many matrices, at least one for each thread, which
// the threads share; of each figure there are as many as rounds, or fewer, but
// three at least, where they would take longer than some seconds.
func Rule(name string, matrices, threads, rounds int, mem *Bandwidth) (RuleResult, error) {
	res := RuleResult{Rule: name, Threads: threads}
	models := make([]*model, threads)
	for i := range models {
		lo, hi := matrices*i/threads, matrices*(i+1)/threads
		var err error
		if models[i], err = newModel(name, hi-lo); err != nil {
			return res, err
		}
	}
	n := float64(matrices) * Side * Side
	var bytes, rate, traffic, fraction []float64
	before, err := mem.passes(2)
	if err != nil {
		return res, err
	}
	start := time.Now()
	for round := range rounds {
		if round >= leastRounds && time.Since(start) > enough {
			break
		}
		var moved float64
		var steps int
		var took time.Duration
		// As long as a few passes of the loop it is compared with.
		for took < 20*time.Millisecond {
			took += parallel(threads, func(i int) {
				if b := models[i].step(); i == 0 {
					moved += b
				}
			})
			steps++
		}
		after, err := mem.passes(2)
		if err != nil {
			return res, err
		}
		around := RangeOf(append(before, after...)).Median
		before = after
		seconds := took.Seconds()
		bytes = append(bytes, moved/float64(steps))
		rate = append(rate, n*float64(steps)/seconds)
		traffic = append(traffic, n*moved/seconds)
		fraction = append(fraction, n*moved/seconds/around)
	}
	res.Bytes = RangeOf(bytes).Median
	res.Rate, res.Traffic, res.Fraction = RangeOf(rate), RangeOf(traffic), RangeOf(fraction)
	return res, nil
}

// Alone is the median bandwidth in bytes per second that a rule reaches in so
// many steps, with nothing else measured in between.
func Alone(name string, matrices, threads, steps int) (float64, error) {
	models := make([]*model, threads)
	for i := range models {
		var err error
		if models[i], err = newModel(name, matrices*(i+1)/threads-matrices*i/threads); err != nil {
			return 0, err
		}
	}
	var traffic []float64
	for range steps {
		bytes := 0.0
		took := parallel(threads, func(i int) {
			if b := models[i].step(); i == 0 {
				bytes = b
			}
		})
		traffic = append(traffic, bytes*float64(matrices)*Side*Side/took.Seconds())
	}
	return RangeOf(traffic).Median, nil
}
