package client

import (
	"slices"
	"time"

	"tributary/job"
	"tributary/layout"
	"tributary/optim"
	"tributary/shard"
)

// Plan is what a worker must know of a job to take part in it.
type Plan struct {
	Layout    *layout.Layout
	Shards    int
	Ranks     int
	Staleness int // −1: asynchronous
	Pinned    bool
	Broadcast bool
	Steps     uint64
	Window    int  // chunks in flight per rank, step and shard
	Streaming bool // chunks are applied as they come; credit returns only then
	RankState bool // every contribution carries its rank's opaque state
	Rule      *optim.Spec
	Half      bool // numbers travel as bfloat16
	// NullBad turns a contribution that is not finite into an explicit null
	// one, of weight zero on every shard, instead of an error.
	NullBad bool
	// Durable says that a push counts as acknowledged once it is in a recorded
	// cut.
	Durable bool
	Retry   time.Duration // first wait before asking again; 0: the session's
}

// phase is which phase of its update step is.
func (p *Plan) phase(step uint64) int { return int(step % uint64(len(p.Rule.Phases))) }

// Update is the number of the update, from 1, that step is a phase of.
func (p *Plan) Update(step uint64) uint64 { return step/uint64(len(p.Rule.Phases)) + 1 }

// Roles are those of a contribution to a step.
func (p *Plan) Roles(step uint64) []optim.Role { return p.Rule.Roles(p.phase(step), p.Update(step)) }

// wantsPrev says whether a contribution to step needs the version before the
// step's.
func (p *Plan) wantsPrev(step uint64) bool {
	return step > 0 && slices.Contains(p.Roles(step), optim.GradPrev)
}

// OpenPlan makes a worker's plan from the record that the coordinator sends.
func OpenPlan(record []byte) (*Plan, error) {
	r, err := job.DecodeRecord(record)
	if err != nil {
		return nil, err
	}
	p, err := job.Compile(r)
	if err != nil {
		return nil, err
	}
	return NewPlan(p), nil
}

// NewPlan is what a worker must know of a compiled job.
func NewPlan(p *job.Pipeline) *Plan {
	s := p.Spec
	return &Plan{
		Layout: p.Layout, Shards: p.Shards, Ranks: p.Ranks, Staleness: s.Staleness, Pinned: s.Pinned, Broadcast: p.Broadcast,
		Steps: p.Steps, Window: p.Window, Streaming: p.Mode == shard.Streaming, RankState: s.RankState, Rule: p.Rule.Spec(), Half: s.Encoding == job.BF16,
		NullBad: s.OnBad == "null", Durable: s.Level == "durable", Retry: time.Duration(s.Timeouts.Retry),
	}
}
