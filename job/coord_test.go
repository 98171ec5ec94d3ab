package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/shard"
)

// office drives a coordinator by hand: the test is its workers, its shards and
// the authority.
type office struct {
	t       *testing.T
	c       *Coord
	now     time.Duration
	decided []*ledger.Decision
	inc     uint64
	epochs  []uint64
	outs    []Out // since the last take
	auto    bool  // compare-and-sets succeed at once
	pending *ledger.Decision
}

const timeout = 2 * time.Second

// newOffice has two workers to wait for, four ranks and two shards.
func newOffice(t *testing.T, change func(*CoordConfig)) *office {
	t.Helper()
	cfg := CoordConfig{Job: "job", Ranks: 4, Workers: 2, Shards: 2, Steps: 100, OnLoss: Reassign, WorkerTimeout: timeout, StartTimeout: time.Minute,
		Spec: []byte("spec"), Nonce: 5}
	if change != nil {
		change(&cfg)
	}
	o := &office{t: t, now: time.Hour, epochs: []uint64{10, 11}, auto: true}
	o.c = NewCoord(cfg, nil, o.now)
	return o
}

// running is a job whose workers a and b and both shards have come.
func running(t *testing.T, change func(*CoordConfig)) *office {
	t.Helper()
	o := newOffice(t, change)
	o.tick(0)
	o.join("a", 1)
	o.join("b", 2)
	o.ready()
	if l := o.c.Ledger(); l.Timeline != 1 || l.View != 1 {
		t.Fatalf("not running: %+v", l)
	}
	// It runs long enough that a worker it does not know is lost, not late.
	o.now += 2*timeout + 1
	o.beat("a", "b")
	o.report(0, 0)
	o.outs = nil
	return o
}

func (o *office) do(outs []Out) {
	o.t.Helper()
	outs = slices.Clone(outs)
	o.outs = append(o.outs, outs...)
	for i := range outs {
		switch x := &outs[i]; x.Kind {
		case Enlist:
			if o.auto {
				o.inc++
				o.do(o.c.Enlisted(x.Worker, x.Nonce, o.inc, o.now))
			}
		case Propose:
			if o.pending != nil {
				o.t.Fatalf("proposed %+v while %+v is in flight", x.Decision, o.pending)
			}
			d := *x.Decision
			if d.N != uint64(len(o.decided)+1) || d.Nonce != 5 {
				o.t.Fatalf("proposed %+v after %d decisions", d, len(o.decided))
			}
			if o.pending = &d; o.auto {
				o.answer(&d)
			}
		}
	}
}

// answer tells the coordinator what stands under the number that it proposed.
func (o *office) answer(d *ledger.Decision) {
	o.t.Helper()
	o.pending = nil
	if d != nil {
		o.decided = append(o.decided, d)
	}
	o.do(o.c.Decided(d, o.now))
}

func (o *office) tick(d time.Duration) {
	o.t.Helper()
	o.now += d
	o.do(o.c.Tick(o.now))
}

func (o *office) hear(h wire.Header, tail []byte) {
	o.t.Helper()
	released := 0
	if h.Job == "" {
		h.Job = "job"
	}
	o.do(o.c.Handle(wire.NewMessage(h, slices.Clone(tail), func() { released++ }), o.now))
	if released != 1 {
		o.t.Fatalf("message released %d times", released)
	}
}

func (o *office) join(name string, nonce uint64) {
	o.t.Helper()
	o.hear(wire.Header{Kind: wire.Join, Worker: name, Seq: nonce}, nil)
}

// beat says that workers are alive, under the nonce they joined with.
func (o *office) beat(names ...string) {
	o.t.Helper()
	for _, n := range names {
		w := o.c.workers[n]
		o.hear(wire.Header{Kind: wire.Beat, Worker: n, Incarnation: w.inc, Seq: w.nonce}, nil)
	}
}

func (o *office) fromShard(k int, h wire.Header, tail []byte) {
	o.t.Helper()
	h.Shard = uint32(k)
	if h.Epoch == 0 {
		h.Epoch = o.epochs[k]
	}
	if h.Timeline == 0 {
		h.Timeline = o.c.Ledger().Timeline
	}
	o.hear(h, tail)
}

func (o *office) ready() {
	o.t.Helper()
	for k := range o.epochs {
		o.fromShard(k, wire.Header{Kind: wire.Ready}, nil)
	}
}

func (o *office) report(lo, hi uint64) {
	o.t.Helper()
	for k := range o.epochs {
		o.fromShard(k, wire.Header{Kind: wire.Report, Lo: lo, Hi: hi}, nil)
	}
}

func (o *office) saved(step uint64) {
	o.t.Helper()
	for k := range o.epochs {
		o.fromShard(k, wire.Header{Kind: wire.Saved, Step: step}, nil)
	}
}

// held answers the newest question to hold.
func (o *office) held(first uint64) {
	o.t.Helper()
	var step uint64
	for _, h := range o.said(ToShard, wire.Hold) {
		step = h.Step
	}
	for k := range o.epochs {
		o.fromShard(k, wire.Header{Kind: wire.Held, Step: step, Lo: first}, nil)
	}
}

// said takes the messages of one kind that were said since the last call.
func (o *office) said(to OutKind, k wire.Kind) (hs []wire.Header) {
	for _, x := range o.outs {
		if x.Kind == to && x.H.Kind == k {
			hs = append(hs, x.H)
		}
	}
	o.outs = slices.DeleteFunc(o.outs, func(x Out) bool { return x.Kind == to && x.H.Kind == k })
	return hs
}

func (o *office) last() *ledger.Decision {
	o.t.Helper()
	if len(o.decided) == 0 {
		o.t.Fatal("nothing decided")
	}
	return o.decided[len(o.decided)-1]
}

func (o *office) status(text string) {
	o.t.Helper()
	if s := o.c.Status(o.now); !strings.Contains(s.WaitingFor, text) || text == "" && s.WaitingFor != "" {
		o.t.Errorf("waiting for %q, want %q", s.WaitingFor, text)
	}
}

func (o *office) is(state string) {
	o.t.Helper()
	s := o.c.Status(o.now)
	if s.State != state || s.Ended() != (state == "finished" || state == "stopped" || state == "halted") {
		o.t.Errorf("state %q, want %q", s.State, state)
	}
}

// owner is a view in short: a name per rank.
func names(ranks []ledger.Member) (s string) {
	for _, m := range ranks {
		s += fmt.Sprintf("%s%d ", m.Worker, m.Incarnation)
	}
	return strings.TrimSpace(s)
}

func TestStart(t *testing.T) {
	o := newOffice(t, nil)
	o.tick(0)
	o.is("waiting")
	o.status("the owner of shard 0, 1")
	if hs := o.said(ToShard, wire.Hold); len(hs) != 2 || hs[0].Step != shard.Latest {
		t.Errorf("promises to an earlier coordinator are withdrawn by %+v", hs)
	}
	o.fromShard(1, wire.Header{Kind: wire.Ready}, nil)
	o.status("the owner of shard 0")
	o.fromShard(0, wire.Header{Kind: wire.Ready}, nil)
	o.status("workers: 0 of 2 have joined")
	o.join("b", 2)
	o.status("workers: 1 of 2 have joined")
	if len(o.decided) != 0 {
		t.Fatalf("decided %+v before all are there", o.last())
	}
	o.join("a", 1)
	if len(o.decided) != 2 || o.decided[0].Kind != ledger.View || names(o.decided[0].Ranks) != "a2 b1 a2 b1" {
		t.Fatalf("decided %+v", o.decided)
	}
	if d := o.last(); d.Kind != ledger.Begin || d.Timeline != 1 || d.Step != 0 || !slices.Equal(d.Epochs, []uint64{10, 11}) {
		t.Errorf("the job begins with %+v", d)
	}
	o.is("running")
	o.status("")
	if hs := o.said(ToAll, wire.News); len(hs) < 2 {
		t.Errorf("told %+v", hs)
	}
	o.now += 3 * time.Second
	o.beat("a", "b")
	o.fromShard(0, wire.Header{Kind: wire.Report}, nil)
	o.status("the owner of shard 1")
	if s := o.c.Status(o.now); s.Since != 3 {
		t.Errorf("shard 1 is silent for 3 s, and waited for for %v s", s.Since)
	}
}

// Fewer workers than asked for will do when the time is up; none will not, and
// a resumed job gives them the whole time again.
func TestStartTimeout(t *testing.T) {
	o := newOffice(t, nil)
	o.ready()
	o.join("a", 1)
	o.tick(59 * time.Second)
	o.beat("a")
	o.tick(0)
	if len(o.decided) != 0 {
		t.Fatalf("decided %+v too early", o.last())
	}
	o.tick(2 * time.Second)
	if len(o.decided) != 2 || names(o.decided[0].Ranks) != "a1 a1 a1 a1" {
		t.Fatalf("decided %+v", o.decided)
	}

	o = newOffice(t, nil)
	o.ready()
	o.tick(time.Minute)
	if d := o.last(); d.Kind != ledger.Halt || !strings.Contains(d.Reason, "no worker came within 1m0s") {
		t.Fatalf("decided %+v", d)
	}
	o.is("halted")
	o.tick(time.Minute)
	if len(o.decided) != 1 {
		t.Fatalf("a halted job decides %+v", o.last())
	}
	outs, ok := o.c.RequestResume(o.now)
	if o.do(outs); !ok || len(o.decided) != 1 {
		t.Fatalf("resumed: %v, decided %+v", ok, o.decided)
	}
	o.tick(30 * time.Second)
	if len(o.decided) != 1 {
		t.Fatalf("decided %+v before the time is up again", o.last())
	}
	o.tick(30 * time.Second)
	o.tick(time.Minute)
	if len(o.decided) != 2 || o.last().Kind != ledger.Halt {
		t.Fatalf("decided %+v, want one more halt", o.decided)
	}
	outs, _ = o.c.RequestResume(o.now)
	o.do(outs)
	o.ready()
	o.join("a", 1)
	o.join("b", 2)
	o.is("running")
}

func TestJoins(t *testing.T) {
	o := newOffice(t, nil)
	o.join("", 1)
	o.join("a", 0)
	o.hear(wire.Header{Kind: wire.Join, Job: "other", Worker: "a", Seq: 1}, nil)
	if len(o.outs) != 0 {
		t.Fatalf("answers to joins of nobody: %+v", o.outs)
	}
	o.join("a", 1)
	first := o.said(ToWorker, wire.Welcome)
	if len(first) != 1 || first[0].Incarnation != 1 || first[0].Seq != 1 || first[0].Worker != "a" || first[0].Code != wire.OK {
		t.Fatalf("welcome %+v", first)
	}
	o.join("a", 1) // the welcome was lost
	if again := o.said(ToWorker, wire.Welcome); len(again) != 1 || again[0] != first[0] || o.inc != 1 {
		t.Errorf("the same process is welcomed with %+v, then %+v", first, again)
	}
	o.join("a", 9) // another process
	hs := o.said(ToWorker, wire.Welcome)
	if len(hs) != 1 || hs[0].Code != wire.ErrNameInUse || hs[0].Seq != 9 || !strings.Contains(hs[0].Text, `worker "a"`) || hs[0].RetryMillis == 0 {
		t.Errorf("a name in use: %+v", hs)
	}
	o.hear(wire.Header{Kind: wire.Join, Worker: "a", Seq: 9, Hi: 1}, nil)
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 1 || hs[0].Incarnation != 2 || hs[0].Seq != 9 {
		t.Errorf("replaced: %+v", hs)
	}
	// The one that was replaced learns of it from its next beat, and does not
	// get the name back.
	o.hear(wire.Header{Kind: wire.Beat, Worker: "a", Incarnation: 1, Seq: 1}, nil)
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 1 || hs[0].Code != wire.ErrStaleInc || hs[0].Seq != 1 {
		t.Errorf("beat of a process that was replaced: %+v", hs)
	}
	o.join("a", 1)
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 1 || hs[0].Code != wire.ErrNameInUse {
		t.Errorf("it joins again: %+v", hs)
	}
	o.tick(timeout + 1) // the name is free when its process is silent
	o.join("a", 1)
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 1 || hs[0].Code != wire.OK || hs[0].Incarnation != 3 {
		t.Errorf("a name that is free again: %+v", hs)
	}
}

// The compare-and-set of an incarnation may fail or take long.
func TestEnlist(t *testing.T) {
	o := newOffice(t, nil)
	o.auto = false
	enlists := func() (n int) {
		for _, x := range o.outs {
			if x.Kind == Enlist {
				n++
			}
		}
		o.outs = nil
		return n
	}
	o.join("a", 1)
	o.join("a", 1)
	if n := enlists(); n != 1 {
		t.Errorf("%d compare-and-sets under way", n)
	}
	o.do(o.c.Enlisted("a", 1, 0, o.now)) // failed
	if len(o.said(ToWorker, wire.Welcome)) != 0 || len(o.c.alive()) != 0 {
		t.Error("welcome without an incarnation")
	}
	o.join("a", 1)
	if n := enlists(); n != 1 {
		t.Errorf("%d compare-and-sets after one failed", n)
	}
	// Another process takes the name over meanwhile: the answer is not its own.
	o.hear(wire.Header{Kind: wire.Join, Worker: "a", Seq: 2, Hi: 1}, nil)
	o.do(o.c.Enlisted("a", 1, 7, o.now))
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 0 || len(o.c.alive()) != 0 {
		t.Errorf("welcome %+v to a process that was replaced", hs)
	}
	o.do(o.c.Enlisted("nobody", 1, 8, o.now))
	enlists()
	o.join("a", 2)
	if n := enlists(); n != 1 {
		t.Errorf("%d compare-and-sets for the new process", n)
	}
	o.do(o.c.Enlisted("a", 2, 8, o.now))
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 1 || hs[0].Incarnation != 8 || hs[0].Seq != 2 {
		t.Errorf("welcome %+v", hs)
	}
}

// A coordinator that restarted asks those it does not know to join again, and
// does not take their ranks away before they could.
func TestRestart(t *testing.T) {
	o := running(t, nil)
	o.saved(10)
	history := slices.Clone(o.decided)
	o.c = NewCoord(o.c.cfg, history, o.now)
	o.tick(0)
	if l := o.c.Ledger(); l.N != uint64(len(history)) || l.Newest().Step != 10 {
		t.Fatalf("continues at %+v", l)
	}
	o.said(ToWorker, wire.Welcome)
	o.hear(wire.Header{Kind: wire.Beat, Worker: "a", Incarnation: 1, Seq: 1}, nil)
	if hs := o.said(ToWorker, wire.Welcome); len(hs) != 1 || hs[0].Code != wire.ErrStaleInc {
		t.Errorf("beat of a worker it does not know: %+v", hs)
	}
	o.ready()
	o.join("a", 1)
	if len(o.decided) != len(history) {
		t.Errorf("decided %+v although b may come", o.last())
	}
	o.tick(2*timeout + 1)
	o.beat("a")
	if d := o.last(); d.Kind != ledger.View || strings.Contains(names(d.Ranks), "b") {
		t.Errorf("b did not come, decided %+v", d)
	}
}

func TestLoss(t *testing.T) {
	for policy, want := range map[OnLoss]string{Reassign: "a1 a1 a1 a1", Wait: "", Shrink: "a1 0 a1 0"} {
		o := running(t, func(c *CoordConfig) { c.OnLoss, c.Mode = policy, shard.ByDecision })
		o.tick(timeout / 2)
		o.beat("a")
		before := len(o.decided)
		o.tick(timeout)
		o.beat("a")
		if want == "" && len(o.decided) != before || want != "" && names(o.last().Ranks) != want {
			t.Errorf("%s: decided %+v, want %q", policy, o.last(), want)
		}
		noted := false
		for _, x := range o.outs {
			noted = noted || x.Kind == Note && strings.Contains(x.Text, "worker b is silent for")
		}
		if !noted {
			t.Errorf("%s: nobody is told", policy)
		}
		// Whom it waits for, when shards say which ranks they lack.
		o.report(3, 3)
		for k := range o.epochs {
			o.fromShard(k, wire.Header{Kind: wire.Waiting}, []byte{0b1010})
		}
		switch policy {
		case Reassign:
			o.status("step 3: rank 1 (a), 3 (a)")
		case Wait:
			o.status("step 3: rank 1 (b, lost), 3 (b, lost)")
		case Shrink:
			o.status("step 3: rank 1 (nobody), 3 (nobody)")
		}
		o.report(4, 4) // it went on
		o.status("")
		// b is back, by a beat or as a new process.
		o.hear(wire.Header{Kind: wire.Join, Worker: "b", Seq: 77}, nil)
		back := "a1 b3 a1 b3"
		if policy == Reassign {
			back = "a1 a1 b3 b3" // nobody remembers which it had
		}
		if got := names(o.last().Ranks); got != back {
			t.Errorf("%s: b is back and the view is %s, want %s", policy, got, back)
		}
		o.hear(wire.Header{Kind: wire.Leave, Worker: "b", Seq: 2}, nil) // of the process before
		if len(o.c.alive()) != 2 {
			t.Errorf("%s: the goodbye of an earlier process counts", policy)
		}
		before = len(o.decided)
		o.hear(wire.Header{Kind: wire.Leave, Worker: "b", Seq: 77}, nil)
		if moved := len(o.decided) > before; moved != (policy != Wait) {
			t.Errorf("%s: b left, decided %+v", policy, o.last())
		}
		o.hear(wire.Header{Kind: wire.Leave, Worker: "a", Seq: 1}, nil)
		o.status("a worker: none is alive")
	}
}

// A cut exists when every shard has it; cuts are recorded in order; the one at
// the last step finishes the job.
func TestCuts(t *testing.T) {
	o := running(t, nil)
	o.fromShard(0, wire.Header{Kind: wire.Saved, Step: 20}, nil)
	o.fromShard(0, wire.Header{Kind: wire.Saved, Step: 10}, nil)
	if o.last().Kind == ledger.Cut {
		t.Fatal("recorded with one shard of two")
	}
	o.fromShard(1, wire.Header{Kind: wire.Saved, Step: 10, Epoch: 5}, nil) // an owner that was deposed
	o.fromShard(1, wire.Header{Kind: wire.Saved, Step: 10, Timeline: 9}, nil)
	if o.last().Kind == ledger.Cut {
		t.Fatal("recorded by a message of somebody else or of another timeline")
	}
	o.auto = false
	o.fromShard(1, wire.Header{Kind: wire.Saved, Step: 20}, nil)
	o.fromShard(1, wire.Header{Kind: wire.Saved, Step: 10}, nil)
	if o.pending == nil || o.pending.Kind != ledger.Cut || o.pending.Step != 20 {
		t.Fatalf("proposed %+v, want the cut at 20, all there was", o.pending)
	}
	o.auto = true
	o.answer(o.pending)
	if d := o.last(); d.Step != 20 {
		t.Errorf("decided %+v: a cut that a newer one has overtaken may be gone", d)
	}
	for k := range o.epochs {
		o.fromShard(k, wire.Header{Kind: wire.Saved, Step: 40}, nil)
		o.fromShard(k, wire.Header{Kind: wire.Saved, Step: 30}, nil)
	}
	if got := o.c.Ledger().Cuts; len(got) < 2 || !slices.IsSortedFunc(got, func(a, b ledger.CutID) int { return int(a.Step) - int(b.Step) }) {
		t.Errorf("cuts recorded: %v", got)
	}
	o.saved(100)
	if d := o.last(); d.Kind != ledger.Finish || d.Step != 100 {
		t.Errorf("decided %+v", d)
	}
	o.is("finished")
	o.status("")
	n := len(o.decided)
	o.hear(wire.Header{Kind: wire.Leave, Worker: "a", Seq: 1}, nil)
	o.tick(time.Minute)
	if len(o.decided) != n {
		t.Errorf("a finished job decides %+v", o.last())
	}
	// Its model can be read although a server restarted.
	o.epochs[1] = 30
	o.ready()
	if d := o.last(); d.Kind != ledger.Begin || d.CutTimeline != 1 || d.Step != 100 || !slices.Equal(d.Epochs, []uint64{10, 30}) {
		t.Errorf("decided %+v", d)
	}
	o.is("finished")
}

func (o *office) requestStop(ok bool) {
	o.t.Helper()
	outs, did := o.c.RequestStop("asked to", o.now)
	if did != ok {
		o.t.Errorf("RequestStop: %v, want %v", did, ok)
	}
	o.do(outs)
}

func TestStopAndResume(t *testing.T) {
	o := newOffice(t, nil)
	o.requestStop(false) // nothing runs yet
	o = running(t, nil)
	o.saved(10)
	o.report(12, 13)
	o.said(ToShard, wire.Hold)
	o.requestStop(true)
	o.is("stopping")
	o.requestStop(true)
	hs := o.said(ToShard, wire.Hold)
	if len(hs) != 2 || hs[0].Step != 14 {
		t.Fatalf("asked to hold %+v, want step 14", hs)
	}
	o.fromShard(0, wire.Header{Kind: wire.Held, Step: 14, Lo: 13}, nil)
	o.fromShard(1, wire.Header{Kind: wire.Held, Step: 14, Lo: 17}, nil) // is beyond
	if o.last().Kind == ledger.Stop {
		t.Fatal("stopped at a step that a shard has passed")
	}
	o.tick(300 * time.Millisecond)
	hs = o.said(ToShard, wire.Hold)
	if len(hs) != 2 || hs[0].Step < 17 {
		t.Fatalf("asked to hold %+v, want a step from 17 on", hs)
	}
	at := hs[0].Step
	o.fromShard(1, wire.Header{Kind: wire.Held, Step: 14, Lo: 17}, nil) // repeated
	if o.last().Kind == ledger.Stop {
		t.Fatal("stopped with an answer to an earlier question")
	}
	// Shard 0's promise for step 14 is one for every later step.
	o.fromShard(1, wire.Header{Kind: wire.Held, Step: at, Lo: 17}, nil)
	if d := o.last(); d.Kind != ledger.Stop || d.Step != at || d.Reason != "asked to" {
		t.Fatalf("decided %+v", d)
	}
	o.is("stopping")
	o.saved(at)
	o.is("stopped")
	o.status("")
	if s := o.c.Status(o.now); s.Step != at || s.Reason != "asked to" {
		t.Errorf("status %+v", s)
	}
	// A server that restarts does not let a stopped job go on.
	o.epochs[0] = 20
	o.ready()
	if d := o.last(); d.Kind != ledger.Begin || !d.Paused || d.Step != at || d.Timeline != 2 || d.CutTimeline != 1 {
		t.Fatalf("decided %+v", d)
	}
	o.is("stopped")
	outs, ok := o.c.RequestResume(o.now)
	o.do(outs)
	if d := o.last(); !ok || d.Kind != ledger.Begin || d.Paused || d.Step != at || d.Timeline != 3 {
		t.Fatalf("resumed: %v, decided %+v", ok, d)
	}
	o.is("running")
	if _, ok := o.c.RequestResume(o.now); ok {
		t.Error("resumed a job that runs")
	}
	// It can be stopped again.
	o.report(at+2, at+2)
	o.requestStop(true)
	o.held(at + 2)
	if d := o.last(); d.Kind != ledger.Stop || d.Step <= at {
		t.Errorf("decided %+v", d)
	}
}

func TestHalt(t *testing.T) {
	o := running(t, nil)
	o.saved(10)
	o.fromShard(1, wire.Header{Kind: wire.Report, Code: wire.ErrHalted, Text: "step 12 made tensor w non-finite", Timeline: 7}, nil)
	if o.last().Kind == ledger.Halt {
		t.Fatal("halted by a message of another timeline")
	}
	for range 3 { // it says so again and again
		o.fromShard(1, wire.Header{Kind: wire.Report, Code: wire.ErrHalted, Text: "step 12 made tensor w non-finite"}, nil)
	}
	n := len(o.decided)
	if d := o.last(); d.Kind != ledger.Halt || d.Reason != "step 12 made tensor w non-finite" || o.decided[n-2].Kind == ledger.Halt {
		t.Fatalf("decided %+v", d)
	}
	o.is("halted")
	o.saved(20)
	o.requestStop(false)
	if len(o.decided) != n {
		t.Errorf("a halted job decides %+v", o.last())
	}
	outs, ok := o.c.RequestResume(o.now)
	o.do(outs)
	if d := o.last(); !ok || d.Kind != ledger.Begin || d.Step != 10 || d.CutTimeline != 1 || len(o.decided) != n+1 {
		t.Errorf("resumed: %v, decided %+v", ok, d)
	}
	o.is("running")

	// A worker's word halts the job only about a rank that it holds.
	o = running(t, nil)
	bad := wire.Header{Kind: wire.Bad, Rank: 1, Worker: "b", Incarnation: 2, Code: wire.ErrNotFinite, Text: "worker b: rank 1: NaN", Timeline: 1}
	for _, f := range []func(*wire.Header){func(h *wire.Header) { h.Rank = 0 }, func(h *wire.Header) { h.Incarnation = 1 }, func(h *wire.Header) { h.Timeline = 0 },
		func(h *wire.Header) { h.Rank = 99 }} {
		h := bad
		f(&h)
		o.hear(h, nil)
	}
	if o.last().Kind == ledger.Halt {
		t.Fatalf("halted by %+v", o.last())
	}
	o.hear(bad, nil)
	if d := o.last(); d.Kind != ledger.Halt || d.Reason != bad.Text {
		t.Errorf("decided %+v", d)
	}
}

// A compare-and-set may fail, or turn out to have been somebody else's. Nothing
// is announced before it is decided, and what stands under the number counts.
func TestAmbiguousDecisions(t *testing.T) {
	o := running(t, nil)
	o.auto = false
	o.saved(10)
	first := o.pending
	if first == nil || first.Kind != ledger.Cut {
		t.Fatalf("proposed %+v", first)
	}
	if hs := o.said(ToAll, wire.News); len(hs) != 0 || o.c.Ledger().Newest().Step != 0 {
		t.Errorf("told %+v before it was decided", hs)
	}
	o.hear(wire.Header{Kind: wire.Leave, Worker: "a", Seq: 1}, nil) // calls for another decision, which waits
	o.answer(nil)                                                   // failed and left nothing
	if o.pending == nil || o.pending.N != first.N || o.pending.Kind != ledger.View {
		t.Fatalf("proposed %+v after a failure, want a view under number %d", o.pending, first.N)
	}
	// Another coordinator was faster: its decision stands, is told, and ours is
	// looked at again.
	theirs := &ledger.Decision{N: first.N, Kind: ledger.Cut, Timeline: 1, Step: 10, Nonce: 99}
	o.answer(theirs)
	if hs := o.said(ToAll, wire.News); len(hs) != 1 || hs[0].Seq != theirs.N {
		t.Errorf("told %+v", hs)
	}
	if l := o.c.Ledger(); l.N != theirs.N || l.Newest().Step != 10 {
		t.Errorf("the ledger is at %+v", l)
	}
	if o.pending == nil || o.pending.Kind != ledger.View || o.pending.N != theirs.N+1 {
		t.Fatalf("proposed %+v next", o.pending)
	}
	// Theirs may also make ours needless.
	view := *o.pending
	view.Nonce = 99
	o.answer(&view)
	if o.pending != nil {
		t.Errorf("proposed %+v although all is decided", o.pending)
	}
	if got := o.c.History(); len(got) != len(o.decided) {
		t.Errorf("%d decisions kept of %d", len(got), len(o.decided))
	}
	// Shards know more decisions than this coordinator: it finds out which.
	o.fromShard(0, wire.Header{Kind: wire.Report, Seq: uint64(len(o.decided)) + 1}, nil)
	if o.pending == nil {
		t.Fatal("does not look for the decision it does not know")
	}
	o.answer(&ledger.Decision{N: o.pending.N, Kind: ledger.Stop, Timeline: 1, Step: 30, Reason: "theirs", Nonce: 99})
	o.is("stopping")
}

// An owner that restarted lost what it held: the job goes back to its newest
// cut. One of an older epoch is nobody.
func TestTimelines(t *testing.T) {
	o := running(t, nil)
	o.saved(10)
	o.saved(20)
	n := len(o.decided)
	o.fromShard(0, wire.Header{Kind: wire.Ready, Epoch: 9}, nil)
	o.fromShard(0, wire.Header{Kind: wire.Report, Epoch: 9, Code: wire.ErrHalted, Text: "old"}, nil)
	o.fromShard(5, wire.Header{Kind: wire.Ready, Epoch: 90}, nil)
	if len(o.decided) != n {
		t.Fatalf("decided %+v for an owner of the past", o.last())
	}
	o.fromShard(0, wire.Header{Kind: wire.Ready, Epoch: 40}, nil)
	o.epochs[0] = 40
	if d := o.last(); d.Kind != ledger.Begin || d.Timeline != 2 || d.CutTimeline != 1 || d.Step != 20 || !slices.Equal(d.Epochs, []uint64{40, 11}) {
		t.Fatalf("decided %+v", d)
	}
	// Reports of the timeline before are void: this one starts at 20.
	o.fromShard(1, wire.Header{Kind: wire.Report, Timeline: 1, Lo: 25, Hi: 25}, nil)
	o.fromShard(1, wire.Header{Kind: wire.Saved, Timeline: 1, Step: 25}, nil)
	if s := o.c.Status(o.now); s.Step != 20 || s.Shards[1].Hi != 20 || s.Timeline != 2 {
		t.Errorf("status %+v", s)
	}
	// The cut cannot be read: one further back, and at last the start.
	o.fromShard(0, wire.Header{Kind: wire.Report, Code: wire.ErrGone, Text: "damaged"}, nil)
	if d := o.last(); d.Kind != ledger.Begin || d.Timeline != 3 || d.Step != 10 {
		t.Fatalf("decided %+v", d)
	}
	o.fromShard(0, wire.Header{Kind: wire.Report, Code: wire.ErrGone, Text: "damaged"}, nil)
	if d := o.last(); d.Kind != ledger.Begin || d.Timeline != 4 || d.Step != 0 || d.CutTimeline != 0 {
		t.Fatalf("decided %+v", d)
	}
	n = len(o.decided)
	o.fromShard(0, wire.Header{Kind: wire.Report, Code: wire.ErrGone, Text: "what?"}, nil)
	if len(o.decided) != n {
		t.Errorf("decided %+v: there is nothing before the start", o.last())
	}
}

// A step closes by decision when every shard holds every rank of the set from
// its present holder.
func TestClose(t *testing.T) {
	o := running(t, func(c *CoordConfig) { c.Mode, c.OnLoss = shard.ByDecision, Shrink })
	staged := func(k, rank int, step, view uint64, m ledger.Member) {
		o.t.Helper()
		o.fromShard(k, wire.Header{Kind: wire.Staged, Rank: uint32(rank), Step: step, View: view, Worker: m.Worker, Incarnation: m.Incarnation}, nil)
	}
	everywhere := func(rank int, step uint64) {
		o.t.Helper()
		l := o.c.Ledger()
		for k := range o.epochs {
			staged(k, rank, step, l.View, l.Ranks[rank])
		}
	}
	for r := range 3 {
		everywhere(r, 0)
	}
	staged(0, 3, 0, 1, o.c.Ledger().Ranks[3])
	staged(1, 3, 0, 1, ledger.Member{Worker: "c", Incarnation: 3}) // not the holder
	staged(1, 99, 0, 1, ledger.Member{})
	if o.last().Kind == ledger.Close {
		t.Fatal("closed without rank 3 on shard 1")
	}
	staged(1, 3, 0, 1, o.c.Ledger().Ranks[3])
	if d := o.last(); d.Kind != ledger.Close || d.Step != 0 || names(d.Ranks) != "a1 b2 a1 b2" {
		t.Fatalf("decided %+v", d)
	}
	// b is lost after it pushed step 1 to one shard: the step closes without it.
	everywhere(0, 1)
	everywhere(2, 1)
	staged(0, 1, 1, 1, o.c.Ledger().Ranks[1])
	o.hear(wire.Header{Kind: wire.Leave, Worker: "b", Seq: 2}, nil)
	if d := o.last(); d.Kind != ledger.Close || d.Step != 1 || names(d.Ranks) != "a1 0 a1 0" {
		t.Fatalf("decided %+v", d)
	}
	// It comes back: what shards said of it before they knew is void.
	o.join("b", 2)
	if l := o.c.Ledger(); l.View != 3 || !l.In(1) {
		t.Fatalf("b is back: %+v", l)
	}
	everywhere(0, 2)
	everywhere(2, 2)
	everywhere(3, 2)
	for k := range o.epochs {
		staged(k, 1, 2, 1, o.c.Ledger().Ranks[1])
	}
	if o.last().Kind == ledger.Close && o.last().Step == 2 {
		t.Fatal("closed with what a shard of an older view reported")
	}
	everywhere(1, 2)
	if d := o.last(); d.Kind != ledger.Close || d.Step != 2 {
		t.Errorf("decided %+v", d)
	}
	// A stop is a step that does not close any more.
	o.requestStop(true)
	at := o.c.stopAt
	for step := uint64(3); step < at+2; step++ {
		for r := range 4 {
			everywhere(r, step)
		}
	}
	if got := o.c.closing; got != at {
		t.Errorf("closed up to %d, the stop is at %d", got, at)
	}
	o.held(at)
	if d := o.last(); d.Kind != ledger.Stop || d.Step != at {
		t.Fatalf("decided %+v", d)
	}
	// A coordinator that starts again keeps to it.
	o.c = NewCoord(o.c.cfg, slices.Clone(o.decided), o.now)
	o.ready()
	for r := range 4 {
		everywhere(r, at)
	}
	if d := o.last(); d.Kind == ledger.Close && d.Step == at {
		t.Errorf("decided %+v after the stop", d)
	}
}

// What is asked for is answered, in order and not all at once; what is for
// nobody is not.
func TestAnswers(t *testing.T) {
	o := running(t, nil)
	for step := uint64(1); step < 99; step++ {
		o.saved(step)
	}
	o.outs = nil
	o.hear(wire.Header{Kind: wire.AskNews, Worker: "a", Seq: 0}, nil)
	hs := o.said(ToWorker, wire.News)
	if len(hs) != 64 || hs[0].Seq != 1 || hs[63].Seq != 64 {
		t.Errorf("%d decisions told, from %+v", len(hs), hs[:1])
	}
	o.hear(wire.Header{Kind: wire.AskNews, Shard: 1, Seq: 99}, nil)
	if hs := o.said(ToShard, wire.News); len(hs) != 2 || hs[0].Seq != 99 {
		t.Errorf("told %+v", hs)
	}
	o.hear(wire.Header{Kind: wire.AskNews, Shard: 1, Seq: 1 << 63}, nil)
	o.hear(wire.Header{Kind: wire.AskNews, Shard: 1, Seq: 1<<64 - 1}, nil)
	if hs := o.said(ToShard, wire.News); len(hs) != 0 {
		t.Errorf("told %+v", hs)
	}
	o.tick(time.Second)
	if hs := o.said(ToAll, wire.News); len(hs) != 1 || hs[0].Seq != uint64(len(o.decided)) {
		t.Errorf("beacons %+v", hs)
	}
	notes := func() (xs []Out) {
		for _, x := range o.outs {
			if x.Kind == NoteStep || x.Kind == NoteLoss {
				xs = append(xs, x)
			}
		}
		o.outs = nil
		return xs
	}
	o.hear(wire.Header{Kind: wire.Metric, Worker: "a", Incarnation: 1, Timeline: 1, Step: 7, Text: "accuracy", Loss: 0.5}, nil)
	o.hear(wire.Header{Kind: wire.Metric, Worker: "a", Incarnation: 9, Timeline: 1, Step: 7, Text: "forged", Loss: 0.5}, nil)
	o.hear(wire.Header{Kind: wire.Metric, Worker: "a", Incarnation: 1, Timeline: 9, Step: 7, Text: "past", Loss: 0.5}, nil)
	if xs := notes(); len(xs) != 1 || xs[0].Text != "accuracy" || xs[0].Losses[0] != 0.5 || xs[0].Step != 7 {
		t.Errorf("metrics %+v", xs)
	}
	// Every loss is noted once, whatever the reports repeat.
	losses := func(from uint64, xs ...float64) {
		o.fromShard(0, wire.Header{Kind: wire.Report, Lo: 4, Hi: 4, Pulled: from, Count: uint32(len(xs))}, wire.Bytes64(xs))
	}
	losses(0, 9, 8)
	losses(0, 9, 8, 7)
	losses(1, 8, 7)
	o.fromShard(0, wire.Header{Kind: wire.Report, Pulled: 3, Count: 9}, wire.Bytes64([]float64{1}))
	xs := notes()
	if len(xs) != 2 || xs[0].Step != 0 || !slices.Equal(xs[0].Losses, []float64{9, 8}) || xs[1].Step != 2 || !slices.Equal(xs[1].Losses, []float64{7}) {
		t.Errorf("losses %+v", xs)
	}
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		d    ledger.Decision
		want string
	}{
		{ledger.Decision{Kind: ledger.Begin, Timeline: 1}, "timeline 1 starts from the initial parameters"},
		{ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 5}, "timeline 2 starts from the cut at step 5; what came after it is rolled back"},
		{ledger.Decision{Kind: ledger.View, View: 3, Ranks: []ledger.Member{{Worker: "b"}, {Worker: "a"}, {Worker: "b"}, {}}}, "view 3: b serves 2 of 4 ranks; a serves 1 of 4 ranks"},
		{ledger.Decision{Kind: ledger.View, View: 3, Ranks: []ledger.Member{{}}}, "view 3"},
		{ledger.Decision{Kind: ledger.Close, Step: 4}, "step 4 closes"},
		{ledger.Decision{Kind: ledger.Cut, Step: 4}, "the cut at step 4 is saved"},
		{ledger.Decision{Kind: ledger.Stop, Step: 4, Reason: "asked to"}, "stop at step 4: asked to"},
		{ledger.Decision{Kind: ledger.Finish, Step: 4}, "finished after 4 steps"},
		{ledger.Decision{Kind: ledger.Halt, Reason: "NaN"}, "halt: NaN"},
	} {
		if got := Describe(&c.d, 1); got != c.want {
			t.Errorf("Describe: %q, want %q", got, c.want)
		}
	}
}

// TestStopCatchesUp: a job that makes many steps between a question and the
// next one is stopped all the same.
func TestStopCatchesUp(t *testing.T) {
	o := running(t, nil)
	o.report(1, 1)
	o.said(ToShard, wire.Hold)
	o.requestStop(true)
	for at := uint64(100); o.last().Kind != ledger.Stop; at += 50 {
		if at > 1000 {
			t.Fatalf("not stopped, the job is at step %d", at)
		}
		o.beat("a", "b")
		o.held(at)
		o.tick(50 * time.Millisecond)
	}
}

// TestResumeDuringRestart: a server restarted and the timeline that follows,
// in which the stopped job stays stopped, is being decided when somebody asks
// the job to go on.
func TestResumeDuringRestart(t *testing.T) {
	o := running(t, nil)
	o.report(10, 10)
	o.said(ToShard, wire.Hold)
	o.requestStop(true)
	o.held(10)
	o.saved(o.last().Step)
	o.is("stopped")
	o.auto = false
	o.epochs[0] = 20
	o.ready()
	paused := o.pending
	if paused == nil || paused.Kind != ledger.Begin || !paused.Paused {
		t.Fatalf("proposed %+v", paused)
	}
	outs, ok := o.c.RequestResume(o.now)
	o.do(outs)
	o.auto = true
	o.answer(paused)
	if d := o.last(); !ok || d.Kind != ledger.Begin || d.Paused || d.Timeline != 3 {
		t.Errorf("resumed: %v, decided %+v", ok, d)
	}
	o.is("running")
}

// TestPhases: what people see counts updates, and a job stops between two of
// them, however it is caught.
func TestPhases(t *testing.T) {
	o := running(t, func(c *CoordConfig) { c.Phases = 2 })
	o.report(5, 7)
	if s := o.c.Status(o.now); s.Step != 2 || s.Steps != 50 || s.Checkpoint != 0 {
		t.Errorf("status %+v", s)
	}
	o.saved(4)
	if s := o.c.Status(o.now); s.Checkpoint != 2 || s.Cut.Step != 4 {
		t.Errorf("status %+v", s)
	}
	o.requestStop(true)
	o.even(8)
	o.fromShard(0, wire.Header{Kind: wire.Held, Step: 8, Lo: 9}, nil)
	o.fromShard(1, wire.Header{Kind: wire.Held, Step: 8, Lo: 8}, nil)
	o.tick(50 * time.Millisecond)
	o.even(10)
	o.fromShard(0, wire.Header{Kind: wire.Held, Step: 10, Lo: 10}, nil)
	o.fromShard(1, wire.Header{Kind: wire.Held, Step: 10, Lo: 9}, nil)
	d := o.last()
	if d.Kind != ledger.Stop || d.Step != 10 {
		t.Fatalf("decided %+v", d)
	}
	o.saved(10)
	o.is("stopped")
	if s := o.c.Status(o.now); s.Step != 5 || s.Checkpoint != 5 {
		t.Errorf("status %+v", s)
	}
	if got := Describe(d, 2); !strings.HasPrefix(got, "stop at step 5: ") {
		t.Errorf("%q", got)
	}
	if outs, ok := o.c.RequestResume(o.now); !ok {
		t.Error("not resumed")
	} else {
		o.do(outs)
	}
	if d := o.last(); d.Kind != ledger.Begin || d.Step != 10 || d.Paused {
		t.Errorf("decided %+v", d)
	}
}

// even fails unless every shard was last asked to hold at step, which is the
// first of an update.
func (o *office) even(step uint64) {
	o.t.Helper()
	hs := o.said(ToShard, wire.Hold)
	for _, h := range hs {
		if h.Step%2 != 0 {
			o.t.Errorf("asked to hold in mid-update: %+v", h)
		}
	}
	if len(hs) == 0 || hs[len(hs)-1].Step != step {
		o.t.Fatalf("asked to hold %+v, want step %d", hs, step)
	}
}

// TestStopBetweenCloses: a step that closes by decision while a stop is looked
// for moves the stop to the next whole update, and nothing closes meanwhile.
func TestStopBetweenCloses(t *testing.T) {
	o := running(t, func(c *CoordConfig) { c.Phases, c.Mode = 2, shard.ByDecision })
	stage := func(step uint64) {
		for k := range o.epochs {
			for r, m := range o.c.led.Ranks {
				o.fromShard(k, wire.Header{Kind: wire.Staged, View: 1, Rank: uint32(r), Step: step, Worker: m.Worker, Incarnation: m.Incarnation}, nil)
			}
		}
	}
	stage(0)
	stage(1)
	o.auto = false
	stage(2)
	closing := o.pending
	if closing == nil || closing.Kind != ledger.Close || closing.Step != 2 {
		t.Fatalf("pending %+v", closing)
	}
	o.requestStop(true)
	o.even(2)
	o.auto = true
	o.answer(closing)
	stage(3)
	if d := o.last(); d != closing {
		t.Errorf("decided %+v before the stop was found", d)
	}
	o.beat("a", "b")
	o.tick(250 * time.Millisecond)
	o.even(4)
	if d := o.last(); d.Kind != ledger.Close || d.Step != 3 {
		t.Errorf("decided %+v, want the second phase", d)
	}
	stage(4)
	for k := range o.epochs {
		o.fromShard(k, wire.Header{Kind: wire.Held, Step: 4, Lo: 4}, nil)
	}
	if d := o.last(); d.Kind != ledger.Stop || d.Step != 4 {
		t.Errorf("decided %+v", d)
	}
}
