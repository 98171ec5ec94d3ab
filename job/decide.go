package job

import (
	"fmt"
	"math"
	"slices"
	"time"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/shard"
)

// decide proposes the first decision that is due, if none is in flight.
func (c *Coord) decide(now time.Duration) {
	if c.pending != nil {
		return
	}
	d := c.due(now)
	if d == nil && c.heardOf > c.led.N && c.led.View > 0 {
		// A coordinator before this one, or one that does not know that it was
		// replaced, decided something more. Proposing anything finds out what.
		d = &ledger.Decision{Kind: ledger.View, View: c.led.View + 1, Ranks: c.led.Ranks, Out: c.led.Out}
	}
	if d == nil {
		return
	}
	d.N, d.Nonce = c.led.N+1, c.cfg.Nonce
	if d.Timeline == 0 {
		d.Timeline = c.led.Timeline
	}
	c.pending, c.asked = d, now
	c.outs = append(c.outs, Out{Kind: Propose, Decision: d})
}

// due is the decision that the present state calls for, or nil. The order
// matters: a new timeline before everything that would act on the old one.
func (c *Coord) due(now time.Duration) *ledger.Decision {
	switch {
	case c.led.Halted && !c.resume:
		return nil
	case c.halt != "" && !c.led.Finished:
		return &ledger.Decision{Kind: ledger.Halt, Reason: c.halt}
	case c.led.Timeline == 0:
		return c.dueStart(now)
	}
	// A finished job, too, gets a new timeline when a server restarted: its
	// model can still be read.
	if d := c.dueTimeline(); d != nil || c.led.Finished {
		return d
	}
	if d := c.dueView(now); d != nil {
		return d
	}
	if d := c.dueCut(); d != nil {
		return d
	}
	if c.stop && !c.led.Stopped && c.allHeld() {
		return &ledger.Decision{Kind: ledger.Stop, Step: c.stopAt, Reason: c.stopWhy}
	}
	if c.cfg.Mode == shard.ByDecision {
		return c.dueClose()
	}
	return nil
}

// dueStart waits for all shards and workers, then decides the first view and
// the first timeline.
func (c *Coord) dueStart(now time.Duration) *ledger.Decision {
	alive := c.alive()
	if len(alive) < c.cfg.Workers && (now-c.started < c.cfg.StartTimeout || c.cfg.StartTimeout == 0) {
		return nil
	}
	if len(alive) == 0 {
		return &ledger.Decision{Kind: ledger.Halt, Reason: fmt.Sprintf("no worker came within %v", c.cfg.StartTimeout)}
	}
	if c.led.View == 0 {
		ranks, out := Assign(make([]ledger.Member, c.cfg.Ranks), alive, c.cfg.OnLoss)
		return &ledger.Decision{Kind: ledger.View, View: 1, Ranks: ranks, Out: out}
	}
	if slices.ContainsFunc(c.shards, func(s shardInfo) bool { return !s.present }) {
		return nil
	}
	return c.begin(ledger.CutID{})
}

func (c *Coord) begin(from ledger.CutID) *ledger.Decision {
	d := &ledger.Decision{Kind: ledger.Begin, Timeline: c.led.Timeline + 1, CutTimeline: from.Timeline, Step: from.Step}
	for i := range c.shards {
		d.Epochs = append(d.Epochs, c.shards[i].epoch)
	}
	return d
}

// dueTimeline starts a new timeline at the newest recorded cut when the owner
// of a shard restarted (R = 1: what it held is lost), when the base cut turned
// out to be unreadable, or when a stopped job is to go on.
func (c *Coord) dueTimeline() *ledger.Decision {
	bad := c.badCuts[c.led.Base] && c.led.Base.Timeline != 0
	lost := bad || c.resume
	for i := range c.shards {
		s := &c.shards[i]
		if !s.present {
			return nil // wait until every shard has an owner that speaks
		}
		if i >= len(c.led.Epochs) || s.epoch != c.led.Epochs[i] {
			lost = true
		}
	}
	if !lost {
		return nil
	}
	cuts := slices.Clone(c.led.Cuts)
	for len(cuts) > 0 && c.badCuts[cuts[len(cuts)-1]] {
		cuts = cuts[:len(cuts)-1]
	}
	// The model of a finished job is its last cut. Nobody would compute again
	// what an older one lacks.
	if c.led.Finished && len(cuts) < len(c.led.Cuts) {
		return &ledger.Decision{Kind: ledger.Halt, Reason: fmt.Sprintf("the last checkpoint, at step %d, cannot be read; the servers' logs say why", c.led.Base.Step/c.cfg.Phases)}
	}
	from := ledger.CutID{}
	if len(cuts) > 0 {
		from = cuts[len(cuts)-1]
	}
	d := c.begin(from)
	d.Paused = c.led.Stopped && !c.resume
	return d
}

func (c *Coord) dueView(now time.Duration) *ledger.Decision {
	alive := c.alive()
	if len(alive) == 0 {
		return nil
	}
	if len(alive) < c.cfg.Workers && now-c.started < 2*c.cfg.WorkerTimeout {
		return nil // this coordinator has just started: let those it does not know yet join again
	}
	ranks, out := Assign(c.led.Ranks, alive, c.cfg.OnLoss)
	if slices.Equal(ranks, c.led.Ranks) && slices.Equal(out, c.led.Out) {
		return nil
	}
	return &ledger.Decision{Kind: ledger.View, View: c.led.View + 1, Ranks: ranks, Out: out}
}

// dueCut records a cut that every shard has on disk; the last one finishes the
// job.
func (c *Coord) dueCut() *ledger.Decision {
	newest := c.led.Newest()
	if newest == (ledger.CutID{Timeline: newest.Timeline, Step: c.cfg.Steps}) && newest.Step > 0 {
		return &ledger.Decision{Kind: ledger.Finish, Step: c.cfg.Steps}
	}
	best := ledger.CutID{Step: math.MaxUint64}
	// The lowest step, so that cuts are recorded in order. One that a newer cut
	// has overtaken on its way to disk is not: its data may be gone already.
	for id := range c.shards[0].saved {
		if id.Timeline == c.led.Timeline && id.Step > newest.Step && id.Step < best.Step && c.allSaved(id) {
			best = id
		}
	}
	if best.Step == math.MaxUint64 {
		return nil
	}
	return &ledger.Decision{Kind: ledger.Cut, Step: best.Step}
}

func (c *Coord) allSaved(id ledger.CutID) bool {
	for i := range c.shards {
		if !c.shards[i].saved[id] {
			return false
		}
	}
	return true
}

// dueClose closes the next atomic step once every shard holds every rank of
// the set, each whole and of its present holder.
func (c *Coord) dueClose() *ledger.Decision {
	t := c.closing
	if t >= c.cfg.Steps || c.led.Stopped && t >= c.led.StopAt || c.stop && t >= c.stopAt {
		return nil
	}
	members := make([]ledger.Member, c.cfg.Ranks)
	some := false
	for r := range c.cfg.Ranks {
		if !c.led.In(r) {
			continue
		}
		m, ok := c.led.Member(r)
		if !ok {
			return nil
		}
		for i := range c.shards {
			if c.shards[i].staged[stagedAt{r, t}] != m {
				return nil
			}
		}
		members[r], some = m, true
	}
	if !some {
		return nil
	}
	return &ledger.Decision{Kind: ledger.Close, Step: t, Ranks: members}
}

// RequestStop asks for an orderly stop with a cut: every shard promises not to
// close steps from some step on, then that step is decided. It says whether
// there is something to stop; asking again for a stop under way is fine.
func (c *Coord) RequestStop(why string, now time.Duration) ([]Out, bool) {
	c.outs = c.outs[:0]
	if c.led.Finished || c.led.Halted || c.led.Timeline == 0 {
		return nil, false
	}
	if c.stop || c.led.Stopped {
		return nil, true
	}
	c.stop, c.stopWhy, c.stopLead = true, why, 0
	for i := range c.shards {
		c.stopAt = max(c.stopAt, c.shards[i].hi+1)
	}
	if c.cfg.Mode == shard.ByDecision {
		c.stopAt = max(c.stopAt, c.closing)
	}
	c.askHold(now)
	return c.outs, true
}

// RequestResume lets a stopped or halted job go on from its newest cut, on a
// new timeline. It says whether there is something to resume.
func (c *Coord) RequestResume(now time.Duration) ([]Out, bool) {
	c.outs = c.outs[:0]
	if !c.led.Halted && (c.led.Finished || !c.led.Stopped) {
		return nil, false
	}
	c.resume = true
	clear(c.badCuts) // they may have been mended
	c.started = now  // workers have the whole start timeout again
	c.decide(now)
	return c.outs, true
}

// askHold asks for the promise to stop before stopAt, which is never between
// two phases of an update: a cut is taken there.
func (c *Coord) askHold(now time.Duration) {
	c.stopSent = now
	if over := c.stopAt % c.cfg.Phases; over > 0 {
		c.stopAt += c.cfg.Phases - over
	}
	c.holdAll(c.stopAt)
}

func (c *Coord) holdAll(step uint64) {
	for i := range c.shards {
		h := c.header(wire.Hold)
		h.Shard, h.Step = uint32(i), step
		c.outs = append(c.outs, Out{Kind: ToShard, Shard: i, H: h})
	}
}

func (c *Coord) allHeld() bool {
	for i := range c.shards {
		if !c.shards[i].held {
			return false
		}
	}
	return true
}

// Describe says what a decision decides, for people, who count updates of so many
// phases.
func Describe(d *ledger.Decision, phases uint64) string {
	made := d.Step / phases
	switch d.Kind {
	case ledger.Begin:
		if d.CutTimeline == 0 {
			return fmt.Sprintf("timeline %d starts from the initial parameters", d.Timeline)
		}
		return fmt.Sprintf("timeline %d starts from the cut at step %d; what came after it is rolled back", d.Timeline, made)
	case ledger.View:
		load := map[string]int{}
		var names []string
		for _, m := range d.Ranks {
			if m.Worker != "" && load[m.Worker] == 0 {
				names = append(names, m.Worker)
			}
			load[m.Worker]++
		}
		s := fmt.Sprintf("view %d:", d.View)
		for _, n := range names {
			s += fmt.Sprintf(" %s serves %d of %d ranks;", n, load[n], len(d.Ranks))
		}
		return s[:len(s)-1]
	case ledger.Close:
		return fmt.Sprintf("step %d closes", d.Step)
	case ledger.Cut:
		return fmt.Sprintf("the cut at step %d is saved", made)
	case ledger.Stop:
		return fmt.Sprintf("stop at step %d: %s", made, d.Reason)
	case ledger.Finish:
		return fmt.Sprintf("finished after %d steps", made)
	default:
		return fmt.Sprintf("%s: %s", d.Kind, d.Reason)
	}
}
