package client

import (
	"time"

	"tributary/job"
	"tributary/shard"
)

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
