package shard

import (
	"math"
	"time"

	"tributary/comm/wire"
)

const (
	reportEvery = 100 * time.Millisecond // while something changes
	idleEvery   = 500 * time.Millisecond // while nothing does
	stuckAfter  = 300 * time.Millisecond // then the coordinator hears who is missing
	maxLosses   = 512
)

// Tick does what is due at now: reports progress, repeats what the coordinator
// must know, and says who is being waited for. Call it every 50 ms or so.
func (s *Shard) Tick(now time.Duration) []Out {
	s.outs = s.outs[:0]
	every := idleEvery
	if s.dirty {
		every = reportEvery
	}
	if s.report != 0 && now-s.report < every {
		return s.outs
	}
	s.report, s.dirty = now, false
	if s.phase == idle {
		h := s.header(wire.Ready)
		h.Seq = s.led.N
		s.toCoord(h, nil)
		return s.outs
	}
	if s.unread != "" {
		s.sendFailed()
	}
	if s.phase == running {
		s.sendReport(now)
		s.repeat(now)
	}
	return s.outs
}

func (s *Shard) sendReport(now time.Duration) {
	h := s.header(wire.Report)
	h.Lo, h.Hi = s.Versions()
	h.Step = h.Lo
	if s.cfg.Mode == Async {
		h.Lo, h.Hi = math.MaxUint64, 0
		for _, a := range s.applied {
			h.Lo, h.Hi = min(h.Lo, a), max(h.Hi, a)
		}
	}
	h.Nanos = s.stats.UpdateNanos
	h.Seq = s.led.N
	h.Count = uint32(len(s.losses))
	h.Pulled = s.lossLo
	if s.broken != "" {
		h.Code, h.Text = wire.ErrHalted, s.broken
	}
	s.toCoord(h, wire.Bytes64(s.losses))
	if now-s.lastAdv >= stuckAfter && s.cfg.Mode != Async {
		ci := s.slowest()
		w := s.header(wire.Waiting)
		w.Chunk, w.Step, w.Count = uint32(s.cfg.Chunks.Lo+ci), s.chunks[ci].version, uint32(s.cfg.Ranks)
		s.toCoord(w, s.missing(&s.chunks[ci]))
	}
}

func (s *Shard) slowest() int {
	best := 0
	for i := range s.chunks {
		if s.chunks[i].version < s.chunks[best].version {
			best = i
		}
	}
	return best
}

// repeat sends again what may have been lost on its way to the coordinator or
// to the other shards, until a decision or an answer shows that it arrived.
func (s *Shard) repeat(now time.Duration) {
	for _, m := range s.staged {
		s.sendStaged(m)
	}
	for _, id := range s.savedCuts() {
		s.sendSaved(id)
	}
	if s.cfg.RankState {
		s.askStates()
	}
	s.repeatPartials(now)
}
