package job

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tributary/layout"
	"tributary/optim"
)

// Group is a group of tensors with a rule or hyper-parameters of its own. A
// tensor is in the first group with a pattern that matches its name, or in the
// default group, whose rule is the optimizer's.
type Group struct {
	Match []string `json:"match" yaml:"match"` // patterns, see [optim.Match]
	// Rule is empty for the optimizer's. With the same rule, the group starts
	// from the optimizer's hyper-parameters; with another, from its defaults.
	Rule  string         `json:"rule,omitempty" yaml:"rule,omitempty"`
	Hyper map[string]any `json:"hyper,omitempty" yaml:"hyper,omitempty"`
}

// group is the rule and the hyper-parameters of a group.
func (o *Optimizer) group(g *Group) (rule string, hyper map[string]any) {
	if g.Rule != "" && g.Rule != o.Rule {
		return g.Rule, g.Hyper
	}
	hyper = maps.Clone(o.Hyper)
	if hyper == nil {
		return o.Rule, g.Hyper
	}
	maps.Copy(hyper, g.Hyper)
	return o.Rule, hyper
}

// baseLR is the base learning rate of a rule.
func baseLR(rule string, hyper map[string]any) (float64, error) {
	d, ok := optim.Lookup(rule)
	if !ok {
		return 0, fmt.Errorf("%w %q", optim.ErrUnknownRule, rule)
	}
	v, err := d.Resolve(hyper)
	if err != nil {
		return 0, err
	}
	return d.BaseLR(v)
}

// rule makes the update rule of the whole model. It tells bad about every part
// that cannot be made, with the part's path.
func (o *Optimizer) rule(bad func(path string, err error)) optim.Rule[float32] {
	var rules []optim.GroupRule[float32]
	add := func(path, name string, hyper map[string]any) {
		rule, err := optim.New[float32](name, hyper)
		var lr float64
		if err == nil {
			lr, err = baseLR(name, hyper)
		}
		switch {
		case errors.Is(err, optim.ErrUnknownRule):
			bad(path+".rule", err)
			return
		case err != nil:
			bad(path+".hyper", err)
			return
		}
		rules = append(rules, optim.GroupRule[float32]{Rule: rule, LR: lr})
	}
	add("optimizer", o.Rule, o.Hyper)
	if len(rules) == 0 {
		return nil // groups start from what is wrong
	}
	for i := range o.Groups {
		name, hyper := o.group(&o.Groups[i])
		add(fmt.Sprintf("optimizer.groups[%d]", i), name, hyper)
	}
	if len(rules) <= len(o.Groups) {
		return nil
	}
	rule, err := optim.Groups(rules)
	if err != nil {
		bad("optimizer.groups", err)
		return nil
	}
	if rule, err = optim.Clip(rule, o.Clip); err != nil {
		bad("optimizer.clip", err)
		return nil
	}
	return rule
}

// assign returns a copy of tensors with what the patterns say about them: which
// have no decay, and which are in which group. Patterns are not matched against
// buffers, which no rule touches.
func (o *Optimizer) assign(c *checker, tensors []layout.Tensor) []layout.Tensor {
	out := slices.Clone(tensors)
	for i, p := range o.NoDecay {
		c.matching(fmt.Sprintf("optimizer.no_decay[%d]", i), p, out, func(t *layout.Tensor) { t.NoDecay = true })
	}
	for i := range o.Groups {
		taken, earlier := 0, 0 // tensors of this group, and an earlier one's number
		for j, p := range o.Groups[i].Match {
			c.matching(fmt.Sprintf("optimizer.groups[%d].match[%d]", i, j), p, out, func(t *layout.Tensor) {
				if t.Group == 0 {
					t.Group = i + 1
					taken++
				} else {
					earlier = t.Group
				}
			})
		}
		if taken == 0 && earlier > 0 {
			c.bad(fmt.Sprintf("optimizer.groups[%d].match", i), "all that it matches is in an earlier group (such as optimizer.groups[%d]), and the first match counts: move this group before it", earlier-1)
		}
	}
	return out
}

// matching calls f for the tensors that a pattern matches, of which there must
// be one.
func (c *checker) matching(path, pattern string, tensors []layout.Tensor, f func(*layout.Tensor)) {
	n := 0
	for i := range tensors {
		if t := &tensors[i]; !t.Buffer && optim.Match(pattern, t.Name) {
			n++
			f(t)
		}
	}
	if n == 0 {
		c.bad(path, "%q matches no tensor (* stands for any characters, ? for one); there are %s", pattern, tensorNames(tensors))
	}
}

// tensorNames lists the tensors that are trained.
func tensorNames(tensors []layout.Tensor) string {
	const most = 100
	var names []string
	more := 0
	for i := range tensors {
		switch {
		case tensors[i].Buffer:
		case len(names) < most:
			names = append(names, tensors[i].Name)
		default:
			more++
		}
	}
	s := strings.Join(names, ", ")
	if more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// checkPatterns checks what can be checked without the tensors.
func (s *Spec) checkPatterns(c *checker) {
	o := &s.Optimizer
	c.between("optimizer.groups", len(o.Groups), 0, maxGroups)
	c.between("optimizer.no_decay", len(o.NoDecay), 0, maxPatterns)
	for i := range o.Groups {
		path := fmt.Sprintf("optimizer.groups[%d]", i)
		if n := len(o.Groups[i].Match); n == 0 || n > maxPatterns {
			c.bad(path+".match", "%d patterns, want 1 to %d", n, maxPatterns)
		}
	}
	if s.Model.Kind == "tensors" && len(o.Groups) <= maxGroups && len(o.NoDecay) <= maxPatterns {
		o.assign(c, s.Model.Tensors)
	}
}
