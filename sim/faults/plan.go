package faults

import (
	"fmt"
	"time"

	"tributary/aggregate"
	"tributary/internal/rng"
	"tributary/job"
	"tributary/layout"
	"tributary/optim"
	"tributary/shard"
)

// Plan is one schedule: a small job and what goes wrong. It is a pure function
// of the seed.
type Plan struct {
	Seed      uint64
	Servers   int
	Shards    int
	Workers   int
	Ranks     int
	Steps     uint64
	CutEvery  uint64
	Chunk     int
	Tensors   []layout.Tensor
	Rule      string
	Hyper     map[string]any
	Mode      shard.Mode
	Staleness int
	Broadcast bool
	RankState bool
	Window    int
	OnLoss    job.OnLoss
	Faults    Faults
	Deadline  time.Duration
}

// Faults says how often what goes wrong.
type Faults struct {
	Loss, Repeat, Slow float64
	MinDelay, MaxDelay time.Duration
	WorkerCrash        time.Duration // mean time between crashes of one worker; 0: none
	ServerCrash        time.Duration // the same for a server
	AuthFail           float64       // a compare-and-set times out: done or not, nobody knows
	Until              time.Duration // faults end here
}

// NewPlan draws the schedule of a seed.
func NewPlan(seed uint64) Plan {
	k := rng.New(seed, "faults")
	n := uint64(0)
	pick := func(lo, hi int) int { n++; return lo + k.IntN(n, hi-lo+1) }
	chance := func(p float64) bool { n++; return k.Float64(n) < p }
	p := Plan{
		Seed: seed, Servers: pick(1, 3), Shards: pick(1, 7), Workers: pick(1, 4), Ranks: pick(1, 5),
		Steps: uint64(pick(5, 14)), CutEvery: uint64(pick(2, 5)), Chunk: []int{8, 16, 32}[pick(0, 2)],
		Window: pick(1, 4), Broadcast: chance(0.5), RankState: chance(0.3), OnLoss: job.Reassign,
		Deadline: 20 * time.Minute,
	}
	p.Workers = min(p.Workers, p.Ranks)
	if chance(0.2) {
		p.OnLoss = job.Wait
	}
	p.Tensors = []layout.Tensor{
		{Name: "w", Shape: []int{pick(3, 9), pick(3, 9)}, Init: layout.Init{Kind: layout.Uniform, Scale: 0.5}},
		{Name: "b", Shape: []int{pick(1, 12)}, NoDecay: true, Init: layout.Init{Kind: layout.Normal, Scale: 0.1}},
		{Name: "stat", Shape: []int{3}, Buffer: true, Init: layout.Init{Kind: layout.Constant, Scale: 1}},
		{Name: "out", Shape: []int{pick(2, 5), pick(2, 8)}, Init: layout.Init{Kind: layout.Uniform, Scale: 0.3}},
	}
	switch r := pick(0, 9); {
	case r < 5:
		p.Mode, p.Rule, p.Hyper = shard.Streaming, "adamw", map[string]any{"lr": 0.01}
	case r < 6:
		p.Mode, p.Rule, p.Hyper = shard.Streaming, "sgd", map[string]any{"lr": 0.05, "momentum": 0.9, "nesterov": true}
		p.Staleness = pick(1, 2) // pinned: bits do not depend on the schedule
	case r < 8:
		p.Mode, p.Rule, p.Hyper = shard.ByReduction, "lamb", map[string]any{"lr": 0.01}
	case r < 9:
		p.Mode, p.Rule, p.Hyper = shard.ByDecision, "adam", map[string]any{"lr": 0.01}
	default:
		// Order changes the bits of an asynchronous run unless all sums are
		// exact; with these gradients and this rate they are.
		p.Mode, p.Staleness, p.Rule, p.Hyper = shard.Async, -1, "sgd", map[string]any{"lr": 0.015625}
		for i := range p.Tensors {
			p.Tensors[i].Init = layout.Init{}
		}
	}
	f := &p.Faults
	f.MinDelay, f.MaxDelay = 100*time.Microsecond, time.Duration(pick(1, 20))*time.Millisecond
	f.Loss, f.Repeat, f.Slow = 0.01*float64(pick(0, 12)), 0.01*float64(pick(0, 12)), 0.01*float64(pick(0, 4))
	f.Until = time.Duration(pick(5, 40)) * time.Second
	if chance(0.7) {
		f.WorkerCrash = time.Duration(pick(2, 12)) * time.Second
	}
	if chance(0.5) {
		f.ServerCrash = time.Duration(pick(4, 20)) * time.Second
	}
	if chance(0.4) {
		f.AuthFail = 0.2
	}
	return p
}

// Calm is the same job with nothing going wrong, on one server, one shard and
// one worker: the run that all others must equal.
func (p Plan) Calm() Plan {
	p.Servers, p.Shards, p.Workers = 1, 1, 1
	p.Faults = Faults{MinDelay: time.Millisecond, MaxDelay: time.Millisecond}
	return p
}

// String names the schedule in one line.
func (p Plan) String() string {
	return fmt.Sprintf("seed %d: %s, %v, staleness %d, %d steps, cut every %d, %d servers, %d shards, %d workers, %d ranks, on_loss %s, loss %.2f, worker crash %v, server crash %v",
		p.Seed, p.Rule, p.Mode, p.Staleness, p.Steps, p.CutEvery, p.Servers, p.Shards, p.Workers, p.Ranks, p.OnLoss, p.Faults.Loss, p.Faults.WorkerCrash, p.Faults.ServerCrash)
}

// rule makes the update rule, the aggregation and the schedule of the plan.
func (p Plan) rule() (optim.Rule[float32], aggregate.Rule[float32], func(uint64) float64, error) {
	r, err := optim.New[float32](p.Rule, p.Hyper)
	if err != nil {
		return nil, nil, nil, err
	}
	a, err := aggregate.New[float32]("mean", map[string]any{"by": "examples"})
	lr := p.Hyper["lr"].(float64)
	return r, a, func(uint64) float64 { return lr }, err
}

// gradient fills g with the synthetic gradient of (rank, step) at params: a
// pure function, so that a recomputed contribution has the same bits.
func (p Plan) gradient(g, params []float32, rank int, step uint64) (loss, examples float64) {
	k := rng.New(p.Seed, "gradient").With(uint64(rank)).With(step)
	for i := range g {
		u := k.Uint64(uint64(i))
		if p.Mode == shard.Async {
			g[i] = float32(int(u%17)-8) * 0x1p-8
			continue
		}
		g[i] = float32(float32(u>>40)*0x1p-24) - 0.5 + float32(0.1*params[i])
	}
	n := float64(len(g))
	return k.Float64(uint64(len(g))) + float64(step)/n, float64(1 + rank%3)
}
