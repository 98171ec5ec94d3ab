package shard

import (
	"fmt"
	"time"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/optim"
)

// push validates one chunk of a contribution, stages its bytes as they are
// and closes what has become complete. It takes over m: everything that could
// make the update fail is checked here, so that the fused pass cannot (C16).
func (s *Shard) push(m *wire.Message, now time.Duration) {
	s.stats.Pushes++
	s.stats.BytesIn += uint64(len(m.Tail))
	code, text := s.admit(m)
	if code != wire.OK {
		s.refuse(m, code, text)
		if code == wire.ErrNotFinite && !s.cfg.NullBad {
			s.reportBad(m, text)
		}
		m.Release()
		return
	}
	if s.isApplied(m) {
		// Already part of the model: acknowledge again, change nothing (C8).
		s.stats.Duplicates++
		if s.missed(int(m.Rank), m.Step) {
			s.refuse(m, wire.ErrLate, fmt.Sprintf("step %d closed without rank %d", m.Step, m.Rank))
		} else {
			s.ack(m.Worker, &m.Header, wire.LevelApplied)
			s.outs[len(s.outs)-1].H.Code = wire.ErrDuplicate
		}
		m.Release()
		return
	}
	rank, ci := int(m.Rank), int(m.Chunk)-s.cfg.Chunks.Lo
	if s.cfg.Mode == Async && m.Step != s.applied[rank] {
		s.refuse(m, wire.ErrAhead, fmt.Sprintf("rank %d: step %d before step %d", rank, m.Step, s.applied[rank]))
		m.Release()
		return
	}
	c := &s.chunks[ci]
	if s.cfg.Mode != Async && m.Step >= c.version+uint64(s.depth()) {
		s.refuse(m, wire.ErrAhead, fmt.Sprintf("step %d while chunk %d is at %d", m.Step, m.Chunk, c.version))
		m.Release()
		return
	}
	e := s.entry(c, m.Step, rank, s.roleIndex(m.Role))
	member := ledger.Member{Worker: m.Worker, Incarnation: m.Incarnation}
	switch {
	case e.msg != nil && e.step == m.Step && e.member == member:
		s.stats.Duplicates++
		if countMessages {
			c.counted++
		}
		m.Release()
	default:
		// A later holder of the rank replaces the bytes of an earlier one. In a
		// streaming job they are the same bits; elsewhere admit has already
		// discarded the whole earlier contribution.
		e.drop()
		*e = entry{msg: m, member: member, step: m.Step}
		s.view(e)
		c.counted++
		if c.first == 0 {
			c.first = now
		}
	}
	if ackBeforeApply {
		s.ack(member.Worker, &e.msg.Header, wire.LevelApplied)
	}
	if s.cfg.Mode == Streaming {
		s.closeReady(ci, now)
		return
	}
	s.ack(member.Worker, &e.msg.Header, wire.LevelStaged)
	s.atomicReady(rank, m.Step, now)
}

// view makes e's numbers readable; admit has checked that they are.
func (s *Shard) view(e *entry) {
	switch m := e.msg; m.Encoding {
	case wire.F32:
		e.vals = viewFloat32(m.Tail)
	case wire.BF16:
		e.half = viewHalf(m.Tail)
	case wire.Rows:
		var err error
		if e.runs, e.vals, err = viewRuns(m, s.cfg.Layout.Chunk(int(m.Chunk)).Len()); err != nil {
			panic("shard: " + err.Error())
		}
	}
}

func (e *entry) drop() {
	if e.msg != nil {
		e.msg.Release()
	}
	*e = entry{}
}

func (s *Shard) entry(c *chunk, step uint64, rank, role int) *entry {
	return &c.staged[step%uint64(s.depth())][rank*len(s.roles)+role]
}

func (s *Shard) roleIndex(r optim.Role) int {
	for i, x := range s.roles {
		if x == r {
			return i
		}
	}
	return -1
}

// isApplied says whether the pushed chunk is already part of the model.
func (s *Shard) isApplied(m *wire.Message) bool {
	if s.cfg.Mode == Async {
		return m.Step < s.applied[m.Rank]
	}
	return m.Step < s.chunks[int(m.Chunk)-s.cfg.Chunks.Lo].version
}

// admit checks a push in the order in which a sender can make sense of the
// answer: where it belongs, who sent it, what it looks like, what it holds.
func (s *Shard) admit(m *wire.Message) (wire.Code, string) {
	if code := s.current(&m.Header); code != wire.OK {
		return code, ""
	}
	if s.broken != "" || s.led.Halted {
		return wire.ErrHalted, s.led.Reason + s.broken
	}
	if m.Rank >= uint32(s.cfg.Ranks) {
		return wire.ErrBadShape, fmt.Sprintf("rank %d of %d", m.Rank, s.cfg.Ranks)
	}
	ci := int(m.Chunk)
	if ci < s.cfg.Chunks.Lo || ci >= s.cfg.Chunks.Hi {
		return wire.ErrBadShape, fmt.Sprintf("chunk %d is not in shard %d", m.Chunk, s.cfg.ID)
	}
	if ro := s.roleIndex(m.Role); ro < 0 || int(m.Phase) != s.phaseOf(m.Step) || !s.wants(m.Step, ro) {
		return wire.ErrBadShape, fmt.Sprintf("role %v, phase %d: the rule %s does not ask for it in step %d", m.Role, m.Phase, s.spec.Name, m.Step)
	}
	if m.Step >= s.cfg.Steps {
		return wire.ErrReadOnly, fmt.Sprintf("step %d: the job has %d steps", m.Step, s.cfg.Steps)
	}
	if s.isApplied(m) {
		return wire.OK, "" // whoever sends it
	}
	if code := s.holds(m); code != wire.OK {
		return code, fmt.Sprintf("rank %d", m.Rank)
	}
	if m.Encoding != wire.Null {
		return s.admitNumbers(m)
	}
	if len(m.Tail) != 0 || m.Examples != 0 {
		return wire.ErrBadShape, "a null contribution has no numbers and no weight"
	}
	return wire.OK, ""
}

// admitNumbers checks the numbers of a push.
func (s *Shard) admitNumbers(m *wire.Message) (wire.Code, string) {
	switch {
	case m.Encoding == wire.BF16 && s.cfg.Half, m.Encoding == wire.F32 && !s.cfg.Half, m.Encoding == wire.Rows && s.spec.Runs && !s.cfg.Half && !s.cfg.Dense:
	default:
		return wire.ErrBadEncoding, fmt.Sprintf("encoding %d is not the job's", m.Encoding)
	}
	cr := s.cfg.Layout.Chunk(int(m.Chunk))
	want, size := cr.Len(), 4
	if m.Encoding == wire.BF16 {
		size = 2
	}
	if m.Encoding != wire.Rows && (int(m.Count) != want || len(m.Tail) != size*want) {
		return wire.ErrBadShape, fmt.Sprintf("chunk %d: %d numbers in %d bytes, want %d numbers", m.Chunk, m.Count, len(m.Tail), want)
	}
	if wire.Checksum(m.Tail) != m.CRC {
		return wire.ErrBadCRC, ""
	}
	i := -1
	switch m.Encoding {
	case wire.BF16:
		i = wire.FirstNonFiniteHalf(viewHalf(m.Tail))
	case wire.Rows:
		runs, vals, err := viewRuns(m, want)
		if err != nil {
			return wire.ErrBadShape, fmt.Sprintf("chunk %d: %v", m.Chunk, err)
		}
		if i = wire.FirstNonFinite(vals); i >= 0 {
			for _, r := range runs {
				if lo, hi, at := int(r.lo), int(r.hi), int(r.at); i < at+hi-lo {
					i += lo - at
					break
				}
			}
		}
	default:
		i = wire.FirstNonFinite(viewFloat32(m.Tail))
	}
	if i >= 0 {
		g := cr.Lo + i
		t := s.cfg.Layout.Find(g)
		return wire.ErrNotFinite, fmt.Sprintf("rank %d, step %d: %v of tensor %q is not finite at element %d", m.Rank, m.Step, m.Role, t.Name, g-t.Offset)
	}
	return wire.OK, ""
}

// current checks that h belongs to this job, owner and timeline.
func (s *Shard) current(h *wire.Header) wire.Code {
	switch {
	case h.Job != s.cfg.Job:
		return wire.ErrUnknownJob
	case int(h.Shard) != s.cfg.ID:
		return wire.ErrNotOwner
	case h.Timeline < s.led.Timeline && !acceptOldTimeline:
		return wire.ErrStaleTimeline
	case h.Timeline > s.led.Timeline:
		return wire.ErrAhead
	case h.Epoch < s.cfg.Epoch && !acceptOldTimeline:
		return wire.ErrStaleEpoch
	case h.Epoch > s.cfg.Epoch:
		return wire.ErrNotOwner
	case s.phase != running:
		return wire.ErrBusy
	}
	return wire.OK
}

// holds checks that the sender serves the rank in the current view.
func (s *Shard) holds(m *wire.Message) wire.Code {
	member, ok := s.led.Member(int(m.Rank))
	switch {
	case ok && s.led.In(int(m.Rank)) && member.Worker == m.Worker && member.Incarnation == m.Incarnation:
		if s.cfg.Mode == ByDecision && m.View < s.led.Since[m.Rank] {
			// From before the rank went elsewhere and came back: what it pushes
			// now may be computed anew, and may not be mixed with this (C8).
			return wire.ErrStaleView
		}
		return wire.OK
	case m.View > s.led.View:
		return wire.ErrAhead
	case ok && member.Worker == m.Worker && m.Incarnation < member.Incarnation:
		return wire.ErrStaleInc
	case m.View < s.led.View:
		return wire.ErrStaleView
	default:
		return wire.ErrNotInView
	}
}

// ack tells the worker that a push is safe at the given level and returns its
// credit.
func (s *Shard) ack(worker string, p *wire.Header, level wire.Level) {
	h := s.header(wire.Ack)
	h.Rank, h.Step, h.Chunk, h.Role, h.Level = p.Rank, p.Step, p.Chunk, p.Role, level
	h.Credit = uint32(s.cfg.Window)
	s.toWorker(worker, h, nil)
}

// reportBad tells the coordinator of a contribution that no retry can mend.
func (s *Shard) reportBad(m *wire.Message, text string) {
	h := s.header(wire.Report)
	h.Lo, h.Hi = s.Versions()
	h.Rank, h.Worker, h.Code, h.Text = m.Rank, m.Worker, wire.ErrNotFinite, "worker "+m.Worker+": "+text
	s.toCoord(h, nil)
}
