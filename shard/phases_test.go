package shard

import (
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// samJob is a job of updates of two phases each.
func samJob(t tb, ranks int, updates uint64) Config {
	t.Helper()
	cfg := sgdJob(t, ranks, 2*updates)
	cfg.Rule, cfg.Mode = newRule(t, "sam", map[string]any{"base_hyper": map[string]any{"momentum": 0.9}}), ByReduction
	return cfg
}

// rowsJob is a job whose contributions may name runs of parameters.
func rowsJob(t tb, ranks int, steps uint64) Config {
	t.Helper()
	cfg := sgdJob(t, ranks, steps)
	cfg.Rule = newRule(t, "adagrad", nil)
	return cfg
}

// rows is the push of one chunk with the given runs, all numbers 1.
func (s *story) rows(rank int, step uint64, chunk int, runs ...wire.Run) envelope {
	s.t.Helper()
	c := s.contribute(rank, step)
	for _, m := range s.messages(c) {
		if int(m.h.Chunk) == chunk {
			tail, n := wire.AppendRuns(nil, runs, slices.Repeat([]float32{1}, 64))
			m.h.Encoding, m.h.Count, m.h.CRC = wire.Rows, uint32(n), wire.Checksum(tail)
			m.tail = tail
			return m
		}
	}
	s.t.Fatalf("no chunk %d", chunk)
	return envelope{}
}

// Runs that leave the chunk, touch, are empty or do not fit their numbers are
// refused; so are all runs where the job or the rule does not take them.
func TestRunsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		code wire.Code
		do   func(e *envelope)
	}{
		"leaves the chunk":    {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[4:], 6) }},
		"leaves all memory":   {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[4:], math.MaxUint32) }},
		"touches the next":    {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[4:], 2) }},
		"behind the next":     {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[4:], 5) }},
		"empty":               {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[8:], 0) }},
		"long":                {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[8:], math.MaxUint32) }},
		"more runs than fit":  {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail, math.MaxUint32) }},
		"fewer runs":          {wire.ErrBadShape, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail, 1) }},
		"more numbers":        {wire.ErrBadShape, func(e *envelope) { e.h.Count = math.MaxUint32 }},
		"fewer numbers":       {wire.ErrBadShape, func(e *envelope) { e.h.Count-- }},
		"three bytes":         {wire.ErrBadShape, func(e *envelope) { e.tail = e.tail[:3] }},
		"nothing":             {wire.ErrBadShape, func(e *envelope) { e.tail = nil }},
		"infinite at the end": {wire.ErrNotFinite, func(e *envelope) { binary.LittleEndian.PutUint32(e.tail[len(e.tail)-4:], 0x7f800000) }},
	} {
		s := newStory(t, rowsJob(t, 2, 3), 2)
		before := s.dump()
		e := s.rows(0, 0, 7, wire.Run{Lo: 1, Hi: 3}, wire.Run{Lo: 4, Hi: 6})
		c.do(&e)
		e.h.CRC = wire.Checksum(e.tail)
		s.send(e.to, e.h, e.tail)
		if got := s.last(); got.Code != c.code || s.dump() != before {
			t.Errorf("%s: %+v", name, got)
		}
		if at := s.cfg.Layout.Chunk(7).Lo + 5; c.code == wire.ErrNotFinite {
			tn := s.cfg.Layout.Find(at)
			if !strings.HasSuffix(s.last().Text, tn.Name+"\" is not finite at element "+strconv.Itoa(at-tn.Offset)) {
				t.Errorf("%s: %q", name, s.last().Text)
			}
		}
		s.balanced()
	}
	for name, change := range map[string]func(*Config){
		"rule":  func(c *Config) { c.Rule = newRule(t, "adamw", nil) },
		"half":  func(c *Config) { c.Half = true },
		"dense": func(c *Config) { c.Dense = true },
	} {
		cfg := rowsJob(t, 2, 3)
		change(&cfg)
		s := newStory(t, cfg, 2)
		e := s.rows(0, 0, 7, wire.Run{Lo: 1, Hi: 3})
		s.send(e.to, e.h, e.tail)
		if s.last().Code != wire.ErrBadEncoding {
			t.Errorf("%s: %+v", name, s.last())
		}
	}
}

// A later holder of a rank may push other runs, or all numbers: what counts is
// the newest, whole.
func TestRunsReplaced(t *testing.T) {
	cfg := rowsJob(t, 2, 1)
	s := newStory(t, cfg, 2)
	for _, m := range s.messages(s.contribute(0, 0)) {
		e := s.rows(0, 0, int(m.h.Chunk), wire.Run{Lo: 0, Hi: 1}, wire.Run{Lo: 2, Hi: 3})
		if int(m.h.Chunk)%2 == 0 {
			e = m
		}
		s.send(e.to, e.h, e.tail)
	}
	ms := members(2)
	ms[0] = ledger.Member{Worker: "w9", Incarnation: 1}
	s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: ms})
	s.sparse = true
	c0 := s.contribute(0, 0)
	c1 := s.contribute(1, 0)
	s.push(c0, c1)
	x := newTwin(cfg)
	x.step(c0, c1)
	s.at(1)
	s.equal(x)
	s.balanced()
}

// What a rank names not at all, and what it calls null, moves nothing of its own;
// ranks of all kinds go together.
func TestRunsOfAllKinds(t *testing.T) {
	for _, mode := range []Mode{Streaming, ByReduction, ByDecision} {
		cfg := rowsJob(t, 4, 4)
		cfg.Mode = mode
		s := newStory(t, cfg, 3)
		x := newTwin(cfg)
		for step := range uint64(4) {
			var cs []contribution
			for rank := range 4 {
				c := s.contribute(rank, step)
				switch (rank + int(step)) % 4 {
				case 0:
					c = contribution{rank: rank, step: step}
				case 1:
					c.runs = []layout.Range{}
				case 2:
					if step%2 == 0 {
						c.runs = []layout.Range{{Lo: 3, Hi: 4}, {Lo: 7, Hi: 30}, {Lo: 79, Hi: 80}}
					}
				case 3:
					c.runs = []layout.Range{{Lo: 0, Hi: 1}, {Lo: 2, Hi: 3}, {Lo: 29, Hi: 31}}
				}
				cs = append(cs, c)
			}
			s.push(cs...)
			x.step(cs...)
			s.at(step + 1)
			s.equal(x)
		}
		s.balanced()
	}
}

// The memory that a contribution of single parameters takes is what jobs are
// compiled with.
func TestRunsMemory(t *testing.T) {
	cfg := rowsJob(t, 1, 1)
	cfg.Layout = newLayout(t, 1<<12, layout.Tensor{Name: "w", Shape: []int{1 << 12}})
	s := newStory(t, cfg, 1)
	s.decide(ledger.Decision{Kind: ledger.Stop, Step: 0}) // nothing closes
	var runs []wire.Run
	for lo := 0; lo < 1<<12; lo += 2 {
		runs = append(runs, wire.Run{Lo: lo, Hi: lo + 1})
	}
	x := make([]float32, 1<<12)
	tail, n := wire.AppendRuns(nil, runs, x)
	h := s.messages(s.contribute(0, 0))[0].h
	h.Encoding, h.Count, h.CRC = wire.Rows, uint32(n), wire.Checksum(tail)
	s.send(0, h, tail)
	e := &s.shards[0].chunks[0].staged[0][0]
	if e.msg == nil || len(e.runs) != len(runs) {
		t.Fatalf("not staged: %+v", s.last())
	}
	const rowBytes = 12
	if got := int64(len(e.msg.Tail) + rowBytes*cap(e.runs)); got > RowsBytes<<12+4 {
		t.Errorf("%d bytes for %d parameters, want at most %d each", got, 1<<12, RowsBytes)
	}
}

// Every step takes the roles and the phase that are its own.
func TestPhaseAndRole(t *testing.T) {
	sophia := sgdJob(t, 1, 6)
	sophia.Rule = newRule(t, "sophia_g", map[string]any{"hessian_interval": 3})
	spider := sgdJob(t, 1, 6)
	spider.Rule, spider.Mode = newRule(t, "spider", map[string]any{"period": 3}), ByReduction
	for name, c := range map[string]struct {
		cfg   Config
		roles [][]optim.Role
	}{
		"sam":    {samJob(t, 1, 3), [][]optim.Role{{optim.Grad}, {optim.Grad}}},
		"sophia": {sophia, [][]optim.Role{{optim.Grad, optim.HessGrad}, {optim.Grad}, {optim.Grad}}},
		"spider": {spider, [][]optim.Role{{optim.FullGrad}, {optim.Grad, optim.GradPrev}, {optim.Grad, optim.GradPrev}}},
	} {
		s := newStory(t, c.cfg, 2)
		phases := uint64(len(c.cfg.Rule.Spec().Phases))
		for step := range uint64(6) {
			m := s.messages(s.contribute(0, step))[0]
			for phase := range uint8(3) {
				for role := range optim.NumRoles + 1 {
					good := uint64(phase) == step%phases && slices.Contains(c.roles[step%uint64(len(c.roles))], role)
					h := m.h
					h.Phase, h.Role = phase, role
					before := s.shards[0].stats.Refused
					if !good {
						s.send(0, h, m.tail)
					}
					if refused := s.shards[0].stats.Refused > before; refused == good {
						t.Fatalf("%s, step %d: role %v in phase %d refused: %v", name, step, role, phase, refused)
					}
				}
			}
			// One role alone, however often, closes nothing.
			all := s.messages(s.contribute(0, step))
			for range 3 {
				for _, e := range all {
					if e.h.Role == all[0].h.Role && len(c.roles[step%uint64(len(c.roles))]) > 1 {
						s.send(e.to, e.h, e.tail)
					}
				}
			}
			s.settle()
			s.at(step)
			s.step(step)
			s.at(step + 1)
		}
		s.balanced()
	}
}

// A view of nobody, which no coordinator decides, closes nothing: it would close
// all steps there are.
func TestNobody(t *testing.T) {
	for _, mode := range []Mode{Streaming, ByReduction, ByDecision} {
		cfg := sgdJob(t, 2, 5)
		cfg.Mode, cfg.Broadcast = mode, true
		s := newStory(t, cfg, 2)
		s.auto = false
		s.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: members(2), Out: []bool{true, true}})
		s.tick(1e9)
		s.at(0)
		s.decide(ledger.Decision{Kind: ledger.View, View: 3, Ranks: members(2)})
		if s.auto = true; mode != ByDecision {
			s.step(0)
			s.at(1)
		}
	}
}

// Cuts are taken between updates only, whatever the interval, and a stop that
// names a phase in between takes none.
func TestCutsBetweenUpdates(t *testing.T) {
	cfg := samJob(t, 2, 3)
	cfg.CutEvery = 3 // as no job is compiled
	s := newStory(t, cfg, 2)
	s.keepCuts = true
	for step := range uint64(5) {
		s.step(step)
	}
	s.decide(ledger.Decision{Kind: ledger.Stop, Step: 5})
	if len(s.cuts) != 0 {
		t.Errorf("cuts in mid-update: %v", slices.Collect(func(yield func(ledger.CutID) bool) {
			for id := range s.cuts {
				if !yield(id) {
					return
				}
			}
		}))
	}
	s.balanced()
}

// A job goes on from a cut with the same bits when its rule has two phases, or
// wants gradients at the previous version.
func TestRestoreBetweenUpdates(t *testing.T) {
	oasis := sgdJob(t, 2, 8)
	oasis.Rule, oasis.Mode = newRule(t, "oasis", nil), ByReduction
	for name, cfg := range map[string]Config{"sam": samJob(t, 2, 4), "oasis": oasis} {
		cfg.CutEvery = 2
		s, x := newStory(t, cfg, 2), newTwin(cfg)
		for step := range uint64(5) {
			s.step(step)
			x.step(s.contribute(0, step), s.contribute(1, step))
		}
		s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 4, Epochs: s.epochs()})
		s.at(4)
		for k, sh := range s.shards {
			for _, v := range []uint64{3, 4} {
				s.acks = nil
				delete(s.params, place{uint32(sh.cfg.Chunks.Lo), v})
				s.send(k, wire.Header{Kind: wire.Pull, Job: testJob, Worker: "w0", Timeline: 2, Shard: uint32(k), Epoch: sh.cfg.Epoch, Chunk: uint32(sh.cfg.Chunks.Lo), Step: v}, nil)
				if _, served := s.params[place{uint32(sh.cfg.Chunks.Lo), v}]; served != (v == 4 || name == "oasis") {
					t.Errorf("%s: version %d served after a restore: %v, %+v", name, v, served, s.acks)
				}
			}
		}
		s.step(4)
		for step := uint64(5); step < 8; step++ {
			s.step(step)
			x.step(s.contribute(0, step), s.contribute(1, step))
		}
		s.at(8)
		s.equal(x)
		s.balanced()
	}
}

// Nothing is trained on a cut without the version that the rule compares with.
func TestRestoreLacksHistory(t *testing.T) {
	cfg := sgdJob(t, 1, 6)
	cfg.Rule, cfg.Mode, cfg.CutEvery = newRule(t, "spider", nil), ByReduction, 2
	first := newStory(t, cfg, 2)
	first.step(0)
	first.step(1)
	id := ledger.CutID{Timeline: 1, Step: 2}
	s := newStory(t, cfg, 1)
	s.cuts[id] = slices.DeleteFunc(slices.Clone(first.cuts[id]), func(p layout.Section) bool { return p.Name == "params-1" && p.Lo == 16 })
	s.coord = nil
	s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 2, Epochs: s.epochs()})
	if len(s.coord) != 1 || s.coord[0].H.Code != wire.ErrGone || !strings.Contains(s.coord[0].H.Text, "params-1") {
		t.Errorf("restored without the previous version: %+v", s.coord)
	}
}

// What is read while a step is taken is never what the step writes.
func TestVersionsHeld(t *testing.T) {
	for _, c := range []struct {
		rule      string
		mode      Mode
		staleness int
		want      int
	}{{"sgd", Streaming, 0, 2}, {"sgd", Streaming, 2, 6}, {"sgd", Async, -1, 1}, {"sam", ByReduction, 0, 3}, {"oasis", ByReduction, 0, 3}, {"spider", ByDecision, 0, 3}} {
		if got := Versions(c.mode, c.staleness, newRule(t, c.rule, nil).Spec()); got != c.want {
			t.Errorf("%s, %v, staleness %d: %d versions, want %d", c.rule, c.mode, c.staleness, got, c.want)
		}
	}
}

// Half-precision numbers are checked like all others: how many they are, that
// they are finite, and that the job is one that takes them.
func TestHalfRefused(t *testing.T) {
	for name, c := range map[string]struct {
		code wire.Code
		do   func(e *envelope)
	}{
		"NaN":           {wire.ErrNotFinite, func(e *envelope) { binary.LittleEndian.PutUint16(e.tail[10:], 0x7fc0) }},
		"-Inf":          {wire.ErrNotFinite, func(e *envelope) { binary.LittleEndian.PutUint16(e.tail[10:], 0xff80) }},
		"odd":           {wire.ErrBadShape, func(e *envelope) { e.tail = e.tail[:15] }},
		"as many bytes": {wire.ErrBadShape, func(e *envelope) { e.h.Count = 4; e.tail = append(e.tail, e.tail...) }},
		"f32":           {wire.ErrBadEncoding, func(e *envelope) { e.h.Encoding = wire.F32; e.tail = append(e.tail, e.tail...) }},
	} {
		cfg := sgdJob(t, 1, 2)
		cfg.Half = true
		s := newStory(t, cfg, 2)
		e := s.messages(s.contribute(0, 0))[2]
		e.tail = slices.Clone(e.tail)
		c.do(&e)
		e.h.CRC = wire.Checksum(e.tail)
		s.send(e.to, e.h, e.tail)
		if got := s.last(); got.Code != c.code || c.code == wire.ErrNotFinite && !strings.HasSuffix(got.Text, "element 21") {
			t.Errorf("%s: %+v", name, got)
		}
		s.balanced()
	}
	s := newStory(t, sgdJob(t, 1, 2), 2)
	s.cfg.Half = true // its workers only
	s.push(s.contribute(0, 0))
	if s.at(0); s.last().Code != wire.ErrBadEncoding {
		t.Errorf("bfloat16 in a job of float32: %+v", s.last())
	}
}
