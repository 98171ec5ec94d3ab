package optim

import (
	"fmt"
	"slices"
	"strings"
)

// scheduleCheck collects the problems of a schedule.
type scheduleCheck struct{ errs []error }

func (c *scheduleCheck) bad(field, format string, args ...any) {
	c.errs = append(c.errs, &ScheduleError{field, fmt.Sprintf(format, args...)})
}

// spec checks s for a base rate and a number of updates. The names of its
// fields begin with path; depth is how many lists may still be nested in it.
func (c *scheduleCheck) spec(path string, s *ScheduleSpec, lr float64, total uint64, depth int) {
	if s.Warmup > total {
		c.bad(path+"warmup", "got %d, longer than the %d updates there are", s.Warmup, total)
		total = s.Warmup
	}
	if s.WarmupFrom != 0 && s.Warmup == 0 {
		c.bad(path+"warmup_from", "has no meaning without warmup")
	} else if !(s.WarmupFrom >= 0 && s.WarmupFrom <= 1) {
		c.bad(path+"warmup_from", "got %v, want 0 to 1", s.WarmupFrom)
	}
	kind := s.kind()
	if !slices.Contains(ScheduleKinds, kind) {
		c.bad(path+"kind", "%s", NoneOf(kind, ScheduleKinds))
		return
	}
	c.fields(path, s, lr)
	n := total - s.Warmup
	switch kind {
	case "constant":
		if s.Over != 0 && s.Factor == 0 {
			c.bad(path+"over", "has no meaning without factor: the rate is constant anyway")
		}
	case "step":
		if (s.Every == 0) == (len(s.Milestones) == 0) {
			c.bad(path+"every", "a step needs either every or milestones")
		}
		for i := 1; i < len(s.Milestones); i++ {
			if s.Milestones[i] <= s.Milestones[i-1] {
				c.bad(path+"milestones", "got %d after %d, want rising numbers", s.Milestones[i], s.Milestones[i-1])
				break
			}
		}
	case "exponential":
		if s.Factor == 0 {
			c.bad(path+"factor", "exponential needs one")
		}
	case "cosine_restarts":
		if s.Every == 0 {
			c.bad(path+"every", "cosine_restarts needs the updates of its first period")
		}
	case "wsd":
		if s.Decay > n {
			c.bad(path+"decay", "got %d, longer than the %d updates after the warm-up", s.Decay, n)
		}
		if s.Shape == "exponential" && s.Min == 0 {
			c.bad(path+"min", "an exponential decay needs one above 0: it never reaches 0")
		}
	case "stages":
		c.stages(path, s, lr, n, depth)
	case "product":
		for i := range c.list(path+"product", s.Product, depth) {
			sub := fmt.Sprintf("%sproduct[%d].", path, i)
			c.length(sub, &s.Product[i])
			c.spec(sub, &s.Product[i], 1, n, depth-1)
		}
	}
}

func (s *ScheduleSpec) kind() string {
	if s.Kind == "" {
		return "constant"
	}
	return s.Kind
}

// fields checks that what is there has a meaning for the kind, and its range.
func (c *scheduleCheck) fields(path string, s *ScheduleSpec, lr float64) {
	share := func(x float64) bool { return x > 0 && x <= 1 }
	divisor := func(x float64) bool { return x >= 1 && x <= maxBaseRate }
	const shares, divisors, kindsOfMin = "a number above 0, up to 1", "1 to 1e+100", "step exponential cosine cosine_restarts polynomial inverse_sqrt wsd"
	shapes := oneCycleShapes
	if s.Kind == "wsd" {
		shapes = wsdShapes
	}
	for _, f := range []struct {
		name        string
		x           any
		here, valid bool
		want, kinds string
	}{
		{"min", s.Min, s.Min != 0, s.Min >= 0 && s.Min <= lr, fmt.Sprintf("0 to the base rate %v", lr), kindsOfMin},
		{"over", s.Over, s.Over != 0, true, "", "constant cosine linear polynomial one_cycle"},
		{"every", s.Every, s.Every != 0, true, "", "step exponential cosine_restarts"},
		{"milestones", s.Milestones, len(s.Milestones) > 0, true, "", "step"},
		{"factor", s.Factor, s.Factor != 0, share(s.Factor), shares, "constant step exponential"},
		{"growth", s.Growth, s.Growth != 0, true, "", "cosine_restarts"},
		{"from", s.From, s.From != 0, share(s.From), shares, "linear"},
		{"to", s.To, s.To != 0, share(s.To), "0 to 1", "linear"},
		{"power", s.Power, s.Power != 0, s.Power > 0 && s.Power <= maxBaseRate, "a number above 0", "polynomial"},
		{"rise", s.Rise, s.Rise != 0, share(s.Rise), shares, "one_cycle"},
		{"div", s.Div, s.Div != 0, divisor(s.Div), divisors, "one_cycle"},
		{"final_div", s.FinalDiv, s.FinalDiv != 0, divisor(s.FinalDiv), divisors, "one_cycle"},
		{"decay", s.Decay, s.Decay != 0, true, "", "wsd"},
		{"shape", s.Shape, s.Shape != "", slices.Contains(shapes, s.Shape), "one of " + strings.Join(shapes, ", "), "one_cycle wsd"},
		{"stages", nil, len(s.Stages) > 0, true, "", "stages"},
		{"product", nil, len(s.Product) > 0, true, "", "product"},
	} {
		switch {
		case !f.here:
		case !slices.Contains(strings.Fields(f.kinds), s.kind()):
			c.bad(path+f.name, "has no meaning for kind %s", s.kind())
		case !f.valid:
			c.bad(path+f.name, "got %v, want %s", f.x, f.want)
		}
	}
}

// list checks that a list of parts is neither empty nor too long or deep, and
// returns those parts that are worth a look.
func (c *scheduleCheck) list(field string, parts []ScheduleSpec, depth int) []ScheduleSpec {
	switch {
	case len(parts) == 0:
		c.bad(field, "want a list of schedules")
	case len(parts) > maxScheduleParts:
		c.bad(field, "%d schedules, want %d at most", len(parts), maxScheduleParts)
	case depth == 0:
		c.bad(field, "nested more than %d deep", maxScheduleDepth)
	default:
		return parts
	}
	return nil
}

// length refuses the length of what is not a stage.
func (c *scheduleCheck) length(path string, s *ScheduleSpec) {
	if s.Length != 0 {
		c.bad(path+"length", "has no meaning outside of stages")
	}
}

func (c *scheduleCheck) stages(path string, s *ScheduleSpec, lr float64, n uint64, depth int) {
	parts := c.list(path+"stages", s.Stages, depth)
	left, known := n, true // once a length is wrong, what is left is not known
	for i := range parts {
		p, sub := &parts[i], fmt.Sprintf("%sstages[%d].", path, i)
		length := or(p.Length, left)
		switch {
		case p.Length == 0 && i < len(parts)-1:
			c.bad(sub+"length", "every stage but the last needs one")
			known = false
		case known && length > left:
			c.bad(sub+"length", "got %d, but only %d of %d updates are left", length, left, n)
			known = false
		case known && length == 0:
			c.bad(sub+"length", "no updates are left for the last stage")
			known = false
		}
		c.spec(sub, p, lr, length, depth-1)
		if known {
			left -= length
		}
	}
}
