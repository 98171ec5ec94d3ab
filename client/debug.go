package client

import "fmt"

// Debug describes the session's state in one line, for traces.
func (s *Session) Debug() string {
	out := fmt.Sprintf("inc %d timeline %d n %d;", s.inc, s.led.Timeline, s.led.N)
	for _, r := range s.sortedRanks() {
		out += fmt.Sprintf(" rank %d next %d known %v issued %v;", r.rank, r.next, r.known, r.issued)
	}
	for i := range s.vers {
		v := &s.vers[i]
		out += fmt.Sprintf(" version %d used %v left %d lent %v;", v.v, v.used, v.left, v.lent)
	}
	for _, c := range s.flight {
		out += fmt.Sprintf(" flight rank %d step %d left %d %v;", c.Rank, c.Step, c.left, c.state)
	}
	return out
}
