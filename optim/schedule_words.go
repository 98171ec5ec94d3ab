package optim

import (
	"fmt"
	"strings"
)

// Describe says in words what the schedule is, for [ScheduleSpec]s that New
// accepts: "cosine rate down to 0.001 after a warm-up of 10 updates".
func (s ScheduleSpec) Describe() string {
	text := s.shapeInWords()
	if s.Min != 0 {
		text += fmt.Sprintf(" down to %v", s.Min)
	}
	if s.Over != 0 {
		text += fmt.Sprintf(" over %d updates", s.Over)
	}
	if s.Warmup != 0 {
		text += fmt.Sprintf(" after a warm-up of %d updates", s.Warmup)
	}
	if s.WarmupFrom != 0 {
		text += fmt.Sprintf(" from ×%v", s.WarmupFrom)
	}
	return text
}

func (s *ScheduleSpec) shapeInWords() string {
	switch s.kind() {
	case "constant":
		if s.Factor != 0 {
			return fmt.Sprintf("constant rate ×%v", s.Factor)
		}
	case "step":
		if len(s.Milestones) > 0 {
			return fmt.Sprintf("rate ×%v at each of the updates %s", or(s.Factor, 0.1), strings.Trim(fmt.Sprint(s.Milestones), "[]"))
		}
		return fmt.Sprintf("rate ×%v every %d updates", or(s.Factor, 0.1), s.Every)
	case "exponential":
		return fmt.Sprintf("exponential rate ×%v in %d updates", s.Factor, or(s.Every, 1))
	case "cosine_restarts":
		return fmt.Sprintf("cosine rate with restarts, the first after %d updates, each period ×%d", s.Every, or(s.Growth, 1))
	case "linear":
		return fmt.Sprintf("linear rate from ×%v to ×%v", or(s.From, 1), s.To)
	case "polynomial":
		return fmt.Sprintf("polynomial rate of power %v", or(s.Power, 1))
	case "inverse_sqrt":
		return "inverse square root rate"
	case "one_cycle":
		div := or(s.Div, 25)
		return fmt.Sprintf("one-cycle rate (%s), from 1/%v up over a share of %v, then down to 1/%v", or(s.Shape, oneCycleShapes[0]), div, or(s.Rise, 0.3), float64(div*or(s.FinalDiv, 1e4)))
	case "wsd":
		last := "tenth of the updates"
		if s.Decay != 0 {
			last = fmt.Sprintf("%d updates", s.Decay)
		}
		return fmt.Sprintf("stable rate, %s decay over the last %s", or(s.Shape, wsdShapes[0]), last)
	case "stages":
		return "rate in stages (" + inWords(s.Stages, ", then ") + ")"
	case "product":
		return "product of rates (" + inWords(s.Product, "; ") + ")"
	}
	return s.kind() + " rate"
}

func inWords(parts []ScheduleSpec, between string) string {
	var texts []string
	for _, p := range parts {
		text := p.Describe()
		if p.Length != 0 {
			text += fmt.Sprintf(" for %d updates", p.Length)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, between)
}
