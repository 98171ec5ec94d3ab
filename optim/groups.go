package optim

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"tributary/layout"
)

// GroupRule is the rule of one group of tensors.
type GroupRule[T Float] struct {
	Rule Rule[T]
	// LR is the group's base learning rate. The schedule is the default group's;
	// the others follow it in proportion.
	LR float64
}

// ErrGroups is wrapped by the errors of [Groups] about rules that cannot update
// one model together.
var ErrGroups = errors.New("rules do not go together")

// Groups returns a rule that updates every tensor by the rule of its group: a
// tensor t takes rules[t.Group], and rules[0] is that of the default group.
//
// Group i has the learning rate k.LR·(rules[i].LR/rules[0].LR), which is k.LR
// itself where both base rates are equal. If the base rate of the default group
// is 0, its schedule says nothing about the others, and their rates stay at
// their base.
//
// Slots with values per element are united by position: a tensor has those of
// its own rule. All others, few values in each, are laid down for all tensors;
// tensors of other groups leave theirs as they start. Reductions stand side by
// side in a pass, and each runs over the tensors of its group alone: the norm
// over the model is one over the group. Passes start together, and the last
// pass of every rule is the last of all.
//
// Workers push what any of the rules needs; each sees only what it asked for
// itself. A composition of rules that are all the same has the bits of the one
// rule, unless that sums over the model.
//
// Groups refuses, with an error that wraps [ErrGroups], rules of several
// phases, and rules that disagree on what is evaluated, on the point at which
// workers take gradients or on the form of the Hessian's diagonal.
//
// Apply and Prepare allocate nothing after the first step.
func Groups[T Float](rules []GroupRule[T]) (Rule[T], error) {
	switch len(rules) {
	case 0:
		return nil, fmt.Errorf("%w: there are none", ErrGroups)
	case 1:
		return rules[0].Rule, nil
	}
	r := &groups[T]{base: rules[0].LR}
	for _, g := range rules {
		r.parts = append(r.parts, newGroupPart(g))
	}
	if err := r.agree(); err != nil {
		return nil, err
	}
	r.spec = Spec{Name: r.name(), Runs: true, Phases: []Phase{{Needs: r.needs()}}}
	for i := range r.parts {
		spec := r.parts[i].spec
		r.spec.NeedsLoss = r.spec.NeedsLoss || spec.NeedsLoss
		r.spec.AbsHessian = r.spec.AbsHessian || spec.AbsHessian
		r.spec.Runs = r.spec.Runs && spec.Runs
	}
	r.spec.Perturb = r.parts[0].spec.Perturb
	r.spec.Optional = r.optional()
	r.spec.Phases[0].Passes = r.passes()
	r.reduces = r.spec.Reductions() > 0
	if err := r.slots(); err != nil {
		return nil, err
	}
	return r, nil
}

// groups is a rule per group of tensors.
type groups[T Float] struct {
	parts   []groupPart[T]
	spec    Spec
	base    float64
	reduces bool
}

// groupPart is one of the rules and where its pieces are in the composition.
type groupPart[T Float] struct {
	rule     Rule[T]
	spec     *Spec
	lr       float64
	passes   int
	elements int            // slots with values per element: the first of the composition's
	slot     []int          // index of each slot in the composition
	model    int            // slots of the model: those of the composition from modelAt on
	modelAt  int            // in Step.Model
	scratch  int            // arrays of all passes
	reduce   []layout.Range // reductions of each pass, within those of the composition
}

func newGroupPart[T Float](g GroupRule[T]) groupPart[T] {
	p := groupPart[T]{rule: g.Rule, spec: g.Rule.Spec(), lr: g.LR}
	p.passes = len(p.spec.Phases[0].Passes)
	p.reduce = make([]layout.Range, p.passes)
	for _, ps := range p.spec.Phases[0].Passes {
		p.scratch += ps.Scratch
	}
	for i := range p.spec.Slots {
		switch sl := &p.spec.Slots[i]; {
		case sl.Elements():
			p.elements++
		case sl.Class == Model:
			p.model++
		}
	}
	return p
}

// agree says whether the rules can update one model together.
func (r *groups[T]) agree() error {
	first := r.parts[0].spec
	var hessian *Spec
	for i := range r.parts {
		spec := r.parts[i].spec
		switch {
		case len(spec.Phases) > 1:
			return fmt.Errorf("%w: %s pushes %d times per update, which no group can", ErrGroups, spec.Name, len(spec.Phases))
		case spec.Perturb != first.Perturb:
			return fmt.Errorf("%w: %s takes gradients at %s, %s at %s", ErrGroups, first.Name, gradientPoint(first), spec.Name, gradientPoint(spec))
		}
		if !slices.Contains(spec.AllRoles(), HessDiag) {
			continue
		}
		if hessian != nil && hessian.AbsHessian != spec.AbsHessian {
			return fmt.Errorf("%w: %s and %s want the Hessian's diagonal in different forms", ErrGroups, hessian.Name, spec.Name)
		}
		hessian = spec
	}
	return nil
}

func gradientPoint(s *Spec) string {
	if s.Perturb > 0 {
		return fmt.Sprintf("points %v away from the parameters", s.Perturb)
	}
	return "the parameters"
}

// name is made of the names of the rules, each once.
func (r *groups[T]) name() string {
	var names []string
	for i := range r.parts {
		if n := r.parts[i].spec.Name; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return strings.Join(names, "+") + " in groups"
}

// needs are the roles that any rule needs.
func (r *groups[T]) needs() (roles []Role) {
	for role := range NumRoles {
		for i := range r.parts {
			if slices.Contains(r.parts[i].spec.Phases[0].Needs, role) {
				roles = append(roles, role)
				break
			}
		}
	}
	return roles
}

// optional is the union of the rules' optional roles. All unions there can be
// are made here, so that none is made per step.
func (r *groups[T]) optional() func(uint64) []Role {
	var asking []func(uint64) []Role
	for i := range r.parts {
		if o := r.parts[i].spec.Optional; o != nil {
			asking = append(asking, o)
		}
	}
	if asking == nil {
		return nil
	}
	var unions [1 << NumRoles][]Role
	for set := range unions {
		for role := range NumRoles {
			if set>>role&1 != 0 && !slices.Contains(r.spec.Phases[0].Needs, role) {
				unions[set] = append(unions[set], role)
			}
		}
	}
	return func(t uint64) []Role {
		set := 0
		for _, o := range asking {
			for _, role := range o(t) {
				set |= 1 << role
			}
		}
		return unions[set]
	}
}

// passes lays the rules' passes over each other.
func (r *groups[T]) passes() []Pass {
	n := 0
	for i := range r.parts {
		n = max(n, r.parts[i].passes)
	}
	passes := make([]Pass, n)
	for c := range passes {
		for i := range r.parts {
			p := &r.parts[i]
			pass, ok := p.pass(c, n)
			if !ok {
				continue
			}
			own := &p.spec.Phases[0].Passes[pass]
			p.reduce[pass].Lo = len(passes[c].Reduce)
			for _, rd := range own.Reduce {
				rd.Only = ofGroup(i, rd.Only)
				passes[c].Reduce = append(passes[c].Reduce, rd)
			}
			p.reduce[pass].Hi = len(passes[c].Reduce)
			// A tensor has one rule, so that all rules may use the same arrays.
			passes[c].Scratch = max(passes[c].Scratch, own.Scratch)
		}
	}
	return passes
}

// ofGroup limits a reduction to the tensors of group i that only takes.
func ofGroup(i int, only func(*layout.Tensor) bool) func(*layout.Tensor) bool {
	return func(t *layout.Tensor) bool { return t.Group == i && (only == nil || only(t)) }
}

// pass is the rule's pass at pass c of a composition of n; none if the rule
// pauses there.
func (p *groupPart[T]) pass(c, n int) (pass int, ok bool) {
	if c == n-1 {
		return p.passes - 1, true
	}
	return c, c < p.passes-1
}

// slots unites the slots.
func (r *groups[T]) slots() error {
	elements := 0
	for i := range r.parts {
		elements = max(elements, r.parts[i].elements)
	}
	for at := range elements {
		r.spec.Slots = append(r.spec.Slots, r.unite(at))
	}
	for i := range r.parts {
		p := &r.parts[i]
		for at := range p.spec.Slots[:p.elements] {
			p.slot = append(p.slot, at)
		}
		for si := p.elements; si < len(p.spec.Slots); si++ {
			p.slot = append(p.slot, -1)
			if p.spec.Slots[si].Class != Model {
				p.slot[si] = r.share(p.spec.Slots[si])
			}
		}
	}
	models := 0
	for i := range r.parts {
		p := &r.parts[i]
		p.modelAt = models
		for si := range p.spec.Slots {
			if sl := p.spec.Slots[si]; sl.Class == Model {
				models++
				p.slot[si] = len(r.spec.Slots)
				sl.Name = r.free(sl.Name)
				r.spec.Slots = append(r.spec.Slots, sl)
			}
		}
	}
	return r.eval()
}

// share is the index in the composition of a slot of rows, columns or tensors:
// that of another rule which is the same, or a new one.
func (r *groups[T]) share(sl Slot) int {
	for at, x := range r.spec.Slots {
		if !x.Elements() && x.Name == sl.Name && x.Class == sl.Class && x.Init == sl.Init {
			return at
		}
	}
	sl.Name = r.free(sl.Name)
	r.spec.Slots = append(r.spec.Slots, sl)
	return len(r.spec.Slots) - 1
}

// unite is the slot at a position at which some rules have slots with values
// per element.
func (r *groups[T]) unite(at int) Slot {
	var names []string
	var first *Slot
	same := true
	in := make([]*Slot, len(r.parts)) // nil where a rule has none
	for i := range r.parts {
		p := &r.parts[i]
		if at >= p.elements {
			same = false
			continue
		}
		sl := &p.spec.Slots[at]
		in[i] = sl
		if first == nil {
			first = sl
		}
		same = same && sl.Class == Element && sl.By == nil && sl.Name == first.Name && sl.Init == first.Init &&
			sl.FromParams == first.FromParams && sl.Noise == first.Noise
		if !slices.Contains(names, sl.Name) {
			names = append(names, sl.Name)
		}
	}
	sl := *first
	sl.Name = r.free(strings.Join(names, "+"))
	if !same {
		sl.By = func(t *layout.Tensor) *Slot {
			if own := in[t.Group]; own != nil {
				return own.In(t)
			}
			return nil
		}
	}
	return sl
}

// free is name, or, if a slot has it already, name with a number behind.
func (r *groups[T]) free(name string) string {
	taken := func(name string) bool {
		return slices.ContainsFunc(r.spec.Slots, func(sl Slot) bool { return sl.Name == name })
	}
	unique := name
	for n := 2; taken(unique); n++ {
		unique = fmt.Sprintf("%s.%d", name, n)
	}
	return unique
}

// eval finds the slot that is evaluated, which must be at one position.
func (r *groups[T]) eval() error {
	first := &r.parts[0]
	for i := range r.parts {
		if p := &r.parts[i]; p.evalAt() != first.evalAt() {
			return fmt.Errorf("%w: %s evaluates %s, %s %s: a model is evaluated at one point", ErrGroups,
				first.spec.Name, evaluated(first.spec), p.spec.Name, evaluated(p.spec))
		}
	}
	if at := first.evalAt(); at >= 0 {
		r.spec.Eval = r.spec.Slots[at].Name
	}
	return nil
}

// evalAt is the position of the slot that is evaluated; −1 for the parameters.
func (p *groupPart[T]) evalAt() int {
	return slices.IndexFunc(p.spec.Slots, func(sl Slot) bool { return p.spec.Eval != "" && sl.Name == p.spec.Eval })
}

func evaluated(s *Spec) string {
	if s.Eval == "" {
		return "the parameters"
	}
	return "its slot " + s.Eval
}

// Spec implements [Rule].
func (r *groups[T]) Spec() *Spec { return &r.spec }

// rate is the learning rate of a group when that of the default group is lr.
func (r *groups[T]) rate(p *groupPart[T], lr float64) float64 {
	if p.lr == r.base {
		return lr
	}
	return float64(multiplier(lr, r.base) * p.lr)
}

// Prepare implements [Rule].
func (r *groups[T]) Prepare(c int, k *Step) {
	if len(k.Groups) != len(r.parts) {
		k.Groups = make([]Step, len(r.parts))
	}
	k.Coef = k.Coef[:0]
	passes := len(r.spec.Phases[0].Passes)
	for i := range r.parts {
		p, sub := &r.parts[i], &k.Groups[i]
		pass, ok := p.pass(c, passes)
		if !ok {
			continue
		}
		sub.T, sub.LR, sub.Loss, sub.Examples = k.T, r.rate(p, k.LR), k.Loss, k.Examples
		sub.Model = k.Model[p.modelAt : p.modelAt+p.model : p.modelAt+p.model]
		sub.Next = k.Next[p.modelAt : p.modelAt+p.model : p.modelAt+p.model]
		sub.Reduced = p.reduced(sub.Reduced, k.Reduced, pass)
		sub.Coef = sub.Coef[:0]
		p.rule.Prepare(pass, sub)
	}
}

// reduced appends to dst[:0] the rule's results of its passes before the given
// one. All of them but the last stand at the same place in the composition.
func (p *groupPart[T]) reduced(dst, all [][][]float64, pass int) [][][]float64 {
	dst = dst[:0]
	for i, at := range p.reduce[:pass] {
		dst = append(dst, all[i][at.Lo:at.Hi:at.Hi])
	}
	return dst
}

// PrepareTensor implements [TensorPreparer]. What the tensor's own rule sees of
// it is kept in ts.Work.
func (r *groups[T]) PrepareTensor(c int, k *Step, ts *TensorState) {
	if !r.reduces {
		return
	}
	p := &r.parts[ts.Info.Group]
	pass, ok := p.pass(c, len(r.spec.Phases[0].Passes))
	if !ok {
		return
	}
	sub, ok := ts.Work.(*TensorState)
	if !ok {
		sub = &TensorState{}
		ts.Work = sub
	}
	sub.Info = ts.Info
	sub.Slots, sub.Next = sub.Slots[:0], sub.Next[:0]
	for _, at := range p.slot {
		sub.Slots, sub.Next = append(sub.Slots, ts.Slots[at]), append(sub.Next, ts.Next[at])
	}
	sub.Reduced = p.reduced(sub.Reduced, ts.Reduced, pass)
	PrepareTensor(p.rule, pass, &k.Groups[ts.Info.Group], sub)
}

// Apply implements [Rule].
func (r *groups[T]) Apply(c int, k *Step, s *Span[T]) {
	group := s.Tensor.Info.Group
	p := &r.parts[group]
	pass, ok := p.pass(c, len(r.spec.Phases[0].Passes))
	if !ok {
		return
	}
	// The span is lent to the rule and restored: a copy would be allocated.
	tensor, g, slots, scratch, sums, gathered := s.Tensor, s.G, s.Slots, s.Scratch, s.Sums, s.Gathered
	if r.reduces {
		s.Tensor = tensor.Work.(*TensorState)
	}
	p.hide(k.T, &s.G)
	s.Slots = slots[:p.elements:p.elements]
	s.Scratch = scratch[:min(p.scratch, len(scratch))]
	at := p.reduce[pass]
	s.Sums, s.Gathered = sums[at.Lo:at.Hi:at.Hi], gathered[at.Lo:at.Hi:at.Hi]
	p.rule.Apply(pass, &k.Groups[group], s)
	s.Tensor, s.G, s.Slots, s.Scratch, s.Sums, s.Gathered = tensor, g, slots, scratch, sums, gathered
}

// hide takes away what other rules asked for.
func (p *groupPart[T]) hide(t uint64, g *[NumRoles][]T) {
	var optional []Role
	if p.spec.Optional != nil {
		optional = p.spec.Optional(t)
	}
	for role := range g {
		if !slices.Contains(p.spec.Phases[0].Needs, Role(role)) && !slices.Contains(optional, Role(role)) {
			g[role] = nil
		}
	}
}
