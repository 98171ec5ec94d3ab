package shard

import (
	"time"

	"tributary/aggregate"
	"tributary/comm/wire"
	"tributary/ledger"
)

// stagedMark remembers that the coordinator must learn of a whole staged
// contribution; it is repeated until the step closes.
type stagedMark struct {
	rank   int
	step   uint64
	member ledger.Member
}

// atomicReady looks, after a chunk of (rank, step) was staged, whether the
// contribution is whole on this shard and what follows from that.
func (s *Shard) atomicReady(rank int, step uint64, now time.Duration) {
	if s.phase != running || !s.whole(rank, step) {
		return
	}
	switch s.cfg.Mode {
	case Async:
		s.applyAsync(rank, now)
	case ByDecision:
		// A step closes wherever it is decided, so what a cut after it needs of
		// the rank must be here before.
		if s.statesReadyFor(rank, step+1) {
			s.tellStaged(rank, step)
		}
	case ByReduction:
		s.startReduction(now)
	}
}

// whole says whether every chunk of this shard has rank's contribution to step.
func (s *Shard) whole(rank int, step uint64) bool {
	for i := range s.chunks {
		if !s.has(&s.chunks[i], step, rank) {
			return false
		}
	}
	return true
}

func (s *Shard) tellStaged(rank int, step uint64) {
	m := stagedMark{rank, step, s.head(&s.chunks[0], step, rank).member}
	for _, x := range s.staged {
		if x == m {
			return
		}
	}
	s.staged = append(s.staged, m)
	s.sendStaged(m)
}

func (s *Shard) sendStaged(m stagedMark) {
	h := s.header(wire.Staged)
	h.Rank, h.Step, h.Worker, h.Incarnation = uint32(m.rank), m.step, m.member.Worker, m.member.Incarnation
	s.toCoord(h, nil)
}

// closeDecided applies step d.Step with exactly the members the decision
// names. This shard reported all of them, so they are here.
func (s *Shard) closeDecided(d *ledger.Decision, now time.Duration) {
	if s.phase != running || s.cfg.Mode != ByDecision || d.Timeline != s.led.Timeline {
		return
	}
	t, ranks := d.Step, d.Ranks[:min(len(d.Ranks), s.cfg.Ranks)] // a peer may send anything
	for i := range s.chunks {
		c := &s.chunks[i]
		if c.version != t {
			return
		}
		for rank := range ranks {
			for ro := range s.roles {
				if e := s.entry(c, t, rank, ro); e.msg != nil && (d.Ranks[rank] != e.member || d.Ranks[rank].Worker == "") {
					e.drop()
				}
			}
		}
	}
	for i := range s.chunks {
		s.closeChunk(i, now)
		if s.broken != "" {
			return
		}
	}
	for rank := range ranks {
		if ranks[rank].Worker == "" {
			s.miss(rank, t)
		}
	}
	kept := s.staged[:0]
	for _, m := range s.staged {
		if m.step > t {
			kept = append(kept, m)
		}
	}
	s.staged = kept
}

// miss records that step t closed without rank.
func (s *Shard) miss(rank int, t uint64) {
	runs := &s.without[rank]
	if n := len(*runs); n > 0 && (*runs)[n-1].hi == t {
		(*runs)[n-1].hi = t + 1
		return
	}
	*runs = append(*runs, steps{t, t + 1})
}

// missed says whether step t closed without rank in this timeline.
func (s *Shard) missed(rank int, t uint64) bool {
	for _, r := range s.without[rank] {
		if r.lo <= t && t < r.hi {
			return true
		}
	}
	return false
}

// applyAsync applies rank's next contribution, which this shard holds whole.
// An update is numbered by the shard's own log.
func (s *Shard) applyAsync(rank int, now time.Duration) {
	step := s.applied[rank]
	if step >= s.limit() || s.atBarrier(rank) || s.broken != "" || !s.statesReadyFor(rank, step+1) {
		return
	}
	if s.scal == nil {
		s.scal = make([]stepScalars, 1)
	}
	sc := &s.scal[0]
	sc.metas = sc.metas[:0]
	var head wire.Header
	for r := range s.cfg.Ranks {
		m := aggregate.Meta{Rank: r, Null: true}
		if r == rank {
			e := s.head(&s.chunks[0], step, r)
			head = e.msg.Header
			m = aggregate.Meta{Rank: r, Examples: head.Examples, Loss: head.Loss, Null: head.Encoding == wire.Null,
				Staleness: s.updates - min(s.updates, head.Pulled)}
		}
		sc.metas = append(sc.metas, m)
	}
	s.computeScalars(sc, s.updates+1, 0, s.model)
	s.only = rank
	for i := range s.chunks {
		s.apply(i, step, sc)
		if s.wild >= 0 {
			s.halt(s.wild, s.updates)
			return
		}
	}
	if s.cfg.ID == 0 {
		s.noteLoss(s.updates, sc.k.Loss)
	}
	s.model = append(s.model[:0], sc.k.Next...)
	s.updates++
	s.applied[rank] = step + 1
	s.stats.Applied++
	s.lastAdv, s.dirty = now, true
	for i := range s.chunks {
		s.logClose(i, step)
		for ro := range s.roles {
			e := s.entry(&s.chunks[i], step, rank, ro)
			if e.msg == nil {
				continue
			}
			s.ack(e.member.Worker, &e.msg.Header, wire.LevelApplied)
			e.drop()
		}
	}
	s.captureAsync(now)
}
