// Package ledger holds the ordered decisions of a job: everything that spans
// shards and workers (who serves which rank, which timeline it is, which cut
// is recorded, where it stops). A decision exists only once the coordinator's
// compare-and-set created it under the next free number, so the numbers are
// gap-free and everyone who applies them in order agrees (docs/consistency.md,
// C4). The package is pure: no clock, no network.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Kind names what a decision decides.
type Kind string

// The kinds of decision.
const (
	Begin  Kind = "begin"  // a timeline starts at cut (CutTimeline, Step) with the owners in Epochs
	View   Kind = "view"   // the map of ranks to workers
	Close  Kind = "close"  // atomic step Step closes with exactly Members
	Cut    Kind = "cut"    // the cut at Step is on disk everywhere
	Stop   Kind = "stop"   // no step ≥ Step closes; a cut is taken there
	Finish Kind = "finish" // all work is done and saved
	Halt   Kind = "halt"   // an error ended the job; Reason says which
)

// Member is who serves one rank.
type Member struct {
	Worker      string `json:"worker,omitempty"` // empty: nobody at present
	Incarnation uint64 `json:"inc,omitempty"`
}

// Decision is one entry of a job's ledger. Fields a kind does not use are zero.
type Decision struct {
	N        uint64 `json:"n"`
	Kind     Kind   `json:"kind"`
	Timeline uint64 `json:"timeline,omitempty"`
	Step     uint64 `json:"step,omitempty"`
	// CutTimeline is the timeline in which the cut was taken that a Begin
	// starts from; 0 means the initial parameters.
	CutTimeline uint64   `json:"cut_timeline,omitempty"`
	Paused      bool     `json:"paused,omitempty"` // Begin: the job stays stopped at Step
	Epochs      []uint64 `json:"epochs,omitempty"` // Begin: epoch of each shard's owner
	View        uint64   `json:"view,omitempty"`   // View: its number
	// Ranks is the view, one entry per rank, or the members of a Close. A rank
	// out of the set (on_loss: shrink) has Out set.
	Ranks  []Member `json:"ranks,omitempty"`
	Out    []bool   `json:"out,omitempty"`
	Reason string   `json:"reason,omitempty"`
	Nonce  uint64   `json:"nonce,omitempty"` // who proposed it: settles an ambiguous CAS
}

// Limits on what a peer can make us decode.
const (
	maxDecisionBytes = 1 << 20
	MaxRanks         = 1 << 12
	MaxShards        = 1 << 14
)

// Encode is the decision's JSON, as stored and sent.
func (d *Decision) Encode() []byte {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err) // no field of the struct can fail to encode
	}
	return b
}

// ErrDecision is wrapped by the errors of [Decode].
var ErrDecision = errors.New("bad decision")

// Decode reads what Encode wrote. It never panics; its memory is bounded by a
// small multiple of len(b).
func Decode(b []byte) (*Decision, error) {
	if len(b) > maxDecisionBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrDecision, len(b))
	}
	var d Decision
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrDecision, err)
	}
	if len(d.Ranks) > MaxRanks || len(d.Epochs) > MaxShards || len(d.Out) > len(d.Ranks) {
		return nil, fmt.Errorf("%w: %d ranks, %d epochs", ErrDecision, len(d.Ranks), len(d.Epochs))
	}
	if d.N == 0 {
		return nil, fmt.Errorf("%w: number 0", ErrDecision)
	}
	return &d, nil
}

// CutID names a cut: the timeline it was taken in and its step. The zero value
// is the job's initial state.
type CutID struct {
	Timeline uint64 `json:"timeline"`
	Step     uint64 `json:"step"`
}

// State is what the decisions so far amount to.
type State struct {
	N        uint64 // number of the last decision applied
	Timeline uint64 // 0 before the first Begin
	Base     CutID  // where the timeline started
	Epochs   []uint64
	View     uint64
	Ranks    []Member
	Since    []uint64 // by rank: the view that gave it to its present member
	Out      []bool   // ranks outside the set; nil means none
	Cuts     []CutID
	Stopped  bool
	StopAt   uint64
	Reason   string
	Finished bool
	Halted   bool
}

// Apply takes the next decision. It returns false, changing nothing, when d is
// old or leaves a gap (d.N is not s.N+1): then the caller reads again from
// s.N+1 on.
func (s *State) Apply(d *Decision) bool {
	if d.N != s.N+1 {
		return false
	}
	s.N = d.N
	switch d.Kind {
	case Begin:
		s.Timeline = d.Timeline
		s.Base = CutID{d.CutTimeline, d.Step}
		s.Epochs = d.Epochs
		s.Halted = false
		if s.Stopped = d.Paused; s.Stopped {
			s.StopAt = d.Step // the reason stands
		} else {
			s.StopAt, s.Reason = 0, ""
		}
		// Cuts newer than the base belong to a past that was left behind.
		for len(s.Cuts) > 0 && s.Newest() != s.Base {
			s.Cuts = s.Cuts[:len(s.Cuts)-1]
		}
	case View:
		s.enter(d)
	case Cut:
		s.Cuts = append(s.Cuts, CutID{d.Timeline, d.Step})
	case Stop:
		s.Stopped, s.StopAt, s.Reason = true, d.Step, d.Reason
	case Finish:
		s.Finished = true
	case Halt:
		s.Halted, s.Reason = true, d.Reason
	}
	return true
}

// enter makes d the view.
func (s *State) enter(d *Decision) {
	old := *s
	s.View, s.Ranks, s.Out = d.View, d.Ranks, d.Out
	s.Since = make([]uint64, len(d.Ranks))
	for r := range s.Since {
		if s.Since[r] = d.View; r < len(old.Ranks) && old.Ranks[r] == d.Ranks[r] && old.In(r) == s.In(r) {
			s.Since[r] = old.Since[r]
		}
	}
}

// Newest is the newest recorded cut, or the initial state.
func (s *State) Newest() CutID {
	if len(s.Cuts) == 0 {
		return CutID{}
	}
	return s.Cuts[len(s.Cuts)-1]
}

// Obsolete says whether the data of cut id can be removed when the newest keep
// recorded cuts (at least one) are kept. It never can as long as the cut may
// still be recorded, or may have been by a decision not applied yet: whoever
// starts again learns the decisions one by one and must not take the first
// cuts for the newest.
func (s *State) Obsolete(id CutID, keep int) bool {
	if len(s.Cuts) == 0 || id.Timeline > s.Timeline || id.Timeline == s.Timeline && id.Step > s.Newest().Step {
		return false
	}
	return !slices.Contains(s.Cuts[max(0, len(s.Cuts)-max(1, keep)):], id)
}

// Member returns who serves rank r; ok is false when nobody does.
func (s *State) Member(r int) (m Member, ok bool) {
	if r < 0 || r >= len(s.Ranks) || s.Ranks[r].Worker == "" {
		return Member{}, false
	}
	return s.Ranks[r], true
}

// In says whether rank r belongs to the set that steps close with.
func (s *State) In(r int) bool { return r >= len(s.Out) || !s.Out[r] }
