package client

import (
	"fmt"
	"math"

	"tributary/comm/wire"
	"tributary/layout"
)

// check refuses what no shard would take. What is not finite becomes an
// explicit nothing where the job says so; else the coordinator is told, which
// halts the job: whoever computes the rank again would get the same.
func (s *Session) check(c *Contribution) error {
	if c.Null {
		return nil
	}
	for _, role := range s.plan.Roles(c.Step) {
		if t := c.tensor(role); len(t) != s.plan.Layout.P {
			return fmt.Errorf("rank %d, step %d: %v has %d numbers, the model %d: %w", c.Rank, c.Step, role, len(t), s.plan.Layout.P, wire.ErrBadShape)
		}
	}
	if err := s.checkRuns(c); err != nil {
		return fmt.Errorf("rank %d, step %d: %w: %w", c.Rank, c.Step, err, wire.ErrBadShape)
	}
	text := s.notFinite(c)
	if text == "" {
		return nil
	}
	if s.plan.NullBad {
		c.Null, c.Grad, c.Extra, c.Loss, c.Examples = true, nil, nil, 0, 0
		return nil
	}
	h := s.header(wire.Bad)
	h.Rank, h.Step, h.Code, h.Text = uint32(c.Rank), c.Step, wire.ErrNotFinite, fmt.Sprintf("worker %s: rank %d, step %d: %s", s.cfg.Worker, c.Rank, c.Step, text)
	s.bad = &h
	s.toCoord(h, nil)
	return fmt.Errorf("rank %d, step %d: %s: %w", c.Rank, c.Step, text, wire.ErrNotFinite)
}

// checkRuns says what is wrong with the runs that c names.
func (s *Session) checkRuns(c *Contribution) error {
	if c.Runs == nil {
		return nil
	}
	if !s.plan.Rule.Runs || s.plan.Half {
		return fmt.Errorf("the rule %s, or the job's encoding, takes no row-sparse contributions", s.plan.Rule.Name)
	}
	end := -1
	for _, r := range c.Runs {
		if r.Lo <= end || r.Hi <= r.Lo || r.Hi > s.plan.Layout.P {
			return fmt.Errorf("run of parameters %d to %d is empty, touches the one before or leaves the model", r.Lo, r.Hi)
		}
		end = r.Hi
	}
	return nil
}

// notFinite says what of c is not a number that can be counted, or "".
func (s *Session) notFinite(c *Contribution) string {
	for _, role := range s.plan.Roles(c.Step) {
		x := c.tensor(role)
		if i := firstNonFinite(x, c.Runs, s.plan.Half); i >= 0 {
			t := s.plan.Layout.Find(i)
			return fmt.Sprintf("%v of tensor %q is %v at element %d", role, t.Name, x[i], i-t.Offset)
		}
	}
	switch {
	case math.IsNaN(c.Loss) || math.IsInf(c.Loss, 0):
		return fmt.Sprintf("the loss is %v", c.Loss)
	case !(c.Examples >= 0) || math.IsInf(c.Examples, 0):
		return fmt.Sprintf("the weight (examples) is %v", c.Examples)
	}
	return ""
}

// firstNonFinite is the first of x, or of its runs, that is not finite as it
// travels, or −1.
func firstNonFinite(x []float32, runs []layout.Range, half bool) int {
	if half { // the largest numbers round to infinity
		const infinite = 0x7f7f8000 // the least that does: a tie, and the last bit of the largest is 1
		for i, v := range x {
			if math.Float32bits(v)&math.MaxInt32 >= infinite {
				return i
			}
		}
		return -1
	}
	if runs == nil {
		return wire.FirstNonFinite(x)
	}
	for _, r := range runs {
		if i := wire.FirstNonFinite(x[r.Lo:r.Hi]); i >= 0 {
			return r.Lo + i
		}
	}
	return -1
}
