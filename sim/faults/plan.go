package faults

import (
	"fmt"
	"strings"
	"time"

	"tributary/client"
	"tributary/comm/wire"
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
	Workers   int // the job waits for so many
	Late      int // so many more come while it runs
	Ranks     int
	Steps     uint64
	CutEvery  uint64
	Phases    uint64 // of the rule; Steps and CutEvery count its phases
	Half      bool   // contributions travel as bfloat16
	Sparse    bool   // contributions name runs of parameters
	EvalEvery uint64 // the point of evaluation is read every so many steps; 0: never
	Keep      int    // cuts kept on disk
	Chunk     int
	Tensors   []layout.Tensor
	Rule      string
	Hyper     map[string]any
	LR        float64
	Mode      shard.Mode
	Staleness int
	Pinned    bool
	Broadcast bool
	RankState bool
	Recompute bool    // workers compute the same bits again
	Nulls     float64 // chance that a contribution is an explicit null
	Window    int
	OnLoss    job.OnLoss
	Stop      time.Duration // somebody asks the job to stop; 0: nobody
	Resume    bool          // and, once it has stopped, to go on
	Faults    Faults
}

// Faults says how often what goes wrong. A mean time is between two such events
// on one node; 0 means never.
type Faults struct {
	Loss, Repeat, Slow float64
	Stale              float64 // chance that a message arrives again when its world has passed
	MinDelay, MaxDelay time.Duration
	Partition, Pause   time.Duration // mean time
	WorkerCrash        time.Duration // mean time; workers then also crash in mid-push
	Leave, Replace     time.Duration // mean time
	ServerCrash        time.Duration // mean time
	CutCrash           float64       // chance that a server crashes when a cut was recorded
	Depose             float64       // chance that a server's old process goes on after its restart
	CoordRestart       time.Duration // mean time
	AuthFail           float64       // a compare-and-set times out: done, not done or done later
	Rot                float64       // chance that a server finds its part of the newest cut damaged
	Disk               time.Duration // longest half of a write
	Skew               bool          // clocks differ
	Until              time.Duration // faults end here
}

const maxShards = 8

// Exact says whether every number depends on the job alone, so that it must
// equal the undisturbed run's.
func (p *Plan) Exact() bool {
	return p.OnLoss != job.Shrink && p.Recompute && (p.Staleness <= 0 || p.Pinned)
}

// dice draws the numbers of a plan.
type dice struct {
	key rng.Key
	n   uint64
}

func (d *dice) pick(lo, hi int) int { d.n++; return lo + d.key.IntN(d.n, hi-lo+1) }

func (d *dice) chance(p float64) bool { d.n++; return d.key.Float64(d.n) < p }

func (d *dice) seconds(lo, hi int) time.Duration { return time.Duration(d.pick(lo, hi)) * time.Second }

// NewPlan draws the schedule of a seed.
func NewPlan(seed uint64) Plan {
	d := &dice{key: rng.New(seed, "faults")}
	p := Plan{
		Seed: seed, Servers: d.pick(1, 3), Shards: d.pick(1, maxShards-1), Workers: d.pick(1, 4), Ranks: d.pick(1, 5),
		Steps: uint64(d.pick(5, 20)), CutEvery: uint64(d.pick(0, 5)), Keep: d.pick(1, 3), Chunk: []int{8, 16, 32}[d.pick(0, 2)],
		Window: d.pick(1, 4), Broadcast: d.chance(0.5), RankState: d.chance(0.4), OnLoss: job.Reassign, Recompute: true,
	}
	p.Workers = min(p.Workers, p.Ranks)
	if d.chance(0.4) {
		p.Late = d.pick(1, 2)
	}
	if d.chance(0.3) {
		p.Nulls = 0.2
	}
	p.Tensors = []layout.Tensor{
		{Name: "w", Shape: []int{d.pick(3, 9), d.pick(3, 9)}, Init: layout.Init{Kind: layout.Uniform, Scale: 0.5}},
		{Name: "b", Shape: []int{d.pick(1, 12)}, NoDecay: true, Init: layout.Init{Kind: layout.Normal, Scale: 0.1}},
		{Name: "stat", Shape: []int{3}, Buffer: true, Init: layout.Init{Kind: layout.Constant, Scale: 1}},
		{Name: "out", Shape: []int{d.pick(2, 5), d.pick(2, 8)}, Init: layout.Init{Kind: layout.Uniform, Scale: 0.3}},
	}
	p.Phases = 1
	p.drawRule(d)
	p.Steps, p.CutEvery = p.Steps*p.Phases, p.CutEvery*p.Phases
	p.drawFaults(d)
	return p
}

// drawRule chooses how steps close and an update rule that may close so.
func (p *Plan) drawRule(d *dice) {
	elementwise := func() {
		switch d.pick(0, 6) {
		case 0:
			p.Rule, p.LR, p.Hyper = "sgd", 0.05, map[string]any{"momentum": 0.9, "nesterov": true}
		case 1:
			p.Rule, p.LR = "adamw", 0.01
			p.Half = d.chance(0.5)
		case 2: // contributions that name runs
			p.Rule, p.LR, p.Sparse = "adagrad", 0.05, true
		case 3: // a role that some steps have
			p.Rule, p.LR, p.Hyper = "sophia_g", 0.01, map[string]any{"hessian_interval": 3}
		case 4: // gradients at two versions, without sums over shards
			p.Rule, p.LR, p.Hyper = "spider", 0.05, map[string]any{"period": 4, "normalized": false}
		case 5: // what is evaluated is another point than what is trained
			p.Rule, p.LR, p.EvalEvery = "schedule_free_sgd", 0.05, uint64(d.pick(1, 3))
		default:
			p.Rule, p.LR = twoRoles, 0.05
		}
	}
	switch r := d.pick(0, 9); {
	case r < 4:
		p.Mode = shard.Streaming
		elementwise()
	case r < 6:
		p.Mode, p.Rule, p.LR = shard.ByReduction, allSums, 0.02
		switch d.pick(0, 5) {
		case 0:
			p.Rule, p.LR = "lamb", 0.01
		case 1, 3: // two pushes per update
			p.Rule, p.LR, p.Phases, p.Hyper = "sam", 0.05, 2, map[string]any{"base_hyper": map[string]any{"momentum": 0.9}}
		case 2: // gradients at two versions
			p.Rule, p.LR = "oasis", 0.01
		}
	case r < 8:
		p.Mode = shard.ByDecision
		elementwise()
	default:
		// Order changes the bits of an asynchronous run unless all sums are
		// exact; with these gradients and this rate they are.
		p.Mode, p.Staleness, p.Rule, p.LR = shard.Async, -1, "sgd", 0x1p-6
		for i := range p.Tensors {
			p.Tensors[i].Init = layout.Init{}
		}
	}
	if p.Mode != shard.Async && p.Rule != "sam" && p.Rule != "oasis" && p.Rule != "spider" && d.chance(0.35) {
		p.Staleness = d.pick(1, 2)
		p.Pinned = d.chance(0.8) || p.Mode != shard.ByDecision // as jobs are compiled
	}
	switch r := d.pick(0, 9); {
	case r < 2:
		p.OnLoss = job.Wait
	case p.Mode == shard.ByDecision && r < 4:
		p.OnLoss = job.Shrink
	case p.Mode == shard.ByDecision && r < 6:
		p.Recompute = false
	}
}

func (p *Plan) drawFaults(d *dice) {
	f := &p.Faults
	f.MinDelay, f.MaxDelay = 100*time.Microsecond, time.Duration(d.pick(1, 20))*time.Millisecond
	f.Loss, f.Repeat, f.Slow = 0.01*float64(d.pick(0, 12)), 0.01*float64(d.pick(0, 12)), 0.01*float64(d.pick(0, 4))
	if d.chance(0.5) {
		f.Stale = 0.02 * float64(d.pick(1, 4))
	}
	f.Until = d.seconds(5, 30)
	f.Disk = time.Duration(d.pick(0, 200)) * time.Millisecond
	f.Skew = d.chance(0.7)
	sometimes := func(p float64, mean *time.Duration, lo, hi int) {
		if t := d.seconds(lo, hi); d.chance(p) {
			*mean = t
		}
	}
	sometimes(0.6, &f.WorkerCrash, 1, 8)
	sometimes(0.3, &f.Leave, 2, 10)
	sometimes(0.2, &f.Replace, 2, 10)
	sometimes(0.3, &f.Partition, 2, 10)
	sometimes(0.3, &f.Pause, 2, 10)
	sometimes(0.5, &f.ServerCrash, 1, 10)
	sometimes(0.25, &f.CoordRestart, 1, 8)
	if f.ServerCrash > 0 && d.chance(0.6) {
		f.CutCrash = 0.3
	}
	if d.chance(0.3) {
		f.Depose = 0.5
	}
	if d.chance(0.4) {
		f.AuthFail = 0.2
	}
	if d.chance(0.15) {
		f.Rot = 0.3
	}
	if d.chance(0.15) {
		p.Stop, p.Resume = d.seconds(1, 8), d.chance(0.5)
	}
}

// Calm is the same job with nothing going wrong, on one server, one shard and
// one worker, with a cut at every step: what all other runs must equal.
func (p Plan) Calm() Plan {
	p.Servers, p.Shards, p.Workers, p.Late, p.CutEvery, p.Keep, p.Stop = 1, 1, 1, 0, p.Phases, 1<<30, 0
	p.Resume = false
	p.Broadcast = false
	p.Faults = Faults{MinDelay: time.Millisecond, MaxDelay: time.Millisecond}
	return p
}

// String names the schedule in one line.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %v, staleness %d", p.Rule, p.Mode, p.Staleness)
	add := func(on bool, text string, args ...any) {
		if on {
			fmt.Fprintf(&b, ", "+text, args...)
		}
	}
	add(p.Pinned, "pinned")
	add(p.Half, "bf16")
	add(p.Sparse, "sparse")
	add(p.EvalEvery > 0, "evaluated every %d", p.EvalEvery)
	add(true, "%d steps, cut every %d, keep %d, %d servers, %d shards, %d+%d workers, %d ranks, on_loss %s", p.Steps, p.CutEvery, p.Keep,
		p.Servers, p.Shards, p.Workers, p.Late, p.Ranks, p.OnLoss)
	add(p.RankState, "rank states")
	add(!p.Recompute, "no recomputing")
	add(p.Nulls > 0, "nulls")
	add(p.Broadcast, "broadcast")
	add(p.Stop > 0, "stop after %v", p.Stop)
	add(p.Resume, "resume")
	f := &p.Faults
	add(true, "loss %.2f, repeat %.2f, slow %.2f, stale %.2f", f.Loss, f.Repeat, f.Slow, f.Stale)
	for _, x := range []struct {
		name string
		mean time.Duration
	}{{"partition", f.Partition}, {"pause", f.Pause}, {"worker crash", f.WorkerCrash}, {"leave", f.Leave}, {"replace", f.Replace},
		{"server crash", f.ServerCrash}, {"coordinator restart", f.CoordRestart}} {
		add(x.mean > 0, "%s %v", x.name, x.mean)
	}
	add(f.CutCrash > 0, "crash at cuts")
	add(f.Depose > 0 && f.ServerCrash > 0, "depose")
	add(f.AuthFail > 0, "failing authority")
	add(f.Rot > 0 && f.ServerCrash > 0, "rot")
	return b.String()
}

// contribution computes what rank pushes for a step: a pure function of rank,
// step, parameters and the rank's state, so that whoever computes it again gets
// the same bits; except in a plan without Recompute, where no two computations
// agree. It also makes the rank's next state, a hash of its whole past.
func (p *Plan) contribution(w *world, job *client.Work, rank int, state []byte) client.Contribution {
	c := client.Contribution{Rank: rank, Step: job.Step, Version: job.Version, Examples: float64(1 + rank%3)}
	k := rng.New(p.Seed, "gradient").With(uint64(rank)).With(job.Step).WithString(string(state))
	if p.RankState {
		past := k
		if p.Mode != shard.Async {
			past = past.With(uint64(wire.Checksum(wire.Bytes32(job.Params))))
		}
		c.State = fmt.Appendf(nil, "rank %d step %d: %016x", rank, job.Step+1, past.Uint64(0))
	}
	if !p.Recompute {
		k = k.With(uint64(w.intn(1 << 30)))
	}
	c.Loss = k.WithString("loss").Float64(0)
	if k.WithString("null").Float64(0) < p.Nulls {
		c.Null, c.Examples, c.Loss = true, 0, 0
		return c
	}
	for _, role := range job.Roles {
		x := p.tensor(k.WithString(role.String()), job.Params)
		if role == optim.Grad {
			c.Grad = x
			continue
		}
		if c.Extra == nil {
			c.Extra = map[optim.Role][]float32{}
		}
		if c.Extra[role] = x; role == optim.GradPrev { // the previous version must reach the sum
			for i := range x {
				x[i] += float32(0.125 * job.Prev[i])
			}
		}
	}
	if p.Sparse {
		c.Runs = []layout.Range{}
		for lo := k.IntN(1<<40, 4); lo < len(c.Grad); {
			hi := min(len(c.Grad), lo+1+k.IntN(1<<41+uint64(lo), 6))
			c.Runs = append(c.Runs, layout.Range{Lo: lo, Hi: hi})
			lo = hi + 1 + k.IntN(1<<42+uint64(lo), 12)
		}
	}
	return c
}

func (p *Plan) tensor(k rng.Key, params []float32) []float32 {
	g := make([]float32, len(params))
	for i := range g {
		u := k.Uint64(uint64(i))
		if p.Mode == shard.Async {
			g[i] = float32(int(u%17)-8) * 0x1p-8
			continue
		}
		g[i] = float32(float32(u>>40)*0x1p-24) - 0.5 + float32(0.1*params[i])
	}
	return g
}
