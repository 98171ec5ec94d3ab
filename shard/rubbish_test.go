package shard

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/optim"
)

// Whatever arrives, in whatever order, nothing panics, all memory comes back,
// and what is handed out is finite.
func TestRubbish(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := sgdJob(t, 2, 3)
		cfg.CutEvery, cfg.RankState, cfg.NullBad = 1, rapid.Bool().Draw(t, "states"), rapid.Bool().Draw(t, "null")
		cfg.Broadcast = rapid.Bool().Draw(t, "broadcast")
		cfg.Mode = rapid.SampledFrom([]Mode{Streaming, ByReduction, ByDecision, Async}).Draw(t, "mode")
		rubbishRule(t, &cfg)
		s := newStory(t, cfg, 2)
		s.auto = false
		for range rapid.IntRange(20, 150).Draw(t, "messages") {
			k := rapid.IntRange(0, 1).Draw(t, "to")
			h, tail := rubbish(t, s, k)
			s.send(k, h, tail)
			if rapid.Bool().Draw(t, "settle") {
				s.settle()
			}
			if rapid.IntRange(0, 9).Draw(t, "honest") == 0 {
				s.honest(k)
			}
			if rapid.IntRange(0, 4).Draw(t, "tick") == 0 {
				s.tick(time.Duration(rapid.IntRange(0, 1000).Draw(t, "time")) * time.Millisecond)
			}
			s.params = map[place]string{} // timelines begin again
		}
		// Everything is thrown away by a timeline without these owners.
		for _, sh := range s.shards {
			sh.Decide(&ledger.Decision{N: sh.led.N + 1, Kind: ledger.Begin, Timeline: sh.led.Timeline + 1}, s.now)
		}
		s.balanced()
	})
}

// honest pushes what shard k waits for, so that there is something to disturb.
func (s *story) honest(k int) {
	s.sparse = s.shards[k].spec.Runs && !s.cfg.Half && !s.cfg.Dense && s.now%2 == 0
	for rank := range s.cfg.Ranks {
		step := s.shards[k].chunks[0].version
		if s.cfg.Mode == Async {
			step = s.shards[k].applied[rank]
		}
		s.push(s.contribute(rank, step))
	}
}

// rubbishRule draws a rule that may close as the job does: with roles that some
// steps have, runs of parameters, half-precision numbers, a point of evaluation
// of its own, two phases or gradients at two versions.
func rubbishRule(t *rapid.T, cfg *Config) {
	rules := []string{"sgd", "adagrad", "sophia_g", "schedule_free_sgd"}
	switch cfg.Mode {
	case Async:
		cfg.Staleness = -1
	case ByReduction:
		rules = append(rules, "sums", "sam", "oasis", "spider")
	default:
		cfg.Staleness = rapid.IntRange(0, 1).Draw(t, "staleness")
	}
	switch name := rapid.SampledFrom(rules).Draw(t, "rule"); name {
	case "sums":
		cfg.Rule = sumsRule{}
	case "sophia_g":
		cfg.Rule = newRule(t, name, map[string]any{"hessian_interval": 2})
	case "spider":
		cfg.Rule = newRule(t, name, map[string]any{"period": 2})
	default:
		cfg.Rule = newRule(t, name, nil)
	}
	cfg.Steps *= uint64(len(cfg.Rule.Spec().Phases))
	cfg.EvalEvery = uint64(rapid.IntRange(0, 2).Draw(t, "evaluated"))
	cfg.Half, cfg.Dense = rapid.IntRange(0, 3).Draw(t, "half") == 0, rapid.IntRange(0, 5).Draw(t, "dense") == 0
}

// rubbishRuns are the runs of a push and what is wrong with them, if anything.
func rubbishRuns(t *rapid.T, x []float32) ([]byte, int) {
	var runs []wire.Run
	for lo := rapid.IntRange(0, 3).Draw(t, "first run"); lo < len(x); {
		hi := min(len(x), lo+rapid.IntRange(1, 4).Draw(t, "run"))
		runs = append(runs, wire.Run{Lo: lo, Hi: hi})
		lo = hi + rapid.IntRange(1, 5).Draw(t, "gap")
	}
	tail, n := wire.AppendRuns(nil, runs, x)
	if rapid.IntRange(0, 10).Draw(t, "wild run") == 0 {
		at := rapid.IntRange(0, len(tail)/4-1).Draw(t, "at") * 4
		binary.LittleEndian.PutUint32(tail[at:], rapid.SampledFrom([]uint32{0, 1, 7, 8, 9, 1 << 31, math.MaxUint32}).Draw(t, "number"))
	}
	return tail, n
}

// rubbish is a message that is right in most fields and wild in some.
func rubbish(t *rapid.T, s *story, k int) (wire.Header, []byte) {
	sh := s.shards[k]
	near := func(name string, right uint64) uint64 {
		if rapid.IntRange(0, 60).Draw(t, name+" wild") > 0 {
			return right
		}
		return rapid.SampledFrom([]uint64{0, right - 1, right + 1, right + 2, 1 << 31, math.MaxUint32, math.MaxUint64}).Draw(t, name)
	}
	rank := rapid.IntRange(0, 1).Draw(t, "rank")
	ci := rapid.IntRange(sh.cfg.Chunks.Lo, sh.cfg.Chunks.Hi-1).Draw(t, "chunk")
	step := sh.chunks[ci-sh.cfg.Chunks.Lo].version
	if s.cfg.Mode == Async {
		step = sh.applied[rank]
	}
	m, _ := sh.led.Member(rank)
	n := s.cfg.Layout.Chunk(ci).Len()
	kind := wire.Push
	if rapid.IntRange(0, 2).Draw(t, "other kind") == 0 {
		kind = wire.Kind(rapid.IntRange(1, int(wire.NumKinds)).Draw(t, "kind"))
	}
	h := wire.Header{Kind: kind, Job: testJob, Worker: m.Worker, Incarnation: near("inc", m.Incarnation),
		Timeline: near("timeline", sh.led.Timeline), View: near("view", sh.led.View), Shard: uint32(near("shard", uint64(k))), Epoch: near("epoch", sh.cfg.Epoch),
		Rank: uint32(near("rank", uint64(rank))), Step: near("step", step), Phase: uint8(near("phase", uint64(sh.phaseOf(step)))), Pass: uint8(near("pass", uint64(sh.red.stage))),
		Pulled: near("pulled", step), Role: optim.Role(near("role", uint64(rapid.SampledFrom(rolesOf(&sh.cfg, step)).Draw(t, "role")))), Chunk: uint32(near("chunk", uint64(ci))), Chunks: 10,
		Point: optim.Point(near("point", uint64(rapid.IntRange(0, 1).Draw(t, "point")))), Count: uint32(near("count", uint64(n))), Examples: 1, Hi: near("hi", 0), Seq: near("seq", sh.led.N+1)}
	wild := float32(1)
	if rapid.IntRange(0, 20).Draw(t, "not finite") == 0 {
		wild = rapid.SampledFrom([]float32{float32(math.NaN()), float32(math.Inf(1))}).Draw(t, "wild")
	}
	x := rapid.SliceOfN(rapid.SampledFrom([]float32{0, 1, -2, 3, 4, 5, 6, 7, math.MaxFloat32, wild}), n, n).Draw(t, "tail")
	tail := wire.Bytes32(x)
	switch {
	case rapid.IntRange(0, 8).Draw(t, "null") == 0:
		h.Encoding, h.Examples, tail = wire.Null, float64(near("weight of nothing", 0)), nil
	case sh.cfg.Half:
		half := make([]uint16, n)
		wire.ToHalf(half, x)
		h.Encoding, tail = wire.BF16, wire.BytesHalf(half)
	case sh.spec.Runs && rapid.Bool().Draw(t, "sparse"):
		var count int
		tail, count = rubbishRuns(t, x)
		h.Encoding, h.Count = wire.Rows, uint32(near("numbers", uint64(count)))
	}
	h.Encoding = wire.Encoding(near("encoding", uint64(h.Encoding)))
	switch h.Kind {
	case wire.News:
		tail = rubbishDecision(t, s, sh).Encode()
		h.Seq = sh.led.N + 1
	case wire.Partial:
		h.Shard, h.Epoch = uint32(near("from", uint64(1-k))), near("its epoch", uint64(testEpoch+1-k))
		if pass, _, ok := sh.stagePass(h.Step, int(h.Pass)); ok && len(pass.Reduce) >= 0 {
			h.Count = uint32(near("count", uint64(sh.listLen(partKey{h.Step, int(h.Pass), 1 - k}))))
			tail = wire.Bytes64(make([]float64, min(h.Count, 1<<12)))
		}
	}
	if rapid.IntRange(0, 60).Draw(t, "cut") == 0 {
		tail = tail[:rapid.IntRange(0, len(tail)).Draw(t, "length")]
	}
	tail = slices.Clone(tail)
	h.CRC = uint32(near("crc", uint64(wire.Checksum(tail))))
	return h, tail
}

func rubbishDecision(t *rapid.T, s *story, sh *Shard) *ledger.Decision {
	d := &ledger.Decision{N: sh.led.N + 1, Timeline: sh.led.Timeline, Step: uint64(rapid.IntRange(0, 5).Draw(t, "step")), View: sh.led.View + 1,
		Kind: rapid.SampledFrom([]ledger.Kind{ledger.Begin, ledger.View, ledger.Close, ledger.Cut, ledger.Stop, ledger.Finish, ledger.Halt, "other"}).Draw(t, "decision")}
	if d.Kind == ledger.Begin {
		d.Timeline, d.Epochs = sh.led.Timeline+1, s.epochs()
		if rapid.Bool().Draw(t, "from a cut") {
			d.CutTimeline = sh.led.Timeline
		}
	}
	for range rapid.IntRange(0, 4).Draw(t, "ranks") {
		d.Ranks = append(d.Ranks, ledger.Member{Worker: rapid.SampledFrom([]string{"", "w0", "w1"}).Draw(t, "worker"), Incarnation: 1})
		d.Out = append(d.Out, rapid.Bool().Draw(t, "out"))
	}
	return d
}
