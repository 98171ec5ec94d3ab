package shard

import (
	"slices"
	"testing"
	"time"

	"tributary/comm/wire"
	"tributary/internal/rng"
	"tributary/ledger"
)

// Decisions apply in order, once, and a gap makes the shard ask.
func TestDecisionsInOrder(t *testing.T) {
	s := newStory(t, sgdJob(t, 1, 3), 1)
	sh := s.shards[0]
	s.now += time.Hour
	for _, d := range []*ledger.Decision{
		{N: 4, Kind: ledger.Stop, Step: 1, Timeline: 1}, // 3 is missing
		{N: 1, Kind: ledger.View, View: 9, Ranks: []ledger.Member{{Worker: "w7", Incarnation: 1}}},
		{N: 2, Kind: ledger.Begin, Timeline: 9},
	} {
		s.coord = nil
		before := s.dump()
		s.send(0, wire.Header{Kind: wire.News, Job: testJob, Seq: d.N}, d.Encode())
		if s.dump() != before || sh.led.N != 2 {
			t.Errorf("decision %d changed the shard", d.N)
		}
		asked := len(s.coord) > 0 && s.coord[0].H.Kind == wire.AskNews && s.coord[0].H.Seq == 3
		if asked != (d.N > 2) {
			t.Errorf("after decision %d: said %+v", d.N, s.coord)
		}
		s.now += time.Hour
	}
	for n, want := range map[uint64]bool{2: false, 3: true} { // beacons
		s.now += time.Hour
		s.coord = nil
		s.send(0, wire.Header{Kind: wire.News, Job: testJob, Seq: n}, nil)
		if got := len(s.coord) > 0; got != want {
			t.Errorf("a beacon of %d decisions: said %+v", n, s.coord)
		}
	}
	s.send(0, wire.Header{Kind: wire.News, Job: testJob, Seq: 3}, []byte("{"))
	if sh.led.N != 2 {
		t.Error("a damaged decision counts")
	}
}

// With on_loss: shrink a step closes without the ranks that are out, and with
// them again when somebody has taken them.
func TestShrink(t *testing.T) {
	cfg := sgdJob(t, 3, 3)
	cfg.Mode = ByDecision
	s := newStory(t, cfg, 3)
	x := newTwin(cfg)
	s.step(0)
	x.step(s.contribute(0, 0), s.contribute(1, 0), s.contribute(2, 0))
	s.equal(x)

	s.push(s.contribute(1, 1)) // then w1 is lost: its whole contribution goes with it
	ms := members(3)
	ms[1] = ledger.Member{}
	s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: ms, Out: []bool{false, true, false}})
	s.push(s.contribute(0, 1), s.contribute(2, 1))
	s.at(2)
	x.step(s.contribute(0, 1), contribution{rank: 1}, s.contribute(2, 1))
	s.equal(x)

	ms[1] = ledger.Member{Worker: "w9", Incarnation: 7}
	s.decide(ledger.Decision{Kind: ledger.View, View: 3, Ranks: ms})
	s.push(s.contribute(0, 2), s.contribute(2, 2))
	s.at(2)
	s.push(s.contribute(1, 2))
	s.at(3)
	x.step(s.contribute(0, 2), s.contribute(1, 2), s.contribute(2, 2))
	s.equal(x)
	s.balanced()
}

// A step closes with the members that the decision names and with nobody else,
// even if a shard holds more.
func TestCloseNamesMembers(t *testing.T) {
	cfg := sgdJob(t, 2, 1)
	cfg.Mode = ByDecision
	s := newStory(t, cfg, 2)
	s.auto = false
	s.step(0)
	s.decide(ledger.Decision{Kind: ledger.Close, Step: 0, Ranks: []ledger.Member{{}, {Worker: "w1", Incarnation: 1}}})
	s.at(1)
	x := newTwin(cfg)
	x.step(contribution{rank: 0}, s.contribute(1, 0))
	s.equal(x)
	s.balanced()
	for _, sh := range s.shards {
		if in := sh.log.Entries[0].Inputs; len(in) != 1 || in[0].Rank != 1 || in[0].Member.Worker != "w1" {
			t.Errorf("the log names %+v", in)
		}
	}
}

// Outside of streaming a contribution is all of one incarnation or nothing: what
// a worker that lost its rank had pushed does not complete its successor's.
func TestAllOfOneIncarnation(t *testing.T) {
	cfg := sgdJob(t, 1, 1)
	cfg.Mode = ByDecision
	s := newStory(t, cfg, 1)
	for _, m := range s.messages(s.contribute(0, 0))[4:] {
		s.send(m.to, m.h, m.tail)
	}
	s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: []ledger.Member{{Worker: "w0", Incarnation: 2}}})
	for _, m := range s.messages(s.contribute(0, 0))[:4] {
		s.send(m.to, m.h, m.tail)
	}
	s.settle()
	s.at(0)
	s.push(s.contribute(0, 0))
	s.at(1)
	s.balanced()
}

// In a streaming job the successor computes the same bits: a chunk that was
// applied stays applied, and what is missing completes the step.
func TestSuccessorCompletes(t *testing.T) {
	cfg := sgdJob(t, 2, 2)
	s := newStory(t, cfg, 3)
	s.push(s.contribute(0, 0))
	for _, m := range s.messages(s.contribute(1, 0))[:6] {
		s.send(m.to, m.h, m.tail)
	}
	old := s.messages(s.contribute(1, 0))[6:]
	ms := members(2)
	ms[1] = ledger.Member{Worker: "w0", Incarnation: 1}
	s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: ms})
	s.acks = nil
	for _, m := range old { // late, from the one who lost the rank
		s.send(m.to, m.h, m.tail)
	}
	if len(s.acks) != 4 || slices.ContainsFunc(s.acks, func(h wire.Header) bool { return h.Code != wire.ErrStaleView }) {
		t.Errorf("answers to the earlier holder: %+v", s.acks)
	}
	s.push(s.contribute(1, 0))
	s.at(1)
	x := newTwin(cfg)
	x.step(s.contribute(0, 0), s.contribute(1, 0))
	s.equal(x)
	s.balanced()
}

// With staleness N a rank may be N steps ahead, and not one more; steps still
// close in order and as sets.
func TestStaleness(t *testing.T) {
	cfg := sgdJob(t, 2, 6)
	cfg.Staleness = 2
	s := newStory(t, cfg, 2)
	s.push(s.contribute(0, 2), s.contribute(0, 0), s.contribute(0, 1))
	s.acks = nil
	s.push(s.contribute(0, 3))
	if len(s.acks) != 10 || s.last().Code != wire.ErrAhead {
		t.Errorf("answers to step 3 at version 0: %+v", s.acks)
	}
	s.push(s.contribute(1, 1))
	s.at(0)
	s.push(s.contribute(1, 0))
	s.at(2)
	x := newTwin(cfg)
	for step := range uint64(2) {
		x.step(s.contribute(0, step), s.contribute(1, step))
	}
	s.equal(x)
	// Versions stay readable as long as a rank may have to be computed again.
	s.step(2)
	s.step(3)
	s.step(4)
	s.step(5)
	s.at(6)
	for v := range uint64(8) {
		s.acks = nil
		got := s.pull(0, v)
		switch {
		case v < 1 && (got || s.last().Code != wire.ErrGone || s.last().Lo != 6):
			t.Errorf("version %d: %v, %+v", v, got, s.acks)
		case v >= 1 && v <= 6 && !got:
			t.Errorf("version %d is gone", v)
		case v > 6 && (got || len(s.acks) != 0):
			t.Errorf("version %d is answered: %+v", v, s.acks)
		}
	}
	s.balanced()
}

// pull asks for chunk 0 and says whether parameters came.
func (s *story) pull(chunk uint32, v uint64) bool {
	s.t.Helper()
	p := place{chunk, v}
	was, had := s.params[p]
	delete(s.params, p)
	s.send(0, wire.Header{Kind: wire.Pull, Job: testJob, Timeline: 1, Epoch: testEpoch, Worker: "w0", Chunk: chunk, Step: v, Seq: 5}, nil)
	now, got := s.params[p]
	if got && had && now != was {
		s.t.Errorf("version %d of chunk %d changed", v, chunk)
	}
	return got
}

// A pull for a version to come is answered when it is there, once, and says at
// once, if asked, which ranks the chunk lacks.
func TestParked(t *testing.T) {
	s := newStory(t, sgdJob(t, 3, 2), 1)
	s.push(s.contribute(1, 0))
	ask := wire.Header{Kind: wire.Pull, Job: testJob, Timeline: 1, Epoch: testEpoch, Worker: "w1", Chunk: 2, Step: 1, Seq: 5}
	s.send(0, ask, nil)
	if len(s.acks) != 0 || len(s.params) != 0 {
		t.Errorf("answered at once: %+v", s.acks)
	}
	ask.Hi = 1
	s.send(0, ask, nil)
	if h := s.last(); h.Kind != wire.Waiting || h.Chunk != 2 || h.Step != 0 || h.Seq != 5 || h.Count != 3 {
		t.Errorf("whom it waits for: %+v", h)
	}
	if got := s.shards[0].missing(&s.shards[0].chunks[2]); !slices.Equal(got, []byte{0b101}) {
		t.Errorf("missing ranks %b, want 0 and 2", got)
	}
	out := s.shards[0].stats.BytesOut
	s.push(s.contribute(0, 0), s.contribute(2, 0))
	if len(s.params) != 1 || s.params[place{2, 1}] == "" {
		t.Errorf("handed out %v, want chunk 2 at version 1", s.params)
	}
	if got := s.shards[0].stats.BytesOut - out; got != 32 {
		t.Errorf("%d bytes handed out, want 32: one answer to a pull that was repeated", got)
	}
}

// Where names the first step that some chunk lacks of a rank.
func TestWhere(t *testing.T) {
	cfg := sgdJob(t, 2, 4)
	cfg.Staleness = 2
	s := newStory(t, cfg, 1)
	where := func(rank uint32) wire.Header {
		s.send(0, wire.Header{Kind: wire.Where, Job: testJob, Timeline: 1, Epoch: testEpoch, Worker: "w0", Rank: rank, Seq: 3}, nil)
		return s.last()
	}
	for _, m := range s.messages(s.contribute(0, 0))[:9] {
		s.send(m.to, m.h, m.tail)
	}
	if h := where(0); h.Kind != wire.Here || h.Step != 0 || h.Seq != 3 || h.Rank != 0 {
		t.Errorf("one chunk lacks step 0: %+v", h)
	}
	s.push(s.contribute(0, 0), s.contribute(0, 1))
	if h := where(0); h.Step != 2 {
		t.Errorf("steps 0 and 1 are staged: %+v", h)
	}
	if h := where(1); h.Step != 0 {
		t.Errorf("nothing of rank 1 is here: %+v", h)
	}
	if h := where(2); h.Code != wire.ErrBadShape {
		t.Errorf("rank 2 of 2: %+v", h)
	}
}

// A shard whose steps do not close tells the coordinator who is missing.
func TestTells(t *testing.T) {
	s := newStory(t, sgdJob(t, 2, 2), 1)
	s.push(s.contribute(1, 0))
	s.tick(stuckAfter)
	s.coord = nil
	s.tick(idleEvery)
	var report, waiting *Out
	for i := range s.coord {
		switch o := &s.coord[i]; o.H.Kind {
		case wire.Report:
			report = o
		case wire.Waiting:
			waiting = o
		}
	}
	if report == nil || report.H.Lo != 0 || report.H.Hi != 0 || report.H.Seq != s.n {
		t.Errorf("report: %+v", report)
	}
	if waiting == nil || !slices.Equal(waiting.Tail, []byte{1}) || waiting.H.Step != 0 {
		t.Errorf("waiting: %+v", waiting)
	}
	s.push(s.contribute(0, 0))
	s.coord = nil
	s.tick(reportEvery)
	if len(s.coord) == 0 || s.coord[0].H.Lo != 1 || s.coord[0].H.Count != 1 || len(s.coord[0].Tail) != 8 {
		t.Errorf("report after a step: %+v", s.coord)
	}
}

// Lists of sums that are lost are asked for; damaged, foreign, stale and
// repeated ones change nothing.
func TestLostSums(t *testing.T) {
	cfg := sgdJob(t, 2, 3)
	cfg.Mode, cfg.Rule = ByReduction, sumsRule{}
	s := newStory(t, cfg, 3)
	x := newTwin(cfg)
	lost := 0
	s.lose = func(e envelope) bool {
		if lost++; rng.New(1, "loss").Float64(uint64(lost)) < 0.6 {
			return true
		}
		for _, f := range []func(h *wire.Header, tail []byte){
			func(h *wire.Header, tail []byte) {
				if len(tail) > 0 {
					tail[0] ^= 1
				} else {
					h.CRC++
				}
			},
			func(h *wire.Header, _ []byte) { h.Job = "other" },
			func(h *wire.Header, _ []byte) { h.Timeline++ },
			func(h *wire.Header, _ []byte) { h.Epoch++ },
			func(h *wire.Header, _ []byte) { h.Shard = 3 },
			func(h *wire.Header, _ []byte) { h.Step += 2 },
			func(h *wire.Header, _ []byte) { h.Pass = 9 },
			func(h *wire.Header, _ []byte) { h.Count++ },
		} {
			h, tail := e.h, slices.Clone(e.tail)
			if f(&h, tail); h.Kind == wire.Partial {
				s.send(e.to, h, tail)
			}
		}
		return false
	}
	for step := range cfg.Steps {
		s.step(step)
		for range 80 {
			s.tick(idleEvery)
		}
		s.at(step + 1)
		x.step(s.contribute(0, step), s.contribute(1, step))
		s.equal(x)
	}
	if lost < 20 {
		t.Errorf("only %d messages between shards", lost)
	}
	for k, sh := range s.shards {
		if n := len(sh.red.lists); n > 3*2*2 {
			t.Errorf("shard %d keeps %d lists", k, n)
		}
	}
	s.balanced()
}

// Somebody else's values of the wrong length are never looked at.
func TestShortSums(t *testing.T) {
	cfg := sgdJob(t, 1, 2)
	cfg.Mode, cfg.Rule = ByReduction, newRule(t, "lamb", nil)
	s := newStory(t, cfg, 2)
	s.lose = func(envelope) bool { return true }
	s.step(0)
	for n := range 40 {
		tail := wire.Bytes64(make([]float64, n))
		s.send(0, wire.Header{Kind: wire.Partial, Job: testJob, Timeline: 1, Shard: 1, Epoch: testEpoch + 1, Count: uint32(n), CRC: wire.Checksum(tail)}, tail)
		if v, _ := s.shards[0].Versions(); (v == 1) != (n >= s.shards[0].listLen(partKey{0, 0, 1})) {
			t.Fatalf("a list of %d values, version %d", n, v)
		}
	}
}

// The opaque state of a rank: who holds the rank gives it, in sound form.
func TestStates(t *testing.T) {
	cfg := sgdJob(t, 3, 4)
	cfg.RankState = true
	s := newStory(t, cfg, 2)
	b := stateOf(1, 1)
	good := wire.Header{Kind: wire.State, Job: testJob, Timeline: 1, View: 1, Shard: 1, Epoch: testEpoch + 1, Rank: 1, Step: 1, Worker: "w1", Incarnation: 1, CRC: wire.Checksum(b)}
	for name, c := range map[string]struct {
		code wire.Code
		do   func(h *wire.Header)
	}{
		"rank of another shard": {wire.ErrBadShape, func(h *wire.Header) { h.Rank, h.Worker = 2, "w2" }},
		"rank beyond":           {wire.ErrBadShape, func(h *wire.Header) { h.Rank = 99 }},
		"damaged":               {wire.ErrBadCRC, func(h *wire.Header) { h.CRC++ }},
		"not in view":           {wire.ErrNotInView, func(h *wire.Header) { h.Worker = "w0" }},
		"stale timeline":        {wire.ErrStaleTimeline, func(h *wire.Header) { h.Timeline = 0 }},
	} {
		h := good
		c.do(&h)
		s.send(1, h, b)
		if got := s.last(); got.Code != c.code || len(s.shards[1].states) != 0 {
			t.Errorf("%s: %+v, want code %q", name, got, c.code)
		}
	}
	h := good
	huge := make([]byte, maxStateBytes+1)
	h.CRC = wire.Checksum(huge)
	if s.send(1, h, huge); s.last().Code != wire.ErrTooLarge {
		t.Errorf("too large: %+v", s.last())
	}
	// A step does not close without the states behind it, and asks for them.
	s.step(0)
	if lo, _ := s.shards[1].Versions(); lo != 0 {
		t.Error("closed without the state of rank 1")
	}
	if h := s.last(); h.Kind != wire.AskState {
		t.Errorf("did not ask for states: %+v", h)
	}
	for r := range 3 {
		s.state(r, 1)
	}
	s.at(1)
	s.asks(1)
	s.balanced()
}
