package job

import (
	"fmt"
	"math"
	"time"

	"tributary/aggregate"
	"tributary/layout"
	"tributary/optim"
	"tributary/shard"
)

// Pipeline is a job compiled into what its parts are made of: how a step
// closes, what it costs, what can be relied on. [Pipeline.Explain] says it in
// words. It is read only.
type Pipeline struct {
	Spec   *Spec
	Layout *layout.Layout
	Rule   optim.Rule[float32]
	Agg    aggregate.Rule[float32]
	LR     optim.Schedule
	Mode   shard.Mode
	Shards int // as many as asked for, or as there are chunks
	Ranks  int
	// Phases is the number of pushes per update, Steps that of steps of the
	// protocol, each of which is one phase of an update.
	Phases uint64
	Steps  uint64
	Keep   int // cuts kept
	// Broadcast: new parameters go to all workers unasked. Large models are
	// pulled instead, chunk by chunk with credit (C14).
	Broadcast bool
	Sparse    bool  // contributions may name runs of parameters
	Window    int   // chunks of one rank and step in flight to one shard
	Staged    int64 // bytes of contributions one server may have to hold
}

const (
	// maxBroadcast is half of what a subscription may queue: beyond it a worker
	// that is slow for a moment would lose parameters.
	maxBroadcast = 128 << 20
	// inFlight is what all ranks together may have in flight to one server:
	// well below what a broker queues for a connection before it cuts it off.
	inFlight   = 64 << 20
	maxCredits = 8
	bytesF32   = 4
	bytesBF16  = 2
)

// Compile checks a record and works out how its job runs. The error, if any,
// is a [Problems] or wraps [ErrRecord].
func Compile(r *Record) (*Pipeline, error) {
	s := r.Spec
	if err := s.Validate(); err != nil {
		return nil, err
	}
	p := &Pipeline{Spec: s, Ranks: s.RankCount(), Keep: s.Checkpoint.Keep}
	var err error
	c := &checker{}
	tensors := s.Optimizer.assign(c, r.Tensors)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	if p.Layout, err = layout.New(tensors, s.Chunk); err != nil {
		return nil, fmt.Errorf("job %q: %w", r.Name, err)
	}
	if p.Rule, err = s.NewRule(); err != nil {
		return nil, err
	}
	if p.Agg, err = s.NewAggregate(); err != nil {
		return nil, err
	}
	if p.LR, err = s.NewSchedule(); err != nil {
		return nil, err
	}
	p.Phases = uint64(len(p.Rule.Spec().Phases))
	p.Steps = s.Steps * p.Phases
	p.Shards = len(p.Layout.Shards(s.ShardCount()))
	if len(r.Owners) > 0 && len(r.Owners) != p.Shards {
		return nil, fmt.Errorf("%w: %d shards and %d owners", ErrRecord, p.Shards, len(r.Owners))
	}
	p.Mode = s.mode(p.Rule.Spec(), p.Agg.Spec(p.Ranks))
	// The workers of built-in models name all parameters, but for the sparse one.
	p.Sparse = p.Rule.Spec().Runs && s.Encoding != BF16 && (s.Model.Kind == "tensors" || s.Model.Kind == "sparse")
	p.Broadcast = p.Mode != shard.Async && int64(p.Layout.P)*bytesF32 <= maxBroadcast
	p.Window = p.window()
	if p.Staged = p.staged(); p.Staged > int64(s.MemoryBudget) {
		return nil, Problems{{Path: "memory_budget", Text: p.overBudget()}}
	}
	return p, nil
}

// mode is how steps close (C3, C11).
func (s *Spec) mode(rule *optim.Spec, agg *aggregate.Spec) shard.Mode {
	switch {
	case s.Staleness < 0:
		return shard.Async
	case s.OnLoss == Shrink || !s.Recompute || s.unpinned():
		return shard.ByDecision
	case rule.Reductions() > 0 || len(agg.Passes) > 0:
		return shard.ByReduction
	}
	return shard.Streaming
}

// unpinned says whether a rank may compute a step on one of several versions:
// whoever computes it again may take another one, so that a shard may not close
// a chunk before all shards agreed on whose contribution counts (C3).
func (s *Spec) unpinned() bool { return s.Staleness > 0 && !s.Pinned }

// perServer is the largest number of shards that one server gets.
func (p *Pipeline) perServer() int { return (p.Shards + p.Spec.Servers - 1) / p.Spec.Servers }

// depth is how many steps of a rank may be under way. Each has a window of its
// own: if they shared one, a step could wait for credit that only it returns.
func (p *Pipeline) depth() int64 { return int64(max(p.Spec.Staleness, 0) + 1) }

// chunkBytes is the size of a full chunk in all roles that are pushed.
func (p *Pipeline) chunkBytes() int64 {
	size := int64(bytesF32)
	if p.Spec.Encoding == BF16 {
		size = bytesBF16
	}
	return int64(p.Layout.ChunkLen) * size * int64(len(p.Rule.Spec().AllRoles()))
}

// stagedBytes is the most memory that a full chunk takes, in all roles, while
// it is staged: runs of single parameters take more than all numbers do.
func (p *Pipeline) stagedBytes() int64 {
	if p.Sparse {
		return int64(p.Layout.ChunkLen) * shard.RowsBytes
	}
	return p.chunkBytes()
}

// window is the job's, or as many chunks as keep what is in flight to a server
// below inFlight.
func (p *Pipeline) window() int {
	if p.Spec.Window > 0 {
		return p.Spec.Window
	}
	n := inFlight / (p.chunkBytes() * int64(p.Ranks) * p.depth() * int64(p.perServer()))
	return int(max(1, min(n, maxCredits)))
}

// stagedChunks is how many chunks of one rank and step a shard may hold: all
// of them unless chunks are applied as they come.
func (p *Pipeline) stagedChunks() int {
	perShard := (p.Layout.Chunks() + p.Shards - 1) / p.Shards
	if p.Mode == shard.Streaming {
		return min(perShard, p.Window)
	}
	return perShard
}

// staged bounds the bytes of contributions that one server holds at a time.
func (p *Pipeline) staged() int64 {
	n := int64(1)
	for _, f := range []int64{int64(p.Ranks), p.depth(), int64(p.perServer()), int64(p.stagedChunks()), p.stagedBytes()} {
		if n > math.MaxInt64/f {
			return math.MaxInt64 // beyond every budget
		}
		n *= f
	}
	return n
}

func (p *Pipeline) overBudget() string {
	return fmt.Sprintf("%d ranks × %d steps × %d shards per server × %d chunks × %v = %v of contributions on one server exceed the budget of %v: use more servers, fewer ranks or a larger budget",
		p.Ranks, max(p.Spec.Staleness, 0)+1, p.perServer(), p.stagedChunks(), Bytes(p.stagedBytes()), Bytes(p.Staged), p.Spec.MemoryBudget)
}

// ShardConfig is what shard k is made for; the driver adds epoch and clock.
func (p *Pipeline) ShardConfig(k int) shard.Config {
	s := p.Spec
	return shard.Config{
		Job: s.Name, ID: k, Shards: p.Shards, Layout: p.Layout, Chunks: p.Layout.Shards(p.Shards)[k],
		Rule: p.Rule, Agg: p.Agg, LR: p.LR, Ranks: p.Ranks, Staleness: s.Staleness, Mode: p.Mode,
		Steps: p.Steps, CutEvery: s.Checkpoint.Every * p.Phases, EvalEvery: s.Eval.Every * p.Phases, Half: s.Encoding == BF16, Dense: !p.Sparse, RankState: s.RankState, Window: p.Window,
		Broadcast: p.Broadcast, Seed: s.Seed, NullBad: s.OnBad == "null",
	}
}

// CoordConfig is what the coordinator is made for; the driver adds the nonce
// and the record.
func (p *Pipeline) CoordConfig() CoordConfig {
	s := p.Spec
	return CoordConfig{
		Job: s.Name, Ranks: p.Ranks, Workers: s.Workers, Shards: p.Shards, Steps: p.Steps, Phases: p.Phases, Mode: p.Mode, OnLoss: s.OnLoss,
		WorkerTimeout: time.Duration(s.Timeouts.Worker), StartTimeout: time.Duration(s.Timeouts.Start),
	}
}
