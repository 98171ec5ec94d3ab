package faults

import (
	"tributary/client"
	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
	"tributary/shard"
)

// audit watches a schedule from outside and breaks it off at the first promise
// that is not kept. It knows what was sent, logged, decided and written, and
// nothing of how the state machines came to it.
type audit struct {
	w      *world
	golden *golden // nil: the numbers depend on the schedule

	inputs    map[input]uint32            // checksums of what was counted, for a golden
	published map[published]uint32        // checksum of each version of a chunk that left a shard
	whole     map[uint64]uint32           // checksum of each version that a worker computed on
	states    map[rankStep]string         // state of each rank before each step
	closes    map[stepOf][]shard.LogInput // by decision: who was in the step, the same on every shard
	computed  map[rankStep][][]uint32     // plans that are not exact: each computation's checksums by chunk
	could     map[stepOf]map[int]uint64   // and which of them each rank's chunks can all be of
	closed    map[uint64]uint64           // steps closed so far, by chunk, whatever the timeline
	rotten    map[ledger.CutID]bool       // cuts that were damaged on purpose
}

type input struct {
	chunk int
	step  uint64
	rank  int
}

type published struct {
	timeline uint64
	chunk    uint32
	version  uint64
}

type stepOf struct{ timeline, step uint64 }

type rankStep struct {
	rank int
	step uint64
}

func (a *audit) init(w *world, g *golden) {
	*a = audit{w: w, golden: g, inputs: map[input]uint32{}, published: map[published]uint32{}, whole: map[uint64]uint32{}, states: map[rankStep]string{}, closes: map[stepOf][]shard.LogInput{},
		computed: map[rankStep][][]uint32{}, could: map[stepOf]map[int]uint64{}, closed: map[uint64]uint64{}, rotten: map[ledger.CutID]bool{}}
}

// shardLog is what the audit saw of one owner of a shard in one timeline.
type shardLog struct {
	timeline uint64
	base     uint64
	next     uint64         // number of the next log entry
	version  map[int]uint64 // next step of each chunk; asynchronous: of each (chunk, rank)
	ranks    map[input]bool // what was counted
}

func (l *shardLog) enter(led *ledger.State) {
	if l.timeline != led.Timeline || l.ranks == nil {
		*l = shardLog{timeline: led.Timeline, base: led.Base.Step, version: map[int]uint64{}, ranks: map[input]bool{}}
	}
}

// shardDid checks what a shard logged and is about to send.
func (a *audit) shardDid(s *server, k int, outs []shard.Out) {
	sh, l := s.shards[k], &s.logs[k]
	led := sh.Ledger()
	l.enter(led)
	for _, e := range sh.LogSince(l.next) {
		a.logged(k, l, led, &e)
	}
	for i := range outs {
		switch o := &outs[i]; {
		case o.Kind == shard.ToWorker && o.H.Kind == wire.Ack && o.H.Level == wire.LevelApplied && (o.H.Code == wire.OK || o.H.Code == wire.ErrDuplicate):
			a.acked(k, l, &o.H)
		case (o.Kind == shard.ToWorker || o.Kind == shard.ToWorkers) && o.H.Kind == wire.Params && a.w.plan.Mode != shard.Async:
			a.params(k, &o.H)
		}
	}
}

// logged checks that a chunk took the step that was due, once, with one
// contribution of the present timeline from every rank of the set, and with the
// right bytes.
func (a *audit) logged(k int, l *shardLog, led *ledger.State, e *shard.LogEntry) {
	w, p := a.w, &a.w.plan
	w.counts.Audited++
	if e.N != l.next {
		w.fail("shard %d: log entry %d follows entry %d", k, e.N, int64(l.next)-1)
		return
	}
	l.next++
	w.log(shardNames[k], "closes", uint64(e.Chunk), e.Step, e.Timeline)
	if e.Timeline != led.Timeline {
		w.fail("shard %d closed step %d of timeline %d in timeline %d", k, e.Step, e.Timeline, led.Timeline)
	}
	if led.Stopped && e.Step >= led.StopAt {
		w.fail("shard %d closed step %d although the job stops at %d", k, e.Step, led.StopAt)
	}
	slot := e.Chunk
	if p.Mode == shard.Async {
		if len(e.Inputs) != 1 {
			w.fail("shard %d applied %d contributions at once", k, len(e.Inputs))
			return
		}
		slot += e.Inputs[0].Rank << 16
	}
	if _, ok := l.version[slot]; !ok {
		l.version[slot] = l.base
	}
	if e.Step != l.version[slot] {
		w.fail("shard %d closed step %d of chunk %d when step %d was due", k, e.Step, e.Chunk, l.version[slot])
	}
	l.version[slot]++
	if a.closed[uint64(slot)] > e.Step {
		w.counts.ClosesReplayed++
	}
	a.closed[uint64(slot)] = max(a.closed[uint64(slot)], e.Step+1)
	a.countedSet(k, led, e)
	for _, in := range e.Inputs {
		if in.Timeline != e.Timeline {
			w.fail("shard %d counted a contribution of timeline %d in timeline %d (rank %d, step %d)", k, in.Timeline, e.Timeline, in.Rank, e.Step)
		}
		a.countedBytes(k, e, in)
		l.ranks[input{e.Chunk, e.Step, in.Rank}] = true
	}
}

// countedSet checks who is in a step: everybody in the set, and where a
// decision closes the step, exactly its members on every shard.
func (a *audit) countedSet(k int, led *ledger.State, e *shard.LogEntry) {
	w, p := a.w, &a.w.plan
	switch p.Mode {
	case shard.Async:
	case shard.ByDecision:
		key := stepOf{e.Timeline, e.Step}
		want, ok := a.closes[key]
		if !ok {
			w.fail("shard %d closed step %d of timeline %d without a decision", k, e.Step, e.Timeline)
			return
		}
		same := len(want) == len(e.Inputs)
		for i := range want {
			same = same && want[i].Rank == e.Inputs[i].Rank && want[i].Member == e.Inputs[i].Member
		}
		if !same {
			w.fail("shard %d closed step %d of chunk %d with %v, decided were %v", k, e.Step, e.Chunk, e.Inputs, want)
		}
	default:
		if len(e.Inputs) != p.Ranks {
			w.fail("shard %d closed step %d of chunk %d with %d of %d ranks", k, e.Step, e.Chunk, len(e.Inputs), p.Ranks)
		}
	}
}

// countedBytes checks that a counted chunk is what the undisturbed run counted
// or, where nobody can compute the same bytes again, that all chunks of a rank
// are of one computation.
func (a *audit) countedBytes(k int, e *shard.LogEntry, in shard.LogInput) {
	w := a.w
	key := input{e.Chunk, e.Step, in.Rank}
	switch {
	case w.plan.Exact() && a.golden == nil:
		a.inputs[key] = in.CRC
	case a.golden != nil:
		if want, ok := a.golden.inputs[key]; !ok || want != in.CRC {
			w.fail("shard %d: rank %d, step %d, chunk %d: other bytes than in the undisturbed run", k, in.Rank, e.Step, e.Chunk)
		}
	default:
		step := stepOf{e.Timeline, e.Step}
		if a.could[step] == nil {
			a.could[step] = map[int]uint64{}
		}
		all, ok := a.could[step][in.Rank]
		if !ok {
			all = ^uint64(0)
		}
		var these uint64
		for i, crcs := range a.computed[rankStep{in.Rank, e.Step}] {
			if crcs[e.Chunk] == in.CRC {
				these |= 1 << (i % 64)
			}
		}
		if all&these == 0 {
			w.fail("shard %d: step %d counts chunks of rank %d from different computations", k, e.Step, in.Rank)
		}
		a.could[step][in.Rank] = all & these
	}
}

// acked checks that what is acknowledged as applied is in the model.
func (a *audit) acked(k int, l *shardLog, h *wire.Header) {
	w := a.w
	w.counts.Audited++
	w.counts.AckedApplied++
	if h.Step >= l.base && !l.ranks[input{int(h.Chunk), h.Step, int(h.Rank)}] {
		w.fail("shard %d acknowledged rank %d, step %d, chunk %d as applied, but it is not in the model", k, h.Rank, h.Step, h.Chunk)
	}
}

// params checks parameters that leave a shard: one version has one value.
func (a *audit) params(k int, h *wire.Header) {
	w := a.w
	w.counts.Audited++
	if h.Point == optim.Eval { // checked where it is whole
		return
	}
	key := published{h.Timeline, h.Chunk, h.Step}
	if was, ok := a.published[key]; ok && was != h.CRC {
		w.fail("shard %d published two versions %d of chunk %d", k, h.Step, h.Chunk)
	}
	a.published[key] = h.CRC
	if a.golden != nil {
		if want, ok := a.golden.params[published{0, h.Chunk, h.Step}]; !ok || want != h.CRC {
			w.fail("shard %d published a version %d of chunk %d that differs from the undisturbed run's", k, h.Step, h.Chunk)
		}
	}
}

// taken checks work that a session hands to the application: the staleness
// bound, and the parameters' bits.
func (a *audit) taken(x *worker, job *client.Work) {
	w, p := a.w, &a.w.plan
	if p.Mode == shard.Async {
		return
	}
	low := job.Step - min(uint64(p.Staleness), job.Step)
	if job.Version < low || job.Version > job.Step || p.Pinned && job.Version != low {
		w.fail("%s computes step %d on version %d, staleness %d", x.name, job.Step, job.Version, p.Staleness)
	}
	a.whole[job.Version] = wire.Checksum(wire.Bytes32(job.Params))
	if a.golden == nil {
		return
	}
	if a.golden.whole[job.Version] != a.whole[job.Version] {
		w.fail("%s got a version %d that differs from the undisturbed run's", x.name, job.Version)
	}
	if job.Prev != nil && a.golden.whole[job.Version-1] != wire.Checksum(wire.Bytes32(job.Prev)) {
		w.fail("%s got a version %d, before the one it computes on, that differs from the undisturbed run's", x.name, job.Version-1)
	}
}

// evaluated checks the point of evaluation that a session hands out, or that it
// is not gone while the worker owes a contribution. A cut holds older versions of
// the parameters, for jobs with staleness, and none of the point of evaluation.
func (a *audit) evaluated(x *worker, v uint64, params []float32, err error) {
	w := a.w
	if err != nil {
		if led := &w.auth.led; led.Timeline == x.begun.timeline && led.View == x.begun.view && v >= led.Base.Step {
			w.fail("%s could not evaluate version %d, on which it computes step %d: %v", x.name, v, x.todo.Step, err)
		}
		return
	}
	w.counts.Evaluated++
	rule, _, _, _ := w.plan.rule()
	if a.golden == nil || a.golden.cuts[v] == nil {
		return
	}
	want := a.golden.cuts[v].f32
	for i, t := range w.layout.Tensors {
		name := "slot/" + rule.Spec().Eval
		if t.Buffer {
			name = "params"
		}
		if lo, hi := t.Offset, t.Offset+t.Len; wire.Checksum(wire.Bytes32(params[lo:hi])) != wire.Checksum(wire.Bytes32(want[name][lo:hi])) {
			w.fail("%s evaluates version %d at a tensor %q that differs from the undisturbed run's", x.name, v, w.layout.Tensors[i].Name)
		}
	}
}

// stateLoaded checks the state of a rank that moved.
func (a *audit) stateLoaded(rank int, step uint64, state []byte) {
	a.w.counts.StatesHanded++
	if a.golden == nil {
		return
	}
	if want := a.golden.states[rankStep{rank, step}]; want != string(state) {
		a.w.fail("the state of rank %d at step %d is %q, in the undisturbed run %q", rank, step, state, want)
	}
}

// pushed remembers what was computed where another computation may differ.
func (a *audit) pushed(c *client.Contribution) {
	a.states[rankStep{c.Rank, c.Step + 1}] = string(c.State)
	if a.w.plan.Exact() {
		return
	}
	crcs := make([]uint32, a.w.layout.Chunks())
	for i := range crcs {
		if !c.Null {
			crcs[i] = a.checksum(c, a.w.layout.Chunk(i))
		}
	}
	key := rankStep{c.Rank, c.Step}
	a.computed[key] = append(a.computed[key], crcs)
}

// checksum is that of c's first role in a chunk, as it travels.
func (a *audit) checksum(c *client.Contribution, chunk layout.Range) uint32 {
	x := c.Grad
	for role := optim.Role(0); x == nil; role++ {
		x = c.Extra[role]
	}
	x = x[chunk.Lo:chunk.Hi]
	switch {
	case a.w.plan.Half:
		half := make([]uint16, len(x))
		wire.ToHalf(half, x)
		return wire.Checksum(wire.BytesHalf(half))
	case c.Runs != nil:
		var runs []wire.Run
		for _, r := range c.Runs {
			if lo, hi := max(r.Lo, chunk.Lo), min(r.Hi, chunk.Hi); lo < hi {
				runs = append(runs, wire.Run{Lo: lo - chunk.Lo, Hi: hi - chunk.Lo})
			}
		}
		tail, _ := wire.AppendRuns(nil, runs, x)
		return wire.Checksum(tail)
	}
	return wire.Checksum(wire.Bytes32(x))
}

// decision checks what is about to be decided.
func (a *audit) decision(d *ledger.Decision) {
	w := a.w
	led := &w.auth.led
	switch d.Kind {
	case ledger.Close:
		var members []shard.LogInput
		for r, m := range d.Ranks {
			if m.Worker != "" {
				members = append(members, shard.LogInput{Rank: r, Member: m})
			}
		}
		a.closes[stepOf{led.Timeline, d.Step}] = members
	case ledger.Cut:
		id := ledger.CutID{Timeline: d.Timeline, Step: d.Step}
		st, err := w.readCut(id)
		if err != nil {
			w.fail("the cut at step %d is recorded but not on disk: %v", d.Step, err)
		} else if a.golden != nil {
			if diff := a.golden.cuts[d.Step].diff(st); diff != "" {
				w.fail("the cut at step %d: %s", d.Step, diff)
			}
		}
	case ledger.Begin:
		base := ledger.CutID{Timeline: d.CutTimeline, Step: d.Step}
		if base != led.Newest() && len(a.rotten) == 0 {
			w.fail("timeline %d goes back to step %d although the cut at step %d is recorded", d.Timeline, d.Step, led.Newest().Step)
		}
		for i := len(led.Cuts) - 1; i >= 0 && led.Cuts[i] != base; i-- {
			if _, err := w.readCut(led.Cuts[i]); err == nil {
				w.fail("timeline %d goes back to step %d although the cut at step %d is whole", d.Timeline, d.Step, led.Cuts[i].Step)
			}
		}
	}
}

// end checks what is left when the job has ended: every cut that ought to be
// kept can be read, and the last one is of the last step.
func (a *audit) end() {
	w := a.w
	led := &w.auth.led
	want := w.plan.Steps
	if led.Stopped && !led.Finished {
		want = led.StopAt
	}
	if got := led.Newest().Step; got != want && len(a.rotten) == 0 { // a finished job whose last cut rots restarts from an older one
		w.fail("the job ended at step %d of %d", got, want)
	}
	for _, id := range led.Cuts[max(0, len(led.Cuts)-w.plan.Keep):] {
		// Where a cut was damaged, older ones count as kept that are long gone.
		if st, err := w.readCut(id); err != nil && (len(a.rotten) == 0 || id == led.Newest() && !a.rotten[id]) {
			w.fail("the cut at step %d is lost: %v", id.Step, err)
		} else if err == nil && a.golden != nil {
			if diff := a.golden.cuts[id.Step].diff(st); diff != "" {
				w.fail("the cut at step %d: %s", id.Step, diff)
			}
		}
	}
}
