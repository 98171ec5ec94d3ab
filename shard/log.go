package shard

import (
	"cmp"
	"slices"

	"tributary/ledger"
)

// Log is the shard's gap-free log (C5). With one replica nobody follows it, so
// only its newest entries are kept; the fault simulation audits every one.
type Log struct {
	Next    uint64 // number of the next entry
	Entries []LogEntry
}

// LogEntry records that one chunk took one step or, in an asynchronous job, one
// contribution.
type LogEntry struct {
	N        uint64
	Timeline uint64
	View     uint64
	Chunk    int
	Step     uint64
	LR       float64 // scalars of the step: a backup would not recompute them
	Loss     float64
	Inputs   []LogInput // in rank order
}

// LogInput names one contribution that was counted.
type LogInput struct {
	Rank     int
	Member   ledger.Member
	Timeline uint64
	CRC      uint32
}

const keptEntries = 128

func (s *Shard) logClose(ci int, t uint64) {
	sc := &s.scal[t%uint64(len(s.scal))]
	e := LogEntry{N: s.log.Next, Timeline: s.led.Timeline, View: s.led.View, Chunk: s.cfg.Chunks.Lo + ci, Step: t, LR: sc.k.LR, Loss: sc.k.Loss}
	if len(s.log.Entries) >= keptEntries {
		e.Inputs = s.log.Entries[0].Inputs[:0] // reuse the oldest entry's memory
		s.log.Entries = append(s.log.Entries[:0], s.log.Entries[1:]...)
	}
	for rank := range s.cfg.Ranks {
		if s.cfg.Mode == Async && rank != s.only {
			continue
		}
		if x := s.head(&s.chunks[ci], t, rank); x.msg != nil && x.step == t {
			e.Inputs = append(e.Inputs, LogInput{rank, x.member, x.msg.Timeline, x.msg.CRC})
		}
	}
	s.log.Next++
	s.log.Entries = append(s.log.Entries, e)
}

// LogSince returns the kept entries numbered n and above.
func (s *Shard) LogSince(n uint64) []LogEntry {
	i, _ := slices.BinarySearchFunc(s.log.Entries, n, func(e LogEntry, n uint64) int { return cmp.Compare(e.N, n) })
	return s.log.Entries[i:]
}

// savedCuts are the cuts written here but not yet recorded, in a fixed order.
func (s *Shard) savedCuts() []ledger.CutID {
	var ids []ledger.CutID
	for id, done := range s.saving {
		if done {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ledger.CutID) int { return cmp.Compare(a.Step, b.Step) })
	return ids
}

// Applied says whether rank's contribution to the given chunk at step is part
// of the model.
func (s *Shard) Applied(rank, chunk int, step uint64) bool {
	ci := chunk - s.cfg.Chunks.Lo
	if ci < 0 || ci >= len(s.chunks) || rank >= s.cfg.Ranks {
		return false
	}
	if s.cfg.Mode == Async {
		return step < s.applied[rank]
	}
	return step < s.chunks[ci].version
}
