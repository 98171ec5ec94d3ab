package shard

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// pendingCut is a snapshot being collected: chunks are copied as they reach
// the step, so that training does not stop (C12).
type pendingCut struct {
	step  uint64
	got   []bool
	left  int
	parts []layout.Section
}

// cutAt says whether a cut is taken when the job reaches version v: never
// between two phases of an update.
func (s *Shard) cutAt(v uint64) bool {
	if v%s.phases != 0 {
		return false
	}
	return v == s.cfg.Steps || s.led.Stopped && v == s.led.StopAt || s.cfg.CutEvery > 0 && v > 0 && v%s.cfg.CutEvery == 0
}

// captureChunk copies chunk ci if its version is one at which a cut is taken.
func (s *Shard) captureChunk(ci int) {
	if s.cfg.Mode == Async {
		s.captureAsync(s.lastAdv)
		return
	}
	v := s.chunks[ci].version
	if s.phase != running || !s.cutAt(v) || s.saved(v) {
		return
	}
	// With staleness, chunks may be at different steps, so several cuts may be
	// under way.
	i := slices.IndexFunc(s.cuts, func(c *pendingCut) bool { return c.step == v })
	if i < 0 {
		i = len(s.cuts)
		s.cuts = append(s.cuts, &pendingCut{step: v, got: make([]bool, len(s.chunks)), left: len(s.chunks)})
	}
	c := s.cuts[i]
	if c.got[ci] {
		return
	}
	c.got[ci] = true
	c.left--
	s.copyChunk(c, ci)
	if c.left == 0 {
		s.cuts = slices.Delete(s.cuts, i, i+1)
		s.completeCut(c)
	}
}

// saved says whether a cut at v needs no (further) saving in this timeline.
func (s *Shard) saved(v uint64) bool {
	id := ledger.CutID{Timeline: s.led.Timeline, Step: v}
	if _, ok := s.saving[id]; ok {
		return true
	}
	return slices.Contains(s.led.Cuts, id) || s.led.Base.Step == v && s.led.Base.Timeline != 0
}

func (s *Shard) copyChunk(c *pendingCut, ci int) {
	v := c.step
	r := s.cfg.Layout.Chunk(s.cfg.Chunks.Lo + ci)
	lo, hi := r.Lo-s.lo, r.Hi-s.lo
	add := func(name string, x []float32) {
		c.parts = append(c.parts, layout.Section{Name: name, Range: r, F32: slices.Clone(x[lo:hi])})
	}
	add("params", s.bufs[v%s.keep()])
	// A job with staleness goes on from older versions too, and so does a rule
	// that wants gradients at the previous parameters.
	for back := 1; back <= s.older() && uint64(back) <= v; back++ {
		add(fmt.Sprintf("params-%d", back), s.bufs[(v-uint64(back))%s.keep()])
	}
	c.parts = s.copySlots(c.parts, ci)
}

// older is how many versions before the newest a worker may need.
func (s *Shard) older() int { return max(s.cfg.Staleness, s.spec.History()) }

// completeCut hands the finished snapshot to the driver.
func (s *Shard) completeCut(c *pendingCut) {
	v, parts := c.step, c.parts
	model := s.model
	if s.cfg.Mode != Async && s.scal != nil && v > 0 {
		if sc := &s.scal[(v-1)%uint64(len(s.scal))]; sc.ready && sc.step == v-1 {
			model = sc.k.Next
		}
	}
	mi := 0
	for _, sl := range s.spec.Slots {
		if sl.Class == optim.Model {
			parts = append(parts, layout.Section{Name: "model/" + sl.Name, F64: []float64{model[mi]}})
			mi++
		}
	}
	for i := range s.tens {
		for j, x := range s.tens[i].Slots {
			if x != nil {
				parts = append(parts, layout.Section{Name: s.tensorSection(i, j), F64: slices.Clone(x)})
			}
		}
	}
	for rank := range s.cfg.Ranks {
		if b, ok := s.states[stateKey{rank, v}]; ok {
			parts = append(parts, layout.Section{Name: fmt.Sprintf("rank/%d", rank), Raw: b})
		}
	}
	if s.cfg.Mode == Async {
		x := []float64{float64(s.updates)}
		for _, a := range s.applied {
			x = append(x, float64(a))
		}
		parts = append(parts, layout.Section{Name: "applied", Range: layout.Range{Lo: s.lo, Hi: s.lo + s.n}, F64: x})
	}
	id := ledger.CutID{Timeline: s.led.Timeline, Step: v}
	s.saving[id] = false
	s.outs = append(s.outs, Out{Kind: SaveCut, Cut: id, Sections: parts})
}

// CutSaved tells the shard that the driver finished a SaveCut.
func (s *Shard) CutSaved(id ledger.CutID, now time.Duration) []Out {
	s.outs = s.outs[:0]
	if id.Timeline != s.led.Timeline {
		return s.outs // the timeline ended while it was written
	}
	s.saving[id] = true
	s.sendSaved(id)
	return s.outs
}

func (s *Shard) sendSaved(id ledger.CutID) {
	h := s.header(wire.Saved)
	h.Timeline, h.Step = id.Timeline, id.Step
	s.toCoord(h, nil)
}

// CutFailed tells the shard that the driver could not read (load) or write a
// cut; the coordinator learns why.
func (s *Shard) CutFailed(id ledger.CutID, load bool, err error) []Out {
	s.outs = s.outs[:0]
	text := fmt.Sprintf("shard %d: cut %d.%d: %v", s.cfg.ID, id.Timeline, id.Step, err)
	switch {
	case !load && id.Timeline == s.led.Timeline:
		s.broken = text
	case load && s.phase == loading && id == s.led.Base: // else the next timeline begins elsewhere already
		s.unread = text
	default:
		return s.outs
	}
	s.sendFailed()
	return s.outs
}

// sendFailed tells the coordinator that the shard cannot go on: it halts the
// job, or begins a timeline at an older cut.
func (s *Shard) sendFailed() {
	h := s.header(wire.Report)
	h.Lo, h.Hi = s.Versions()
	h.Code, h.Text = wire.ErrHalted, s.broken
	if s.unread != "" {
		h.Code, h.Text = wire.ErrGone, s.unread
	}
	s.toCoord(h, nil)
}

// CutLoaded restores the shard from the sections of its base cut. Sections may
// cover more than this shard; all of what it needs must be there.
func (s *Shard) CutLoaded(id ledger.CutID, parts []layout.Section, now time.Duration) []Out {
	s.outs = s.outs[:0]
	if s.phase != loading || id != s.led.Base {
		return s.outs
	}
	if err := s.restore(id, parts); err != nil {
		return s.CutFailed(id, true, err)
	}
	s.run()
	s.dirty = true
	return s.outs
}

func (s *Shard) restore(id ledger.CutID, parts []layout.Section) error {
	need := map[string]int{"params": s.n}
	s.initState()
	for i, sl := range s.spec.Slots {
		if n := len(s.slots[i].data); n > 0 {
			need["slot/"+sl.Name] = n
		}
		if sl.Class == optim.Model {
			need["model/"+sl.Name] = 1
		}
	}
	for i := range s.tens {
		for j, x := range s.tens[i].Slots {
			if x != nil {
				need[s.tensorSection(i, j)] = len(x)
			}
		}
	}
	if s.cfg.Mode == Async {
		need["applied"] = 1 + s.cfg.Ranks
	}
	s.setVersion(0)
	for _, p := range parts {
		switch {
		case p.Name == "params":
			need[p.Name] -= s.fill(s.bufs[0], p)
		case p.Name == "applied":
			if s.cfg.Mode == Async && p.Lo <= s.lo && s.lo < p.Hi && len(p.F64) == 1+s.cfg.Ranks {
				s.updates = uint64(p.F64[0])
				for r := range s.applied {
					s.applied[r] = uint64(p.F64[1+r])
				}
				need[p.Name] = 0
			}
		default:
			s.restoreNamed(id, need, p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(need)) {
		if left := need[name]; left != 0 {
			return fmt.Errorf("section %q lacks %d values", name, left)
		}
	}
	if s.cfg.Mode != Async {
		s.setVersion(id.Step)
		s.restoreOlder(id.Step, parts)
		if h := uint64(s.spec.History()); id.Step >= h && s.floor > id.Step-h {
			return fmt.Errorf("section \"params-%d\" is not whole: the rule %s wants gradients there", id.Step-s.floor+1, s.spec.Name)
		}
	}
	return nil
}

// restoreOlder fills the versions before v that a job with staleness still
// hands out; what the cut lacks is gone.
func (s *Shard) restoreOlder(v uint64, parts []layout.Section) {
	s.floor = v
	for back := 1; back <= s.older() && uint64(back) <= v; back++ {
		left := s.n
		for _, p := range parts {
			if p.Name == fmt.Sprintf("params-%d", back) {
				left -= s.fill(s.bufs[(v-uint64(back))%s.keep()], p)
			}
		}
		if left != 0 {
			return
		}
		s.floor = v - uint64(back)
	}
}

func (s *Shard) restoreNamed(id ledger.CutID, need map[string]int, p layout.Section) {
	mi := 0
	for i, sl := range s.spec.Slots {
		switch {
		case p.Name == "slot/"+sl.Name && s.slots[i].data != nil:
			need[p.Name] -= s.fillSlot(i, p)
		case sl.Class == optim.Model:
			if p.Name == "model/"+sl.Name && len(p.F64) == 1 {
				s.model[mi] = p.F64[0]
				need[p.Name] = 0
			}
			mi++
		}
	}
	for i := range s.tens {
		for j, x := range s.tens[i].Slots {
			if x != nil && p.Name == s.tensorSection(i, j) && len(p.F64) == len(x) {
				copy(x, p.F64)
				need[p.Name] = 0
			}
		}
	}
	var rank int
	if n, err := fmt.Sscanf(p.Name, "rank/%d", &rank); n == 1 && err == nil && rank%s.cfg.Shards == s.cfg.ID {
		s.states[stateKey{rank, id.Step}] = p.Raw
	}
}

// tensorSection names the section of a tensor's slot.
func (s *Shard) tensorSection(tensor, slot int) string {
	return "tensor/" + s.tens[tensor].Info.Name + "/" + s.spec.Slots[slot].Name
}

// fill copies the part of p that lies in this shard and returns its length.
func (s *Shard) fill(dst []float32, p layout.Section) int {
	lo, hi := max(p.Lo, s.lo), min(p.Hi, s.lo+s.n)
	if lo >= hi || len(p.F32) != p.Len() {
		return 0
	}
	return copy(dst[lo-s.lo:hi-s.lo], p.F32[lo-p.Lo:hi-p.Lo])
}

// atBarrier says whether rank must wait, in an asynchronous job, until all
// ranks have reached the step of the next cut: the cut's vector is that step
// for every rank.
func (s *Shard) atBarrier(rank int) bool {
	a := s.applied[rank]
	return s.cfg.CutEvery > 0 && a > 0 && a%s.cfg.CutEvery == 0 && slices.Min(s.applied) < a
}

// captureAsync takes the cut of an asynchronous job when all ranks have
// reached its step, and lets those go on that waited for it.
func (s *Shard) captureAsync(now time.Duration) {
	v := slices.Min(s.applied)
	if s.phase != running || v != slices.Max(s.applied) {
		return
	}
	if s.cutAt(v) && !s.saved(v) {
		c := &pendingCut{step: v}
		for i := range s.chunks {
			s.copyChunk(c, i)
		}
		s.completeCut(c)
	}
	for rank := range s.cfg.Ranks {
		if s.whole(rank, s.applied[rank]) {
			s.applyAsync(rank, now)
		}
	}
}

// maxStateBytes bounds the opaque state of one rank.
const maxStateBytes = 1 << 20

// keepState stores the opaque state that a rank has before it computes a step.
func (s *Shard) keepState(m *wire.Message, now time.Duration) {
	code := s.current(&m.Header)
	switch {
	case code != wire.OK:
	case m.Rank >= uint32(s.cfg.Ranks) || int(m.Rank)%s.cfg.Shards != s.cfg.ID:
		code = wire.ErrBadShape
	case len(m.Tail) > maxStateBytes:
		code = wire.ErrTooLarge
	case wire.Checksum(m.Tail) != m.CRC:
		code = wire.ErrBadCRC
	default:
		code = s.holds(m)
	}
	if code != wire.OK {
		s.refuse(m, code, "state of a rank")
		return
	}
	s.states[stateKey{int(m.Rank), m.Step}] = slices.Clone(m.Tail)
	s.closeAll(now)
}

// giveState answers a worker that took a rank over with the rank's state at a
// step.
func (s *Shard) giveState(m *wire.Message) {
	code := s.current(&m.Header)
	b, ok := s.states[stateKey{int(m.Rank), m.Step}]
	if code == wire.OK && !ok {
		code = wire.ErrGone
	}
	h := s.header(wire.State)
	h.Rank, h.Step, h.Code, h.CRC = m.Rank, m.Step, code, wire.Checksum(b)
	s.toWorker(m.Worker, h, b)
}

// forgetStates drops states that neither a cut nor a worker can still need.
func (s *Shard) forgetStates(recorded uint64) {
	lo, _ := s.Versions()
	if s.cfg.Mode == Async {
		lo = slices.Min(s.applied)
	}
	for k := range s.states {
		if k.step < recorded && k.step+uint64(s.depth()) < lo {
			delete(s.states, k)
		}
	}
}

// statesReady says whether the states that this shard's ranks have at version
// v are here. They are required at every step, not only at cuts, so that a
// worker that takes a rank over can go on exactly where it stands.
func (s *Shard) statesReady(v uint64) bool {
	if !s.cfg.RankState {
		return true
	}
	for rank := range s.cfg.Ranks {
		if !s.statesReadyFor(rank, v) {
			return false
		}
	}
	return true
}

// hasState says whether this shard keeps the state of rank at version v, or
// need not.
func (s *Shard) hasState(rank int, v uint64) bool {
	if !s.cfg.RankState || rank%s.cfg.Shards != s.cfg.ID {
		return true
	}
	_, ok := s.states[stateKey{rank, v}]
	return ok
}

// askStates asks for the states that this shard's ranks lack for their next
// step.
func (s *Shard) askStates() {
	step, _ := s.Versions()
	for rank := range s.cfg.Ranks {
		if s.cfg.Mode == Async {
			step = s.applied[rank]
		}
		s.statesReadyFor(rank, step+1)
	}
}

func (s *Shard) statesReadyFor(rank int, v uint64) bool {
	if s.hasState(rank, v) || !s.led.In(rank) {
		return true
	}
	if m, ok := s.led.Member(rank); ok {
		h := s.header(wire.AskState)
		h.Rank, h.Step = uint32(rank), v
		s.toWorker(m.Worker, h, nil)
	}
	return false
}
