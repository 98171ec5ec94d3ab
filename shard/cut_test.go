package shard

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// cutJobs are jobs with everything that a cut must hold.
func cutJobs(t *testing.T) map[string]Config {
	base := sgdJob(t, 3, 8)
	base.CutEvery, base.RankState = 2, true
	jobs := map[string]Config{}
	add := func(name string, f func(*Config)) {
		c := base
		f(&c)
		jobs[name] = c
	}
	add("streaming", func(*Config) {})
	add("streaming, stale", func(c *Config) { c.Staleness = 2 })
	add("lamb", func(c *Config) { c.Mode, c.Rule = ByReduction, newRule(t, "lamb", nil) })
	add("all sums", func(c *Config) { c.Mode, c.Rule = ByReduction, sumsRule{} })
	// Two phases; gradients at two versions; slots that only some tensors have.
	for _, name := range []string{"sam", "oasis", "spider", "adafactor", "muon"} {
		add(name, func(c *Config) { c.Mode, c.Rule = ByReduction, newRule(t, name, nil) })
	}
	add("by decision", func(c *Config) { c.Mode = ByDecision })
	add("asynchronous", func(c *Config) { c.Mode, c.Staleness = Async, -1 })
	return jobs
}

func stateOf(rank int, step uint64) []byte {
	return fmt.Appendf(nil, "rank %d before step %d", rank, step)
}

// withStates pushes step t of all ranks, and the state that each has after it.
func (s *story) withStates(t uint64) {
	s.t.Helper()
	for r := range s.cfg.Ranks {
		s.state(r, t+1)
		s.push(s.contribute(r, t))
	}
}

func (s *story) state(rank int, step uint64) {
	s.t.Helper()
	k := rank % len(s.shards)
	b, m := stateOf(rank, step), s.shards[k].led.Ranks[rank]
	s.send(k, wire.Header{Kind: wire.State, Job: testJob, Timeline: s.shards[k].led.Timeline, View: s.shards[k].led.View, Shard: uint32(k), Epoch: s.shards[k].cfg.Epoch,
		Rank: uint32(rank), Step: step, Worker: m.Worker, Incarnation: m.Incarnation, CRC: wire.Checksum(b)}, b)
	s.settle()
}

// version is how far all shards are.
func (s *story) version() uint64 {
	if s.cfg.Mode == Async {
		return slices.Min(s.shards[0].applied)
	}
	lo, _ := s.shards[0].Versions()
	return lo
}

// A cut taken on some number of shards goes on, on any other, with the bits of
// the run that was never interrupted.
func TestCutOntoOtherShards(t *testing.T) {
	for name, cfg := range cutJobs(t) {
		t.Run(name, func(t *testing.T) {
			whole := newStory(t, cfg, 3)
			for step := range cfg.Steps {
				whole.withStates(step)
			}
			for _, from := range []int{1, 3, 7} {
				first := newStory(t, cfg, from)
				for step := range uint64(5) { // beyond the cut at 4
					first.withStates(step)
				}
				id := ledger.CutID{Timeline: 1, Step: 4}
				if first.saved[id] != from {
					t.Fatalf("%d of %d shards saved the cut at step 4", first.saved[id], from)
				}
				if _, early := first.cuts[ledger.CutID{Timeline: 1, Step: 5}]; early {
					t.Errorf("a cut at step 5 in a job with one every 2")
				}
				for _, to := range []int{1, 2, 7} {
					second := newStory(t, cfg, to)
					second.cuts, second.saved = map[ledger.CutID][]layout.Section{id: first.cuts[id]}, map[ledger.CutID]int{}
					second.closed = 4
					second.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 4, Epochs: second.epochs()})
					if v := second.version(); v != 4 {
						t.Fatalf("restored at step %d, want 4", v)
					}
					if cfg.Staleness <= 0 {
						second.asks(4)
					}
					for step := uint64(4); step < cfg.Steps; step++ {
						second.withStates(step)
					}
					sameBits(t, fmt.Sprintf("from %d shards onto %d: parameters", from, to), second.parameters(), whole.parameters())
					for i, sl := range cfg.Rule.Spec().Slots {
						if sl.Class == optim.Element {
							part := func(sh *Shard) []float32 { return sh.slotVector(i) }
							sameBits(t, "slot "+sl.Name, second.vector(part), whole.vector(part))
						}
					}
					second.balanced()
				}
			}
		})
	}
}

// asks fails unless the shards hand out the states that ranks had at step v.
func (s *story) asks(v uint64) {
	s.t.Helper()
	for r := range s.cfg.Ranks {
		k := r % len(s.shards)
		s.send(k, wire.Header{Kind: wire.AskState, Job: testJob, Timeline: s.shards[k].led.Timeline, Shard: uint32(k), Epoch: s.shards[k].cfg.Epoch,
			Rank: uint32(r), Step: v, Worker: "w0"}, nil)
		if h, want := s.last(), stateOf(r, v); h.Kind != wire.State || h.Code != wire.OK || h.CRC != wire.Checksum(want) {
			s.t.Errorf("state of rank %d at step %d: %+v", r, v, h)
		}
	}
}

// A snapshot is of one step although training goes on while it is taken, and
// none of it is the shard's memory.
func TestCutIsOfOneStep(t *testing.T) {
	cfg := sgdJob(t, 1, 8)
	cfg.CutEvery, cfg.Staleness = 2, 2
	s := newStory(t, cfg, 1)
	x := newTwin(cfg)
	// Chunk 9 stays at step 0 while the others reach step 3.
	var late []envelope
	for step := range uint64(3) {
		for _, m := range s.messages(s.contribute(0, step)) {
			if m.h.Chunk == 9 {
				late = append(late, m)
				continue
			}
			s.send(m.to, m.h, m.tail)
		}
	}
	id := ledger.CutID{Timeline: 1, Step: 2}
	if len(s.cuts[id]) != 0 {
		t.Fatal("the cut is complete without chunk 9")
	}
	for _, m := range late {
		s.send(m.to, m.h, m.tail)
	}
	s.at(3)
	x.step(s.contribute(0, 0))
	params := map[int][]float32{1: x.r.Params()}
	x.step(s.contribute(0, 1))
	params[2] = x.r.Params()
	moments := x.r.Slot("momentum")
	if moments == nil {
		moments = x.r.Slot(cfg.Rule.Spec().Slots[0].Name)
	}
	check := func() {
		got := map[string][]float32{}
		for _, p := range s.cuts[id] {
			if p.F32 != nil {
				got[p.Name] = append(got[p.Name], make([]float32, max(0, p.Hi-len(got[p.Name])))...)
				copy(got[p.Name][p.Lo:p.Hi], p.F32)
			}
		}
		sameBits(t, "params of the cut", got["params"], params[2])
		sameBits(t, "params-1 of the cut", got["params-1"], params[1])
		sameBits(t, "slot of the cut", got["slot/"+cfg.Rule.Spec().Slots[0].Name], moments)
	}
	check()
	s.step(3)
	s.step(4)
	check()
}

// What a cut lacks is named, and nothing is trained on it.
func TestRestoreLacks(t *testing.T) {
	for name, cfg := range cutJobs(t) {
		first := newStory(t, cfg, 3)
		for step := range uint64(4) {
			first.withStates(step)
		}
		id := ledger.CutID{Timeline: 1, Step: 4}
		names := map[string]bool{}
		for _, p := range first.cuts[id] {
			names[p.Name] = true
		}
		for lacking := range names {
			if strings.HasPrefix(lacking, "rank/") || strings.HasPrefix(lacking, "params-") {
				continue // a job goes on without
			}
			second := newStory(t, cfg, 1)
			second.cuts = map[ledger.CutID][]layout.Section{id: slices.DeleteFunc(slices.Clone(first.cuts[id]), func(p layout.Section) bool { return p.Name == lacking })}
			second.coord = nil
			second.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 4, Epochs: second.epochs()})
			if len(second.coord) != 1 || second.coord[0].H.Kind != wire.Report || second.coord[0].H.Code != wire.ErrGone || !strings.Contains(second.coord[0].H.Text, lacking) {
				t.Errorf("%s: restored without %s: %+v", name, lacking, second.coord)
				continue
			}
			second.step(4)
			if h := second.last(); h.Code != wire.ErrBusy {
				t.Errorf("%s: push to a shard that is not restored: %+v", name, h)
			}
		}
	}
}

// A cut that cannot be read makes the coordinator go further back; one that
// cannot be written stops the job.
func TestCutFailed(t *testing.T) {
	cfg := sgdJob(t, 1, 2)
	s := newStory(t, cfg, 2)
	heard := func(text string, code wire.Code) {
		t.Helper()
		if len(s.coord) == 0 {
			t.Fatalf("the coordinator did not hear %q", text)
		}
		if h := s.coord[len(s.coord)-1].H; h.Kind != wire.Report || h.Code != code || !strings.Contains(h.Text, text) {
			t.Errorf("the coordinator heard %+v, want %q, %q", h, code, text)
		}
	}
	s.coord = nil
	s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 2, Epochs: s.epochs()})
	heard(`shard 1: cut 1.2: section "params" lacks 40 values`, wire.ErrGone)
	s.coord = nil
	s.do(1, s.shards[1].CutFailed(ledger.CutID{Timeline: 1, Step: 1}, true, errors.New("old news")))
	if len(s.coord) != 0 {
		t.Errorf("heard of a cut that nobody needs: %+v", s.coord)
	}
	s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 3, Epochs: s.epochs()})
	s.do(1, s.shards[1].CutFailed(ledger.CutID{Timeline: 3, Step: 2}, false, errors.New("disk full")))
	heard("shard 1: cut 3.2: disk full", wire.ErrHalted)
}

// A saved cut is reported again and again until a decision records it; a cut
// of a timeline that ended while it was written is not.
func TestSavedIsRepeated(t *testing.T) {
	cfg := sgdJob(t, 1, 4)
	cfg.CutEvery = 2
	s := newStory(t, cfg, 1)
	s.keepCuts = true
	s.step(0)
	s.step(1)
	id := ledger.CutID{Timeline: 1, Step: 2}
	saved := func() (n int) {
		s.coord = nil
		s.tick(idleEvery)
		for _, o := range s.coord {
			if o.H.Kind == wire.Saved && o.H.Step == 2 && o.H.Timeline == 1 {
				n++
			}
		}
		return n
	}
	if saved() != 0 {
		t.Error("reported before it is on disk")
	}
	s.do(0, s.shards[0].CutSaved(id, s.now))
	for range 2 {
		if n := saved(); n != 1 {
			t.Errorf("reported %d times in a while, want 1", n)
		}
	}
	s.decide(ledger.Decision{Kind: ledger.Cut, Timeline: 1, Step: 2})
	if saved() != 0 {
		t.Error("repeated after it was recorded")
	}
	s.step(2)
	s.step(3)
	s.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 2, Epochs: s.epochs()})
	s.coord = nil
	s.do(0, s.shards[0].CutSaved(ledger.CutID{Timeline: 1, Step: 4}, s.now))
	s.tick(idleEvery)
	for _, o := range s.coord {
		if o.H.Kind == wire.Saved {
			t.Errorf("reported a cut of the past: %+v", o.H)
		}
	}
}

func (s *story) holdAt(step, timeline uint64) []wire.Header {
	s.t.Helper()
	s.coord = nil
	for k := range s.shards {
		s.send(k, wire.Header{Kind: wire.Hold, Job: testJob, Timeline: timeline, Shard: uint32(k), Step: step}, nil)
	}
	s.settle()
	var hs []wire.Header
	for _, o := range s.coord {
		if o.H.Kind == wire.Held {
			hs = append(hs, o.H)
		}
	}
	return hs
}

// A promise not to close from a step on holds until the stop is decided; then a
// cut is taken there, and nothing closes after it.
func TestHoldAndStop(t *testing.T) {
	for name, cfg := range cutJobs(t) {
		if cfg.Mode == ByDecision {
			continue // the coordinator itself decides what closes
		}
		cfg.CutEvery, cfg.RankState = 0, false
		s := newStory(t, cfg, 3)
		s.step(0)
		if hs := s.holdAt(2, 0); len(hs) != 0 {
			t.Errorf("%s: a hold of another timeline is answered: %+v", name, hs)
		}
		hs := s.holdAt(2, 1)
		for _, h := range hs {
			if h.Step != 2 || h.Lo != 1 {
				t.Errorf("%s: answer %+v, want that it can promise from step 1 on", name, h)
			}
		}
		if len(hs) != 3 {
			t.Errorf("%s: %d answers", name, len(hs))
		}
		s.step(1)
		s.step(2)
		if v := s.version(); v != 2 {
			t.Fatalf("%s: at step %d in spite of the promise", name, v)
		}
		for _, h := range s.holdAt(1, 1) { // too late for step 1
			if h.Lo != 2 || h.Step != 1 {
				t.Errorf("%s: answer to a late hold %+v", name, h)
			}
		}
		s.decide(ledger.Decision{Kind: ledger.Stop, Step: 2, Reason: "asked to"})
		if v := s.version(); v != 2 {
			t.Errorf("%s: at step %d after the stop", name, v)
		}
		if id := (ledger.CutID{Timeline: 1, Step: 2}); s.saved[id] != 3 {
			t.Errorf("%s: %d shards saved the cut of the stop", name, s.saved[id])
		}
		s.step(2)
		if v := s.version(); v != 2 {
			t.Errorf("%s: at step %d after the stop", name, v)
		}
	}
}

// A promise that is withdrawn, or that moves to a later step, lets go on what
// waited for it: nobody pushes again what is staged.
func TestHoldWithdrawn(t *testing.T) {
	for name, cfg := range cutJobs(t) {
		if cfg.Mode == ByDecision {
			continue
		}
		cfg.CutEvery, cfg.RankState = 0, false
		for _, to := range []uint64{Latest, 5} {
			s := newStory(t, cfg, 3)
			s.holdAt(0, 1)
			s.step(0)
			if v := s.version(); v != 0 {
				t.Fatalf("%s: at step %d in spite of the promise", name, v)
			}
			s.holdAt(to, 1)
			if v := s.version(); v != 1 {
				t.Errorf("%s: at step %d after the promise moved to %d, want 1", name, v, to)
			}
		}
	}
}

// A shard that has begun a reduction will close that step: it cannot promise
// not to.
func TestHoldDuringReduction(t *testing.T) {
	cfg := sgdJob(t, 1, 4)
	cfg.Mode, cfg.Rule = ByReduction, newRule(t, "lamb", nil)
	s := newStory(t, cfg, 2)
	var kept []envelope
	s.lose = func(e envelope) bool { kept = append(kept, e); return true }
	s.step(0) // both shards have begun
	for _, h := range s.holdAt(0, 1) {
		if h.Lo <= h.Step {
			t.Errorf("shard %d promises not to close step 0, whose reduction it has begun: %+v", h.Shard, h)
		}
	}
	s.lose, s.pending = nil, kept
	s.settle()
	s.at(1)
}

// The last cut is taken at the end even without a period, and only once.
func TestCutAtTheEnd(t *testing.T) {
	for name, cfg := range cutJobs(t) {
		cfg.CutEvery, cfg.RankState, cfg.Steps = 0, false, 2
		s := newStory(t, cfg, 2)
		s.step(0)
		if len(s.cuts) != 0 {
			t.Errorf("%s: a cut at step 1", name)
		}
		s.step(1)
		if id := (ledger.CutID{Timeline: 1, Step: 2}); s.saved[id] != 2 || len(s.cuts) != 1 {
			t.Errorf("%s: saved %v", name, s.saved)
		}
	}
}

// A rank of an asynchronous job waits at a cut's step until all are there.
func TestAsyncBarrier(t *testing.T) {
	cfg := sgdJob(t, 2, 4)
	cfg.Mode, cfg.Staleness, cfg.CutEvery = Async, -1, 1
	s := newStory(t, cfg, 2)
	s.push(s.contribute(0, 0))
	s.push(s.contribute(0, 1)) // waits
	if a := s.shards[0].applied; a[0] != 1 || a[1] != 0 {
		t.Fatalf("applied %v", a)
	}
	s.push(s.contribute(1, 0))
	if a := s.shards[0].applied; a[0] != 2 || a[1] != 1 {
		t.Errorf("applied %v after the barrier, want rank 0 to go on by itself", a)
	}
	if id := (ledger.CutID{Timeline: 1, Step: 1}); s.saved[id] != 2 {
		t.Errorf("saved %v", s.saved)
	}
	s.balanced()
}

// A part of a slot that only some tensors have is found in whatever section
// covers it, as is that of any other.
func TestFillSlot(t *testing.T) {
	cfg := sgdJob(t, 1, 1)
	cfg.Mode, cfg.Rule = ByReduction, newRule(t, "adafactor", nil)
	s := newStory(t, cfg, 3)
	all := layout.Section{Range: layout.Range{Lo: 0, Hi: cfg.Layout.P}}
	for i := range cfg.Layout.P {
		all.F32 = append(all.F32, float32(i))
	}
	partial := 0
	for _, sh := range s.shards {
		for i := range sh.slots {
			if sh.slots[i].at == nil {
				continue
			}
			if n := sh.fillSlot(i, all); n != len(sh.slots[i].data) {
				t.Errorf("slot %d: filled %d of %d", i, n, len(sh.slots[i].data))
			}
			for c := sh.cfg.Chunks.Lo; c < sh.cfg.Chunks.Hi; c++ {
				for _, b := range cfg.Layout.Blocks(nil, c) {
					if x := sh.span(i, b.Tensor, b.Lo, b.Hi); x != nil {
						partial++
						sameBits(t, "slot", x, all.F32[b.Lo:b.Hi])
					}
				}
			}
		}
	}
	if partial == 0 {
		t.Error("adafactor has no slot of some tensors alone")
	}
}
