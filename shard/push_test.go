package shard

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/optim"
)

// A push that comes again, before or after its step closed, by whatever way, is
// applied once and acknowledged every time it could have been lost.
func TestPushedTwice(t *testing.T) {
	for _, mode := range []Mode{Streaming, ByReduction, ByDecision} {
		cfg := sgdJob(t, 2, 2)
		cfg.Mode = mode
		s := newStory(t, cfg, 2)
		x := newTwin(s.cfg)
		zero := s.contribute(0, 0)
		s.push(zero)
		s.push(zero) // on another way
		if got := s.shards[0].stats.Duplicates + s.shards[1].stats.Duplicates; got != 10 {
			t.Errorf("%v: %d duplicates noticed, want 10", mode, got)
		}
		s.at(0)
		s.push(s.contribute(1, 0))
		s.at(1)
		x.step(zero, s.contribute(1, 0))
		s.equal(x)
		before := s.dump()
		s.acks = nil
		s.push(s.contribute(1, 0), zero)
		if s.dump() != before {
			t.Errorf("%v: a contribution that is applied changed the model", mode)
		}
		if len(s.acks) != 20 || slices.ContainsFunc(s.acks, func(h wire.Header) bool { return h.Code != wire.ErrDuplicate || h.Level != wire.LevelApplied }) {
			t.Errorf("%v: answers to applied contributions: %+v", mode, s.acks)
		}
		s.step(1)
		x.step(s.contribute(0, 1), s.contribute(1, 1))
		s.equal(x)
		s.balanced()
	}
}

// A duplicate of one rank never stands in for another rank.
func TestSetNotCount(t *testing.T) {
	s := newStory(t, sgdJob(t, 3, 1), 1)
	s.push(s.contribute(0, 0), s.contribute(0, 0), s.contribute(0, 0), s.contribute(1, 0))
	s.at(0)
	s.push(s.contribute(2, 0))
	s.at(1)
}

// Credit: a streaming shard answers when the chunk is applied, one that closes
// atomically when it is staged, each with the window.
func TestAcknowledgement(t *testing.T) {
	for mode, want := range map[Mode]wire.Level{Streaming: wire.LevelApplied, ByReduction: wire.LevelStaged, ByDecision: wire.LevelStaged} {
		cfg := sgdJob(t, 2, 1)
		cfg.Mode = mode
		s := newStory(t, cfg, 2)
		s.push(s.contribute(0, 0))
		if mode == Streaming && len(s.acks) > 0 {
			t.Errorf("acknowledged before applied: %+v", s.acks[0])
		}
		s.push(s.contribute(1, 0))
		if len(s.acks) != 20 {
			t.Errorf("%v: %d answers to 20 chunks", mode, len(s.acks))
		}
		for _, h := range s.acks {
			if h.Level != want || h.Credit != uint32(cfg.Window) || h.Code != wire.OK {
				t.Errorf("%v: answer %+v, want level %d", mode, h, want)
			}
		}
	}
}

// Whatever is refused has its own code and leaves no trace. The shard is at
// view 2, in which w1 is incarnation 2 and rank 0 is out, on timeline 2.
func TestRefusals(t *testing.T) {
	number := func(bits uint32) func(*wire.Header, []byte) []byte {
		return func(h *wire.Header, tail []byte) []byte {
			binary.LittleEndian.PutUint32(tail[len(tail)-4:], bits)
			h.CRC = wire.Checksum(tail)
			return tail
		}
	}
	head := func(f func(*wire.Header)) func(*wire.Header, []byte) []byte {
		return func(h *wire.Header, tail []byte) []byte { f(h); return tail }
	}
	cut := func(n int) func(*wire.Header, []byte) []byte {
		return func(h *wire.Header, tail []byte) []byte {
			tail = tail[:n]
			h.CRC, h.Count = wire.Checksum(tail), uint32(n/4)
			return tail
		}
	}
	cases := []struct {
		name string
		code wire.Code
		do   func(h *wire.Header, tail []byte) []byte
	}{
		{"foreign job", wire.ErrUnknownJob, head(func(h *wire.Header) { h.Job = "other" })},
		{"other shard", wire.ErrNotOwner, head(func(h *wire.Header) { h.Shard = 0 })},
		{"stale timeline", wire.ErrStaleTimeline, head(func(h *wire.Header) { h.Timeline = 1 })},
		{"timeline to come", wire.ErrAhead, head(func(h *wire.Header) { h.Timeline = 3 })},
		{"stale epoch", wire.ErrStaleEpoch, head(func(h *wire.Header) { h.Epoch-- })},
		{"epoch of a later owner", wire.ErrNotOwner, head(func(h *wire.Header) { h.Epoch++ })},
		{"rank beyond", wire.ErrBadShape, head(func(h *wire.Header) { h.Rank = 3 })},
		{"rank far beyond", wire.ErrBadShape, head(func(h *wire.Header) { h.Rank = math.MaxUint32 })},
		{"chunk of another shard", wire.ErrBadShape, head(func(h *wire.Header) { h.Chunk = 0 })},
		{"chunk beyond", wire.ErrBadShape, head(func(h *wire.Header) { h.Chunk = 10 })},
		{"chunk far beyond", wire.ErrBadShape, head(func(h *wire.Header) { h.Chunk = math.MaxUint32 })},
		{"role not asked for", wire.ErrBadShape, head(func(h *wire.Header) { h.Role = optim.Delta })},
		{"role unknown", wire.ErrBadShape, head(func(h *wire.Header) { h.Role = 255 })},
		{"phase", wire.ErrBadShape, head(func(h *wire.Header) { h.Phase = 1 })},
		{"after the end", wire.ErrReadOnly, head(func(h *wire.Header) { h.Step = 5 })},
		{"long after the end", wire.ErrReadOnly, head(func(h *wire.Header) { h.Step = math.MaxUint64 })},
		{"too far ahead", wire.ErrAhead, head(func(h *wire.Header) { h.Step = 1 })},
		{"view to come", wire.ErrAhead, head(func(h *wire.Header) { h.View, h.Worker = 3, "w9" })},
		{"stale view", wire.ErrStaleView, head(func(h *wire.Header) { h.View, h.Worker = 1, "w0" })},
		{"stale incarnation", wire.ErrStaleInc, head(func(h *wire.Header) { h.Incarnation = 1 })},
		{"incarnation to come", wire.ErrNotInView, head(func(h *wire.Header) { h.Incarnation = 3 })},
		{"not in view", wire.ErrNotInView, head(func(h *wire.Header) { h.Worker = "w2" })},
		{"nobody", wire.ErrNotInView, head(func(h *wire.Header) { h.Worker = "" })},
		{"rank is out", wire.ErrNotInView, head(func(h *wire.Header) { h.Rank, h.Worker, h.Incarnation = 0, "w0", 1 })},
		{"encoding", wire.ErrBadEncoding, head(func(h *wire.Header) { h.Encoding = 77 })},
		{"reserved encoding", wire.ErrBadEncoding, head(func(h *wire.Header) { h.Encoding = wire.Rows })},
		{"a null with numbers", wire.ErrBadShape, head(func(h *wire.Header) { h.Encoding, h.Examples = wire.Null, 0 })},
		{"a null with weight", wire.ErrBadShape, func(h *wire.Header, _ []byte) []byte { h.Encoding = wire.Null; return nil }},
		{"count", wire.ErrBadShape, head(func(h *wire.Header) { h.Count-- })},
		{"huge count", wire.ErrBadShape, head(func(h *wire.Header) { h.Count = math.MaxUint32 })},
		{"empty", wire.ErrBadShape, cut(0)},
		{"short", wire.ErrBadShape, cut(28)},
		{"half a number", wire.ErrBadShape, cut(30)},
		{"damaged", wire.ErrBadCRC, func(h *wire.Header, tail []byte) []byte { tail[5] ^= 1; return tail }},
		{"NaN", wire.ErrNotFinite, number(0x7fc00001)},
		{"Inf", wire.ErrNotFinite, number(0x7f800000)},
		{"-Inf", wire.ErrNotFinite, number(0xff800000)},
	}
	for _, mode := range []Mode{Streaming, ByReduction, ByDecision, Async} {
		cfg := sgdJob(t, 3, 5)
		if cfg.Mode = mode; mode == Async {
			cfg.Staleness = -1
		}
		s := newStory(t, cfg, 2)
		ms := members(3)
		ms[1].Incarnation = 2
		s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: ms, Out: []bool{true, false, false}})
		s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, Epochs: s.epochs()})
		good := s.messages(s.contribute(1, 0))
		good = slices.DeleteFunc(good, func(e envelope) bool { return e.to == 0 || e.h.Chunk != 7 })
		before := s.dump()
		for _, c := range cases {
			h := good[0].h
			tail := c.do(&h, slices.Clone(good[0].tail))
			s.acks, s.coord = nil, nil
			refused := s.shards[1].stats.Refused
			s.send(1, h, tail)
			if len(s.acks) != 1 || s.acks[0].Kind != wire.Ack || s.acks[0].Code != c.code || s.acks[0].Chunk != h.Chunk || s.acks[0].Rank != h.Rank {
				t.Errorf("%v, %s: answers %+v, want code %q", mode, c.name, s.acks, c.code)
			}
			if s.dump() != before {
				t.Errorf("%v, %s: the shard changed", mode, c.name)
			}
			if s.shards[1].stats.Refused != refused+1 {
				t.Errorf("%v, %s: not counted as refused", mode, c.name)
			}
			if c.code.Retry() && c.code != wire.ErrBadCRC && s.last().RetryMillis == 0 {
				t.Errorf("%v, %s: no time to try again at", mode, c.name)
			}
			if c.code == wire.ErrAhead && (len(s.coord) == 0 || s.coord[0].H.Kind != wire.AskNews) {
				t.Errorf("%v, %s: the shard did not ask for what it has not learnt", mode, c.name)
			}
			s.balanced()
		}
		s.send(1, good[0].h, good[0].tail)
		if s.dump() == before {
			t.Errorf("%v: the right push was refused: %+v", mode, s.last())
		}
	}
}

// What is not finite names rank, step, tensor and element, and stops a job that
// trusts its workers; one with on_bad: null goes on.
func TestNotFinite(t *testing.T) {
	for _, null := range []bool{false, true} {
		cfg := sgdJob(t, 2, 1)
		cfg.NullBad = null
		s := newStory(t, cfg, 2)
		c := s.contribute(1, 0)
		c.g[optim.Grad][35+4] = float32(math.NaN())
		s.coord = nil
		m := s.messages(c)[4]
		s.send(m.to, m.h, m.tail)
		var said []wire.Header
		for _, o := range s.coord {
			said = append(said, o.H)
		}
		if null {
			if len(said) != 0 {
				t.Errorf("on_bad null: the coordinator heard %+v", said)
			}
			s.push(contribution{rank: 1}, s.contribute(0, 0)) // as the client does
			x := newTwin(cfg)
			x.step(s.contribute(0, 0), contribution{rank: 1})
			s.at(1)
			s.equal(x)
			continue
		}
		if len(said) != 1 || said[0].Kind != wire.Report || said[0].Code != wire.ErrNotFinite || !strings.Contains(said[0].Text, `worker w1: rank 1, step 0: grad of tensor "b" is not finite at element 4`) {
			t.Errorf("on_bad halt: the coordinator heard %+v", said)
		}
		s.at(0)
	}
}

// A job whose decision says so takes nothing more.
func TestHaltedAndIdle(t *testing.T) {
	s := newStory(t, sgdJob(t, 1, 3), 1)
	s.step(0)
	s.decide(ledger.Decision{Kind: ledger.Halt, Reason: "disk full"})
	before := s.dump()
	s.step(1)
	if h := s.last(); h.Code != wire.ErrHalted || !strings.Contains(h.Text, "disk full") || s.dump() != before {
		t.Errorf("push to a halted job: %+v", h)
	}
	// An owner whose epoch is not in the timeline restarted meanwhile: it is
	// idle, and says that it is ready.
	s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, Epochs: []uint64{testEpoch + 1}})
	s.step(0)
	if h := s.last(); h.Code != wire.ErrBusy || h.RetryMillis == 0 {
		t.Errorf("push to an idle shard: %+v", h)
	}
	s.coord = nil
	s.tick(idleEvery)
	if len(s.coord) != 1 || s.coord[0].H.Kind != wire.Ready || s.coord[0].H.Epoch != testEpoch {
		t.Errorf("an idle shard says %+v", s.coord)
	}
	s.balanced()
}

// Parameters that become non-finite are found at close and never handed out,
// not even as an older version whose memory they took; the job is told.
func TestBrokenParameters(t *testing.T) {
	for _, mode := range []Mode{Streaming, ByReduction, ByDecision, Async} {
		cfg := sgdJob(t, 1, 5)
		cfg.LR = func(t uint64) float64 { return math.Pow(10, 30*float64(t-1)) }
		cfg.Broadcast = true
		if cfg.Mode = mode; mode == Async {
			cfg.Staleness = -1
		}
		s := newStory(t, cfg, 2)
		s.step(0)
		s.step(1)
		s.coord = nil
		s.step(2) // rate 1e60 is Inf in float32
		if s.shards[0].broken == "" || s.shards[1].broken == "" {
			t.Fatalf("%v: not noticed", mode)
		}
		var heard bool
		for _, o := range s.coord {
			heard = heard || o.H.Kind == wire.Report && o.H.Code == wire.ErrHalted && strings.Contains(o.H.Text, `step 2 made tensor "w" non-finite at element 0`)
		}
		if !heard {
			t.Errorf("%v: the coordinator heard %+v", mode, s.coord)
		}
		s.coord = nil
		s.tick(idleEvery)
		if len(s.coord) == 0 || s.coord[0].H.Code != wire.ErrHalted {
			t.Errorf("%v: the next report says %+v", mode, s.coord)
		}
		for _, v := range []uint64{0, 1, 2, 3, Latest} {
			for ci := range 10 {
				k := ci / 5
				s.send(k, wire.Header{Kind: wire.Pull, Job: testJob, Timeline: 1, Shard: uint32(k), Epoch: uint64(testEpoch + k), Worker: "w0", Chunk: uint32(ci), Step: v}, nil)
			}
		}
		s.step(3)
		if h := s.last(); h.Code != wire.ErrHalted {
			t.Errorf("%v: push after it: %+v", mode, h)
		}
	}
}

// All memory comes back, also of what a new timeline or view throws away.
func TestRelease(t *testing.T) {
	for _, mode := range []Mode{Streaming, ByReduction, ByDecision, Async} {
		cfg := sgdJob(t, 3, 9)
		if cfg.Mode, cfg.Staleness = mode, 2; mode == Async {
			cfg.Staleness = -1
		}
		s := newStory(t, cfg, 2)
		some := s.messages(s.contribute(0, 0))
		for _, m := range some[:7] {
			s.send(m.to, m.h, m.tail)
		}
		s.push(s.contribute(1, 0))
		if mode != Async {
			s.push(s.contribute(1, 1), s.contribute(1, 2))
		}
		ms := members(3)
		ms[1] = ledger.Member{Worker: "w8", Incarnation: 4}
		s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: ms})
		if mode != Async {
			s.push(s.contribute(1, 1)) // by w8: replaces what w1 pushed
		}
		held := 0
		for _, sh := range s.shards {
			for i := range sh.chunks {
				for _, row := range sh.chunks[i].staged {
					for _, e := range row {
						if e.msg != nil {
							held++
						}
					}
				}
			}
		}
		if s.made-s.released != held {
			t.Errorf("%v: %d messages neither staged nor released", mode, s.made-s.released-held)
		}
		if held == 0 {
			t.Errorf("%v: nothing was staged", mode)
		}
		s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, Epochs: s.epochs()})
		s.balanced()
	}
}

// Every kind of message is released, whatever is in it.
func TestReleaseOfEveryKind(t *testing.T) {
	s := newStory(t, sgdJob(t, 2, 2), 2)
	for k := wire.Kind(0); k <= wire.NumKinds; k++ {
		for _, job := range []string{testJob, "other"} {
			for _, shard := range []uint32{0, 1, 9} {
				s.send(0, wire.Header{Kind: k, Job: job, Timeline: 1, Shard: shard, Epoch: testEpoch, Chunk: 99, Rank: 99}, []byte("rubbish!"))
				s.settle()
			}
		}
	}
	s.balanced()
	if lo, hi := s.shards[0].Versions(); lo != 0 || hi != 0 {
		t.Errorf("rubbish closed a step")
	}
}
