package shard

import (
	"fmt"
	"slices"
	"time"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// news applies a decision if it is the next one, and asks for what is missing
// otherwise.
func (s *Shard) news(m *wire.Message, now time.Duration) {
	// A beacon only says how many decisions there are; one that is not next says
	// no more.
	if len(m.Tail) == 0 || m.Seq != s.led.N+1 {
		if m.Seq > s.led.N {
			s.askNews()
		}
		return
	}
	d, err := ledger.Decode(m.Tail)
	if err != nil {
		return // damaged: the next beacon shows the gap
	}
	s.Decide(d, now)
}

// Decide applies one decision. Old ones are ignored; a gap makes the shard ask.
func (s *Shard) Decide(d *ledger.Decision, now time.Duration) []Out {
	if !s.led.Apply(d) {
		if d.N > s.led.N {
			s.askNews()
		}
		return s.outs
	}
	s.dirty = true
	switch d.Kind {
	case ledger.Begin:
		s.begin()
	case ledger.View:
		s.discardForeign()
		s.closeAll(now)
	case ledger.Stop:
		s.held = false
		for i := range s.chunks {
			s.captureChunk(i)
		}
		s.closeAll(now)
	case ledger.Close:
		s.closeDecided(d, now)
	case ledger.Cut:
		delete(s.saving, ledger.CutID{Timeline: d.Timeline, Step: d.Step})
		s.forgetStates(d.Step)
	}
	return s.outs
}

// begin enters the new timeline if this owner is part of it. An owner whose
// epoch is not listed restarted meanwhile: it stays idle and says so, which
// makes the coordinator start yet another timeline.
func (s *Shard) begin() {
	s.reset()
	if s.cfg.ID >= len(s.led.Epochs) || s.led.Epochs[s.cfg.ID] != s.cfg.Epoch {
		s.phase = idle
		return
	}
	if s.led.Base.Timeline != 0 {
		s.phase = loading
		s.outs = append(s.outs, Out{Kind: LoadCut, Cut: s.led.Base})
		return
	}
	s.initState()
	s.setVersion(0)
	s.run()
}

// run lets a shard go on whose state is whole.
func (s *Shard) run() {
	s.phase = running
	for i := range s.chunks {
		s.keepEval(i)
	}
}

// reset drops everything that belonged to an earlier timeline.
func (s *Shard) reset() {
	for i := range s.chunks {
		c := &s.chunks[i]
		c.parked, c.evals, c.counted, c.first = nil, nil, 0, 0
		for d := range c.staged {
			for j := range c.staged[d] {
				c.staged[d][j].drop()
			}
		}
	}
	s.scal, s.cuts, s.floor, s.held, s.broken, s.unread = nil, nil, 0, false, "", ""
	s.staged = nil
	s.red = reduction{}
	clear(s.saving)
	clear(s.states)
	s.updates = 0
	clear(s.applied)
	clear(s.without)
	s.losses = s.losses[:0]
	s.log = Log{}
}

// initState fills parameters and slots with their start.
func (s *Shard) initState() {
	l := s.cfg.Layout
	l.InitParams(s.cfg.Seed, layout.Range{Lo: s.lo, Hi: s.lo + s.n}, s.bufs[0])
	s.model = s.model[:0]
	for i := range s.spec.Slots {
		sl := &s.spec.Slots[i]
		if sl.Class == optim.Model {
			s.model = append(s.model, sl.Init)
			continue
		}
		for ti := range s.tens {
			if t := s.tens[ti].Info; t != nil {
				s.initSlot(i, ti, sl.In(t))
			}
		}
	}
}

// initSlot fills slot i of a tensor with its start; nil means that the tensor
// has none.
func (s *Shard) initSlot(i, tensor int, sl *optim.Slot) {
	ts := &s.tens[tensor]
	lo, hi := s.part(ts.Info)
	if x := s.span(i, tensor, lo, hi); x != nil {
		switch {
		case sl.FromParams:
			copy(x, s.bufs[0][lo-s.lo:hi-s.lo])
		case sl.Noise != 0:
			layout.InitNoise(s.cfg.Seed, ts.Info, sl.Name, lo-ts.Info.Offset, sl.Noise, x)
		default:
			for k := range x {
				x[k] = float32(sl.Init)
			}
		}
	}
	for k := range ts.Slots[i] {
		ts.Slots[i][k] = sl.Init
	}
}

// setVersion puts every chunk at version v, whose parameters are in bufs[0].
func (s *Shard) setVersion(v uint64) {
	if at := v % s.keep(); at != 0 {
		s.bufs[0], s.bufs[at] = s.bufs[at], s.bufs[0]
	}
	for i := range s.chunks {
		s.chunks[i].version = v
	}
}

// hold promises not to close steps ≥ Step, or says from which step on it can.
// What an earlier promise held back goes on as far as the new one allows.
func (s *Shard) hold(m *wire.Message, now time.Duration) {
	h := s.header(wire.Held)
	h.Seq, h.Step = m.Seq, m.Step
	if s.phase != running || m.Job != s.cfg.Job || m.Timeline != s.led.Timeline {
		return
	}
	if m.Step == Latest { // withdrawn
		s.held = false
		s.closeAll(now)
		return
	}
	_, hi := s.Versions()
	if s.cfg.Mode == Async {
		hi = 0
		for _, a := range s.applied {
			hi = max(hi, a)
		}
	}
	if s.red.active { // other shards may have closed the step already
		hi = s.red.step + 1
	}
	h.Lo = hi
	if hi <= m.Step {
		s.held, s.heldAt = true, m.Step
	}
	s.toCoord(h, nil)
	s.closeAll(now)
}

// discardForeign drops, in jobs whose ranks may not recompute the same bits,
// what was staged by somebody who no longer holds the rank: a contribution is
// all of one incarnation or nothing (C8). Streaming jobs and jobs that close
// by reduction keep the bytes: whoever recomputes them gets the same, and a
// reduction that has begun may not lose its inputs.
func (s *Shard) discardForeign() {
	if s.cfg.Mode == Streaming || s.cfg.Mode == ByReduction {
		return
	}
	for i := range s.chunks {
		for _, row := range s.chunks[i].staged {
			for j := range row {
				e := &row[j]
				if e.msg == nil {
					continue
				}
				rank := j / len(s.roles)
				if !s.serves(rank, e.member) {
					e.drop()
				}
			}
		}
	}
	s.staged = slices.DeleteFunc(s.staged, func(m stagedMark) bool { return !s.serves(m.rank, m.member) })
}

// serves says whether member holds rank in the present view.
func (s *Shard) serves(rank int, member ledger.Member) bool {
	m, ok := s.led.Member(rank)
	return ok && m == member && s.led.In(rank)
}

func (s *Shard) closeAll(now time.Duration) {
	if s.cfg.Mode != Streaming {
		for rank := range s.cfg.Ranks {
			step := s.chunks[0].version
			if s.cfg.Mode == Async {
				step = s.applied[rank]
			}
			for d := range uint64(s.depth()) {
				s.atomicReady(rank, step+d, now)
			}
		}
		return
	}
	for i := range s.chunks {
		s.closeReady(i, now)
	}
}

// halt stops the shard because parameter i became non-finite in step t. The
// new version is not published.
func (s *Shard) halt(i int, t uint64) {
	tn := s.cfg.Layout.Find(i)
	s.broken = fmt.Sprintf("step %d made tensor %q non-finite at element %d", t/s.phases, tn.Name, i-tn.Offset)
	h := s.header(wire.Report)
	h.Lo, h.Hi = s.Versions()
	h.Code, h.Text = wire.ErrHalted, s.broken
	s.toCoord(h, nil)
}
