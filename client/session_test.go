package client

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
	"tributary/shard"
)

const retry = 100 * time.Millisecond

// script talks to one session by hand: the test is the coordinator and the
// shards. The model has 12 chunks of 4 numbers in 3 shards.
type script struct {
	t    *testing.T
	s    *Session
	plan *Plan
	now  time.Duration
	n    uint64
	out  []Out // said since the last take
}

func newScript(t *testing.T, change func(*Plan)) *script {
	t.Helper()
	l, err := layout.New([]layout.Tensor{{Name: "w", Shape: []int{6, 8}}}, 4)
	if err != nil {
		t.Fatal(err)
	}
	p := &Plan{Layout: l, Shards: 3, Ranks: 2, Steps: 10, Window: 2, Streaming: true, Rule: ruleOf(optim.Grad)}
	if change != nil {
		change(p)
	}
	x := &script{t: t, plan: p, now: time.Second}
	x.s = NewSession(SessionConfig{Job: testJob, Worker: "me", Nonce: 77, Retry: retry, Open: func([]byte) (*Plan, error) { return p, nil }})
	return x
}

// member joins, and begins timeline 1 with this worker on the given ranks.
func (x *script) member(ranks ...int) *script {
	x.t.Helper()
	x.tick(0)
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Incarnation: 5}, nil)
	x.view(ranks...)
	x.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 1, Epochs: []uint64{10, 11, 12}[:x.plan.Shards]})
	return x
}

func (x *script) view(ranks ...int) {
	x.t.Helper()
	d := ledger.Decision{Kind: ledger.View, View: x.s.led.View + 1, Ranks: slices.Repeat([]ledger.Member{{Worker: "other", Incarnation: 1}}, x.plan.Ranks)}
	for _, r := range ranks {
		d.Ranks[r] = ledger.Member{Worker: "me", Incarnation: 5}
	}
	x.decide(d)
}

func (x *script) decide(d ledger.Decision) {
	x.t.Helper()
	x.n++
	if d.N = x.n; d.Timeline == 0 {
		d.Timeline = x.s.led.Timeline
	}
	x.hear(wire.Header{Kind: wire.News, Seq: d.N}, d.Encode())
}

func (x *script) hear(h wire.Header, tail []byte) {
	x.t.Helper()
	h.Job = testJob
	released := 0
	outs := x.s.Handle(wire.NewMessage(h, slices.Clone(tail), func() { released++ }), x.now)
	x.out = append(x.out, outs...)
	checkCredit(x.t, x.s)
	if released != 1 {
		x.t.Fatalf("message released %d times", released)
	}
}

// fromShard is a message of the owner of a shard.
func (x *script) fromShard(k int, h wire.Header, tail []byte) {
	x.t.Helper()
	h.Shard, h.Epoch, h.Timeline = uint32(k), uint64(10+k), x.s.led.Timeline
	x.hear(h, tail)
}

func (x *script) shardOf(chunk uint32) int { return int(chunk) * x.plan.Shards / 12 }

func (x *script) ack(h wire.Header, level wire.Level) {
	x.t.Helper()
	x.fromShard(int(h.Shard), wire.Header{Kind: wire.Ack, Rank: h.Rank, Step: h.Step, Chunk: h.Chunk, Role: h.Role, Level: level}, nil)
}

func (x *script) tick(d time.Duration) {
	x.t.Helper()
	x.now += d
	x.out = append(x.out, x.s.Tick(x.now)...)
	checkCredit(x.t, x.s)
}

// said takes what was said of one kind since the last call.
func (x *script) said(k wire.Kind) []wire.Header {
	var hs []wire.Header
	for _, o := range x.out {
		if o.H.Kind == k {
			hs = append(hs, o.H)
		}
	}
	x.out = slices.DeleteFunc(x.out, func(o Out) bool { return o.H.Kind == k })
	return hs
}

func chunksOf(hs []wire.Header) []uint32 {
	var cs []uint32
	for _, h := range hs {
		cs = append(cs, h.Chunk)
	}
	slices.Sort(cs)
	return cs
}

// here answers the question where each rank stands.
func (x *script) here(step uint64) {
	x.t.Helper()
	for _, h := range x.said(wire.Where) {
		x.fromShard(int(h.Shard), wire.Header{Kind: wire.Here, Rank: h.Rank, Seq: h.Seq, Step: step}, nil)
	}
}

// give hands over chunks at a version.
func (x *script) give(v uint64, chunks ...uint32) {
	x.t.Helper()
	for _, c := range chunks {
		tail := wire.Bytes32([]float32{float32(v), float32(c), 0, 0})
		x.fromShard(x.shardOf(c), wire.Header{Kind: wire.Params, Chunk: c, Step: v, Count: 4, CRC: wire.Checksum(tail)}, tail)
	}
}

func all() []uint32 {
	var cs []uint32
	for c := range uint32(12) {
		cs = append(cs, c)
	}
	return cs
}

func (x *script) take() Work {
	x.t.Helper()
	w, ok := x.s.Take(x.now)
	if !ok {
		x.t.Fatalf("no work: %s", x.s.Debug())
	}
	return w
}

func (x *script) push(rank int, step uint64) {
	x.t.Helper()
	outs, err := x.s.Push(Contribution{Rank: rank, Step: step, Grad: make([]float32, x.plan.Layout.P)}, x.now)
	if err != nil {
		x.t.Fatalf("push: %v", err)
	}
	x.out = append(x.out, outs...)
	checkCredit(x.t, x.s)
}

// pushing is a worker that has pushed step 0 of rank 0 as far as its window
// allows.
func pushing(t *testing.T, change func(*Plan)) *script {
	t.Helper()
	x := newScript(t, change).member(0)
	x.here(0)
	x.give(0, all()...)
	x.take()
	x.said(wire.Pull)
	x.push(0, 0)
	return x
}

func TestJoin(t *testing.T) {
	x := newScript(t, nil)
	x.tick(0)
	x.tick(retry)
	if hs := x.said(wire.Join); len(hs) != 1 || hs[0].Worker != "me" || hs[0].Seq != 77 || hs[0].Hi != 0 {
		t.Fatalf("joins: %+v", hs)
	}
	x.tick(retry)
	if hs := x.said(wire.Join); len(hs) != 1 {
		t.Errorf("%d joins after two waits", len(hs))
	}
	if w := x.s.Waiting(x.now); !strings.Contains(w, `the coordinator of job "job"`) {
		t.Errorf("waiting %q", w)
	}
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 78, Incarnation: 5}, nil)
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "you", Seq: 77, Incarnation: 5}, nil)
	if x.s.inc != 0 || x.s.Plan() != nil {
		t.Error("took somebody else's welcome")
	}
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Code: wire.ErrNameInUse, Text: "taken"}, nil)
	if x.s.Err() != nil || x.s.Waiting(x.now) != "taken" {
		t.Errorf("name in use: %v, waiting %q", x.s.Err(), x.s.Waiting(x.now))
	}
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Incarnation: 5}, nil)
	if w := x.s.Waiting(x.now); !strings.Contains(w, "to start") {
		t.Errorf("waiting %q", w)
	}
	x.said(wire.Join)
	x.tick(3 * retry)
	if hs := x.said(wire.Beat); len(hs) != 1 || hs[0].Incarnation != 5 || hs[0].Seq != 77 {
		t.Errorf("beats: %+v", hs)
	}
	// A coordinator that restarted does not know this worker: it joins again.
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Code: wire.ErrStaleInc}, nil)
	if hs := x.said(wire.Join); len(hs) != 1 {
		t.Errorf("%d joins after it was forgotten", len(hs))
	}
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Incarnation: 6}, nil)
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Code: wire.ErrNameInUse, Text: "taken"}, nil)
	if !errors.Is(x.s.Err(), ErrReplaced) {
		t.Errorf("another process took the name: %v", x.s.Err())
	}
}

func TestJoinFails(t *testing.T) {
	x := newScript(t, nil)
	x.tick(0)
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Code: wire.ErrForbidden, Text: "no key"}, nil)
	if err := x.s.Err(); !errors.Is(err, wire.ErrForbidden) || !strings.Contains(err.Error(), "no key") {
		t.Errorf("forbidden: %v", err)
	}
	x = newScript(t, nil)
	bad := errors.New("unreadable")
	x.s.cfg.Open = func([]byte) (*Plan, error) { return nil, bad }
	x.tick(0)
	x.hear(wire.Header{Kind: wire.Welcome, Worker: "me", Seq: 77, Incarnation: 1}, nil)
	if err := x.s.Err(); !errors.Is(err, bad) {
		t.Errorf("bad record: %v", err)
	}
	for _, k := range []wire.Kind{wire.Params, wire.Ack, wire.Waiting, wire.Here, wire.State, wire.AskState} {
		x.fromShard(0, wire.Header{Kind: k}, nil) // before anything is known
	}
	x = newScript(t, nil)
	x.s.cfg.Replace = true
	x.tick(0)
	if hs := x.said(wire.Join); hs[0].Hi != 1 {
		t.Errorf("replace: %+v", hs)
	}
}

// Chunks go out in ascending order, as many as the window, and the next when
// credit comes back.
func TestWindow(t *testing.T) {
	for _, streaming := range []bool{true, false} {
		x := pushing(t, func(p *Plan) { p.Streaming = streaming })
		level := wire.LevelStaged
		if streaming {
			level = wire.LevelApplied
		}
		first := x.said(wire.Push)
		if got := chunksOf(first); !slices.Equal(got, []uint32{0, 1, 4, 5, 8, 9}) {
			t.Fatalf("first pushed %v, want two of each shard", got)
		}
		for _, h := range first {
			if h.Rank != 0 || h.Step != 0 || h.Worker != "me" || h.Incarnation != 5 || h.View != 1 || h.Epoch != uint64(10+h.Shard) || h.Count != 4 ||
				h.Chunks != 12 || h.Examples != 1 || h.CRC != wire.Checksum(make([]byte, 16)) {
				t.Errorf("pushed %+v", h)
			}
		}
		x.ack(first[0], level)
		x.ack(first[0], level) // repeated
		if got := chunksOf(x.said(wire.Push)); !slices.Equal(got, []uint32{2}) {
			t.Errorf("after one answer pushed %v, want chunk 2", got)
		}
		// The shard lowers its credit, and raises it above the plan's.
		x.fromShard(0, wire.Header{Kind: wire.Ack, Chunk: 1, Level: level, Credit: 1}, nil)
		if got := x.said(wire.Push); len(got) != 0 {
			t.Errorf("pushed %v with a credit of one and one in flight", chunksOf(got))
		}
		x.fromShard(0, wire.Header{Kind: wire.Ack, Chunk: 2, Level: level, Credit: 99}, nil)
		if got := chunksOf(x.said(wire.Push)); !slices.Equal(got, []uint32{3}) {
			t.Errorf("pushed %v, want chunk 3", got)
		}
		for _, h := range first[2:] {
			x.ack(h, level)
		}
		for _, h := range append(x.said(wire.Push), wire.Header{Chunk: 3}) {
			x.ack(h, level)
		}
		// Credit of staged chunks is back, and their bytes are still needed.
		if x.s.Acknowledged() != streaming || len(x.s.flight) != map[bool]int{true: 0, false: 1}[streaming] {
			t.Errorf("streaming %v: acknowledged %v, %d in flight", streaming, x.s.Acknowledged(), len(x.s.flight))
		}
		if !streaming {
			x.give(1, all()...) // version 1 contains it
			if !x.s.Acknowledged() {
				t.Error("not acknowledged by the parameters that contain it")
			}
		}
	}
}

// With several roles a chunk is staged when all of them are.
func TestRolesOfAChunk(t *testing.T) {
	x := newScript(t, func(p *Plan) { p.Streaming, p.Rule = false, ruleOf(optim.Grad, optim.HessDiag) }).member(0)
	x.here(0)
	x.give(0, all()...)
	x.take()
	g := make([]float32, 48)
	outs, err := x.s.Push(Contribution{Grad: g, Extra: map[optim.Role][]float32{optim.HessDiag: g}}, x.now)
	if err != nil {
		t.Fatal(err)
	}
	x.out = append(x.out, outs...)
	first := x.said(wire.Push)
	if len(first) != 12 {
		t.Fatalf("pushed %d messages, want two chunks of two roles to three shards", len(first))
	}
	x.ack(first[0], wire.LevelStaged)
	if hs := x.said(wire.Push); len(hs) != 0 {
		t.Errorf("credit came back with one of two roles: %+v", hs)
	}
	x.ack(first[1], wire.LevelStaged)
	if hs := x.said(wire.Push); len(hs) != 2 {
		t.Errorf("credit did not come back with both roles: %+v", hs)
	}
}

func bitmap(missing ...int) []byte {
	b := []byte{0}
	for _, r := range missing {
		b[0] |= 1 << r
	}
	return b
}

// A worker that hears nothing asks for the version that its push makes. The
// answer shows what was lost.
func TestLostPush(t *testing.T) {
	x := pushing(t, nil)
	x.said(wire.Push)
	x.said(wire.Pull)
	x.tick(retry)
	probes := x.said(wire.Pull)
	probes = slices.DeleteFunc(probes, func(h wire.Header) bool { return h.Hi == 0 })
	if got := chunksOf(probes); !slices.Contains(got, 0) || !slices.Contains(got, 9) || slices.ContainsFunc(probes, func(h wire.Header) bool { return h.Step != 1 }) {
		t.Fatalf("asked for %v at %+v", got, probes)
	}
	x.fromShard(0, wire.Header{Kind: wire.Waiting, Chunk: 0, Step: 0}, bitmap(0, 1))
	hs := x.said(wire.Push)
	if len(hs) != 1 || hs[0].Chunk != 0 || hs[0].Step != 0 || hs[0].Rank != 0 || x.s.Stats().Repushed != 1 {
		t.Errorf("after the answer that rank 0 is missing pushed %+v", hs)
	}
	x.fromShard(0, wire.Header{Kind: wire.Waiting, Chunk: 1, Step: 0}, bitmap(1))
	if hs := x.said(wire.Push); len(hs) != 0 {
		t.Errorf("pushed again what is there: %+v", hs)
	}
	if w := x.s.Waiting(x.now); w != "step 0 waits for rank 1 (other)" {
		t.Errorf("waiting %q", w)
	}
	// Rubbish is no reason to push.
	x.fromShard(0, wire.Header{Kind: wire.Waiting, Chunk: 0, Step: 0}, []byte{1, 1})
	x.fromShard(0, wire.Header{Kind: wire.Waiting, Chunk: 99, Step: 0}, bitmap(0))
	x.fromShard(0, wire.Header{Kind: wire.Waiting, Chunk: 0, Step: 7}, bitmap(0))
	if hs := x.said(wire.Push); len(hs) != 0 {
		t.Errorf("pushed %+v", hs)
	}
}

// The acknowledgement was lost: parameters or the shard's word replace it.
func TestLostAck(t *testing.T) {
	x := pushing(t, nil)
	x.said(wire.Push)
	x.give(1, 0, 5)
	if got := chunksOf(x.said(wire.Push)); !slices.Equal(got, []uint32{2, 6}) {
		t.Errorf("pushed %v, want the next chunks", got)
	}
	x = pushing(t, func(p *Plan) { p.Streaming = false })
	x.said(wire.Push)
	x.fromShard(0, wire.Header{Kind: wire.Waiting, Chunk: 1, Step: 0}, bitmap(1))
	if got := chunksOf(x.said(wire.Push)); !slices.Equal(got, []uint32{2}) {
		t.Errorf("pushed %v, want chunk 2: chunk 1 is staged", got)
	}
	for _, code := range []wire.Code{wire.ErrDuplicate, wire.ErrLate} {
		x = pushing(t, nil)
		x.said(wire.Push)
		x.fromShard(0, wire.Header{Kind: wire.Ack, Chunk: 0, Code: code}, nil)
		if got := chunksOf(x.said(wire.Push)); !slices.Equal(got, []uint32{2}) {
			t.Errorf("%v: pushed %v, want chunk 2", code, got)
		}
	}
}

// Waits double up to sixteen times the first one.
func TestPatience(t *testing.T) {
	x := pushing(t, nil)
	x.tick(0)
	x.said(wire.Pull)
	var at []time.Duration
	for t0 := x.now; x.now-t0 < 80*retry; x.tick(retry / 2) {
		if hs := x.said(wire.Pull); slices.ContainsFunc(hs, func(h wire.Header) bool { return h.Hi == 1 && h.Step == 1 && h.Chunk == 0 }) {
			at = append(at, (x.now-t0)/retry)
		}
	}
	want := []time.Duration{1, 3, 7, 15, 31, 47, 63, 79}
	if !slices.Equal(at, want) {
		t.Errorf("asked after %v waits, want %v", at, want)
	}
}

// Parameters that do not come are asked for chunk by chunk, at most a window's
// worth of each shard at first.
func TestLostParams(t *testing.T) {
	x := newScript(t, nil).member(0)
	x.here(0)
	if got := chunksOf(x.said(wire.Pull)); !slices.Equal(got, []uint32{0, 1, 4, 5, 8, 9}) {
		t.Fatalf("asked for %v", got)
	}
	x.give(0, 0)
	if got := chunksOf(x.said(wire.Pull)); !slices.Equal(got, []uint32{2}) {
		t.Errorf("asked for %v after chunk 0 came", got)
	}
	x.tick(retry)
	if got := chunksOf(x.said(wire.Pull)); !slices.Contains(got, 1) || slices.Contains(got, 0) {
		t.Errorf("asked for %v again", got)
	}
	// Damaged, foreign or stray chunks are no chunks.
	tail := wire.Bytes32(make([]float32, 4))
	good := wire.Header{Kind: wire.Params, Chunk: 1, Count: 4, CRC: wire.Checksum(tail)}
	for name, do := range map[string]func(h *wire.Header, k *int){
		"damaged":     func(h *wire.Header, _ *int) { h.CRC++ },
		"count":       func(h *wire.Header, _ *int) { h.Count = 3 },
		"chunk":       func(h *wire.Header, _ *int) { h.Chunk = 12 },
		"other shard": func(_ *wire.Header, k *int) { *k = 1 },
		"no shard":    func(_ *wire.Header, k *int) { *k = 3 },
	} {
		h, k := good, 0
		do(&h, &k)
		x.fromShard(k, h, tail)
		if x.s.vers[0].got[1] {
			t.Errorf("%s: taken", name)
		}
	}
	for name, do := range map[string]func(h *wire.Header){
		"stale timeline": func(h *wire.Header) { h.Timeline = 0 },
		"stale epoch":    func(h *wire.Header) { h.Epoch = 9 },
		"later epoch":    func(h *wire.Header) { h.Epoch = 11 },
	} {
		h := good
		h.Epoch, h.Timeline = 10, 1
		do(&h)
		x.hear(h, tail)
		if x.s.vers[0].got[1] {
			t.Errorf("%s: taken", name)
		}
	}
	x.give(0, all()...)
	w := x.take()
	for c := range 12 {
		if w.Params[4*c+1] != float32(c) {
			t.Errorf("chunk %d landed elsewhere", c)
		}
	}
	if w.Step != 0 || w.Version != 0 || !slices.Equal(w.Ranks, []int{0}) || !slices.Equal(w.Gained, []int{0}) {
		t.Errorf("work %+v", w)
	}
}

// Parameters that the application reads do not change under it.
func TestLent(t *testing.T) {
	x := newScript(t, func(p *Plan) { p.Broadcast = true }).member(0)
	x.here(0)
	x.give(0, all()...)
	w := x.take()
	x.give(2, all()...) // would take the same buffer
	x.give(4, 3)
	if w.Params[0] != 0 || w.Params[1] != 0 || w.Params[13] != 3 {
		t.Error("parameters changed while the application reads them")
	}
	again := x.take()
	if again.Step != 0 || again.Version != 0 {
		t.Errorf("what was not pushed is not handed out again: %+v", again)
	}
}

// A rank that is moved in the middle of a push takes its chunks along; a push
// for it fails, and the rest of the work goes on.
func TestRankMoved(t *testing.T) {
	x := newScript(t, nil).member(0, 1)
	x.here(0)
	x.give(0, all()...)
	if w := x.take(); !slices.Equal(w.Ranks, []int{0, 1}) {
		t.Fatalf("work %+v", w)
	}
	x.push(0, 0)
	first := x.said(wire.Push)
	x.view(1)
	if len(x.s.flight) != 0 || !x.s.Acknowledged() {
		t.Error("chunks of a rank that was moved are still in flight")
	}
	x.ack(first[0], wire.LevelApplied)
	if hs := x.said(wire.Push); len(hs) != 0 {
		t.Errorf("pushed for a rank that was moved: %+v", hs)
	}
	g := make([]float32, 48)
	if _, err := x.s.Push(Contribution{Rank: 0, Step: 0, Grad: g}, x.now); !errors.Is(err, ErrNotMine) {
		t.Errorf("push of a rank that was moved: %v", err)
	}
	if _, err := x.s.Push(Contribution{Rank: 1, Step: 1, Grad: g}, x.now); !errors.Is(err, ErrNotMine) {
		t.Errorf("push of a step that is not due: %v", err)
	}
	x.push(1, 0)
	// Back again: the shards say where the rank stands.
	x.view(0, 1)
	x.here(1)
	x.give(1, all()...)
	if w := x.take(); w.Step != 1 || !slices.Equal(w.Ranks, []int{0, 1}) || !slices.Equal(w.Gained, []int{0}) {
		t.Errorf("work %+v, want step 1 of both, of which somebody else computed step 0 of rank 0", w)
	}
}

// What all shards say decides: the lowest, and only answers to the question.
func TestWhereItStands(t *testing.T) {
	x := newScript(t, nil).member(0)
	hs := x.said(wire.Where)
	if len(hs) != 3 {
		t.Fatalf("asked %d shards", len(hs))
	}
	here := func(k int, seq, step uint64) {
		x.fromShard(k, wire.Header{Kind: wire.Here, Seq: seq, Step: step}, nil)
	}
	here(0, hs[0].Seq, 5)
	here(1, hs[0].Seq+1, 0) // answers another question
	here(0, hs[0].Seq, 1)   // twice
	here(2, hs[0].Seq, 4)
	if x.s.ranks[0].known {
		t.Fatal("known without shard 1")
	}
	x.tick(retry)
	if again := x.said(wire.Where); len(again) != 1 || again[0].Shard != 1 {
		t.Errorf("asked again %+v, want shard 1", again)
	}
	here(1, hs[0].Seq, 7)
	if r := x.s.ranks[0]; !r.known || r.next != 4 {
		t.Errorf("next step %d, want 4", r.next)
	}
	// A version that is gone makes it ask again.
	x.fromShard(0, wire.Header{Kind: wire.Ack, Code: wire.ErrGone}, nil)
	x.tick(retry)
	if len(x.said(wire.Where)) != 3 {
		t.Error("did not ask where it stands")
	}
}

// A new timeline makes all void, is told once, and ends what the past says.
func TestRewound(t *testing.T) {
	x := pushing(t, nil)
	old := x.said(wire.Push)
	if _, ok := x.s.Rewound(); ok {
		t.Error("rewound by the first timeline")
	}
	x.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 0, Epochs: []uint64{10, 11, 12}})
	if to, ok := x.s.Rewound(); !ok || to != 0 {
		t.Errorf("Rewound = %d, %v", to, ok)
	}
	if _, ok := x.s.Rewound(); ok {
		t.Error("told twice")
	}
	h := wire.Header{Kind: wire.Ack, Timeline: 1, Epoch: 10, Chunk: old[0].Chunk}
	x.hear(h, nil)
	if len(x.s.flight) != 0 || len(x.said(wire.Push)) != 0 {
		t.Error("pushes of the past go on")
	}
	if _, err := x.s.Push(Contribution{Rank: 0, Step: 1, Grad: make([]float32, 48)}, x.now); !errors.Is(err, ErrNotMine) {
		t.Errorf("push of the past: %v", err)
	}
	if _, ok := x.s.Take(x.now); ok { // gives the old parameters back
		t.Error("work of the past")
	}
	x.here(0)
	x.give(0, all()...)
	if w := x.take(); w.Step != 0 || len(w.Gained) != 1 {
		t.Errorf("work %+v", w)
	}
	if s := x.s.Stats(); s.Rewinds != 1 {
		t.Errorf("%d rewinds", s.Rewinds)
	}
}

// News of a later timeline, or of more decisions, makes it ask for them.
func TestAsksForNews(t *testing.T) {
	x := pushing(t, nil)
	for name, h := range map[string]wire.Header{
		"a message of a later timeline": {Kind: wire.Params, Timeline: 2, Epoch: 10},
		"a refusal that knows more":     {Kind: wire.Ack, Timeline: 1, Epoch: 10, Seq: 3, Code: wire.ErrBusy},
		"a stale view":                  {Kind: wire.Ack, Timeline: 1, Epoch: 10, Code: wire.ErrStaleView},
		"halted":                        {Kind: wire.Ack, Timeline: 1, Epoch: 10, Code: wire.ErrHalted},
		"a beacon":                      {Kind: wire.News, Seq: 3},
	} {
		x.tick(retry)
		x.said(wire.AskNews)
		x.hear(h, nil)
		if hs := x.said(wire.AskNews); len(hs) != 1 || hs[0].Seq != 3 {
			t.Errorf("%s: asked %+v, want from decision 3 on", name, hs)
		}
	}
	x.tick(retry)
	x.said(wire.AskNews)
	d := ledger.Decision{N: 9, Kind: ledger.Stop, Timeline: 1}
	x.hear(wire.Header{Kind: wire.News, Seq: 9}, d.Encode())
	if hs := x.said(wire.AskNews); len(hs) != 1 || x.s.led.Stopped {
		t.Errorf("after a gap: asked %+v, stopped %v", hs, x.s.led.Stopped)
	}
	x.tick(retry)
	x.hear(wire.Header{Kind: wire.News, Seq: 3}, []byte("{"))
	if x.s.led.N != 2 {
		t.Error("a damaged decision counts")
	}
}

// A refusal that no retry can mend ends the session.
func TestRefused(t *testing.T) {
	for _, code := range []wire.Code{wire.ErrNotFinite, wire.ErrBadShape, wire.ErrBadEncoding, wire.ErrTooLarge} {
		x := pushing(t, nil)
		x.fromShard(0, wire.Header{Kind: wire.Ack, Code: code, Text: "because"}, nil)
		if err := x.s.Err(); !errors.Is(err, code) || !strings.Contains(err.Error(), "because") {
			t.Errorf("refused with %v: %v", code, err)
		}
		if _, ok := x.s.Take(x.now); ok {
			t.Error("work after the end")
		}
	}
	for _, code := range []wire.Code{wire.ErrBusy, wire.ErrAhead, wire.ErrBadCRC, wire.ErrNotOwner} {
		x := pushing(t, nil)
		x.fromShard(0, wire.Header{Kind: wire.Ack, Code: code}, nil)
		if err := x.s.Err(); err != nil || len(x.s.flight) != 1 {
			t.Errorf("%v: %v, %d in flight", code, err, len(x.s.flight))
		}
	}
}

// The job has stopped for a worker when the cut of the stop is recorded, all
// that is before it acknowledged, and no later decision heard of.
func TestStopped(t *testing.T) {
	x := pushing(t, nil)
	pushed := x.said(wire.Push)
	x.decide(ledger.Decision{Kind: ledger.Stop, Step: 1, Reason: "asked to"})
	if err := x.s.Err(); err != nil {
		t.Errorf("before the cut: %v", err)
	}
	x.decide(ledger.Decision{Kind: ledger.Cut, Step: 1})
	if err := x.s.Err(); err != nil {
		t.Errorf("with a push in flight: %v", err)
	}
	for len(pushed) > 0 {
		x.ack(pushed[0], wire.LevelApplied)
		pushed = append(pushed[1:], x.said(wire.Push)...)
	}
	x.hear(wire.Header{Kind: wire.News, Seq: 5}, nil)
	if err := x.s.Err(); err != nil {
		t.Errorf("while a decision is missing that may let the job go on: %v", err)
	}
	x.decide(ledger.Decision{Kind: ledger.View, View: 2, Ranks: x.s.led.Ranks})
	if err := x.s.Err(); !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "at step 1: asked to") {
		t.Errorf("stopped: %v", err)
	}
	if _, ok := x.s.Take(x.now); ok {
		t.Error("work after the stop")
	}
	x.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 1, Step: 1, Epochs: []uint64{10, 11, 12}})
	if err := x.s.Err(); err != nil {
		t.Errorf("resumed: %v", err)
	}
}

// What was being computed when a stop was decided before it is void.
func TestStopMakesVoid(t *testing.T) {
	x := newScript(t, nil).member(0)
	x.here(1)
	x.give(1, all()...)
	x.take()
	x.decide(ledger.Decision{Kind: ledger.Stop, Step: 1, Reason: "asked to"})
	if _, err := x.s.Push(Contribution{Rank: 0, Step: 1, Grad: make([]float32, 48)}, x.now); !errors.Is(err, ErrNotMine) {
		t.Errorf("push of step 1: %v", err)
	}
	x.decide(ledger.Decision{Kind: ledger.Cut, Step: 1})
	if err := x.s.Err(); !errors.Is(err, ErrStopped) {
		t.Errorf("stopped: %v", err)
	}
}

func TestEnds(t *testing.T) {
	x := pushing(t, nil)
	x.decide(ledger.Decision{Kind: ledger.Halt, Reason: "disk full"})
	if err := x.s.Err(); !errors.Is(err, ErrHalted) || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("halted: %v", err)
	}
	x.hear(wire.Header{Kind: wire.News, Seq: 4}, nil)
	if err := x.s.Err(); err != nil {
		t.Errorf("halted, and then something that is not known yet: %v", err)
	}
	x.decide(ledger.Decision{Kind: ledger.Finish, Step: 10})
	if err := x.s.Err(); !errors.Is(err, ErrDone) {
		t.Errorf("finished: %v", err)
	}
	x = pushing(t, nil)
	x.out = append(x.out, x.s.Leave()...)
	if hs := x.said(wire.Leave); len(hs) != 1 || hs[0].Seq != 77 || x.s.Err() == nil {
		t.Errorf("left: %+v, %v", hs, x.s.Err())
	}
}

// on_bad: null turns what is not finite into an explicit nothing on every
// shard, before a single chunk of it is sent; else the coordinator hears.
func TestNullBad(t *testing.T) {
	nan := make([]float32, 48)
	nan[47] = float32(math.NaN())
	for name, c := range map[string]Contribution{
		"NaN":          {Grad: nan, Loss: 1},
		"loss":         {Grad: make([]float32, 48), Loss: math.Inf(1)},
		"examples":     {Grad: make([]float32, 48), Examples: math.NaN()},
		"few examples": {Grad: make([]float32, 48), Examples: -1},
	} {
		for _, null := range []bool{true, false} {
			x := newScript(t, func(p *Plan) { p.NullBad = null }).member(0)
			x.here(0)
			x.give(0, all()...)
			x.take()
			outs, err := x.s.Push(c, x.now)
			x.out = append(x.out, outs...)
			hs := x.said(wire.Push)
			if !null {
				bad := x.said(wire.Bad)
				if !errors.Is(err, wire.ErrNotFinite) || len(hs) != 0 || len(bad) != 1 || !strings.Contains(bad[0].Text, "worker me: rank 0, step 0: ") {
					t.Errorf("%s: %v, pushed %+v, told %+v", name, err, hs, bad)
				}
				continue
			}
			if err != nil || len(hs) != 6 {
				t.Fatalf("%s: %v, pushed %+v", name, err, hs)
			}
			for _, h := range hs {
				if h.Encoding != wire.Null || h.Examples != 0 || h.Count != 0 || h.Loss != 0 {
					t.Errorf("%s: pushed %+v, want a null", name, h)
				}
			}
		}
	}
	x := newScript(t, nil).member(0)
	x.here(0)
	x.give(0, all()...)
	x.take()
	if _, err := x.s.Push(Contribution{Grad: make([]float32, 47)}, x.now); !errors.Is(err, wire.ErrBadShape) {
		t.Errorf("47 numbers of 48: %v", err)
	}
}

// A durable job's push is acknowledged when a recorded cut contains it.
func TestDurable(t *testing.T) {
	x := pushing(t, func(p *Plan) { p.Durable, p.Window = true, 4 })
	for _, h := range x.said(wire.Push) {
		x.ack(h, wire.LevelApplied)
	}
	if x.s.Acknowledged() {
		t.Error("acknowledged when applied")
	}
	x.decide(ledger.Decision{Kind: ledger.Cut, Step: 1})
	if !x.s.Acknowledged() {
		t.Error("not acknowledged when recorded")
	}
	x.give(1, all()...)
	x.take()
	x.push(0, 1)
	for _, h := range x.said(wire.Push) {
		x.ack(h, wire.LevelApplied)
	}
	if x.s.Acknowledged() {
		t.Error("the next step is acknowledged by a cut before it")
	}
}

// A rank's state travels with its push, again when asked for, and is loaded by
// whoever takes the rank over.
func TestStates(t *testing.T) {
	x := newScript(t, func(p *Plan) { p.RankState = true }).member(1)
	x.here(0)
	x.give(0, all()...)
	x.take()
	outs, err := x.s.Push(Contribution{Rank: 1, Grad: make([]float32, 48), State: []byte("cursor")}, x.now)
	if err != nil {
		t.Fatal(err)
	}
	x.out = append(x.out, outs...)
	for range 2 {
		hs := x.said(wire.State)
		if len(hs) != 1 || hs[0].Shard != 1 || hs[0].Rank != 1 || hs[0].Step != 1 || hs[0].CRC != wire.Checksum([]byte("cursor")) {
			t.Errorf("state sent: %+v", hs)
		}
		x.fromShard(1, wire.Header{Kind: wire.AskState, Rank: 1, Step: 1}, nil)
	}
	x.fromShard(1, wire.Header{Kind: wire.State, Rank: 0, Step: 4}, []byte("unasked"))
	x.out = append(x.out, x.s.LoadState(0, 4, x.now)...)
	if hs := x.said(wire.AskState); len(hs) != 1 || hs[0].Shard != 0 || hs[0].Step != 4 {
		t.Errorf("asked for the state: %+v", hs)
	}
	if _, ok, _ := x.s.Loaded(0, 4); ok {
		t.Error("loaded what nobody asked for")
	}
	b := []byte("theirs")
	x.fromShard(0, wire.Header{Kind: wire.State, Rank: 0, Step: 4, CRC: 1}, b)
	if _, ok, _ := x.s.Loaded(0, 4); ok {
		t.Error("loaded a damaged state")
	}
	x.fromShard(0, wire.Header{Kind: wire.State, Rank: 0, Step: 4, CRC: wire.Checksum(b)}, b)
	if got, ok, err := x.s.Loaded(0, 4); !ok || err != nil || string(got) != "theirs" {
		t.Errorf("Loaded = %q, %v, %v", got, ok, err)
	}
	if _, ok, _ := x.s.Loaded(0, 4); ok {
		t.Error("loaded twice")
	}
	x.s.LoadState(0, 5, x.now)
	x.fromShard(0, wire.Header{Kind: wire.State, Rank: 0, Step: 5, Code: wire.ErrGone}, nil)
	if _, ok, err := x.s.Loaded(0, 5); !ok || !errors.Is(err, wire.ErrGone) {
		t.Errorf("a state that is gone: %v, %v", ok, err)
	}
}

// An asynchronous worker reads whatever is newest, after its last push was
// applied.
func TestAsyncSession(t *testing.T) {
	x := newScript(t, func(p *Plan) { p.Staleness, p.Window, p.Streaming = -1, 4, false }).member(0)
	x.here(0)
	asked := x.said(wire.Pull)
	if len(asked) != 12 || asked[0].Step != shard.Latest || asked[0].Seq == 0 {
		t.Fatalf("asked for %+v", asked)
	}
	give := func(hs []wire.Header) {
		for _, h := range hs {
			tail := wire.Bytes32(make([]float32, 4))
			x.fromShard(int(h.Shard), wire.Header{Kind: wire.Params, Chunk: h.Chunk, Step: 3, Seq: h.Seq, Count: 4, CRC: wire.Checksum(tail)}, tail)
		}
	}
	give(asked)
	x.take()
	x.push(0, 0)
	pushed := x.said(wire.Push)
	if hs := x.said(wire.Pull); len(hs) != 0 {
		t.Errorf("asked %+v before the push is applied", hs)
	}
	give(asked) // late answers to the first question
	if _, ok := x.s.Take(x.now); ok {
		t.Error("work on parameters from before the push")
	}
	x.tick(retry)
	if hs := x.said(wire.Push); len(hs) != 12 {
		t.Errorf("pushed %d chunks again", len(hs))
	}
	for _, h := range pushed {
		x.ack(h, wire.LevelApplied)
	}
	again := x.said(wire.Pull)
	if len(again) != 12 || again[0].Seq <= asked[0].Seq {
		t.Errorf("asked for %+v", again)
	}
	give(again)
	if w := x.take(); w.Step != 1 {
		t.Errorf("work %+v", w)
	}
}

// Two ranks that are so far apart that they need the same buffer: the one
// behind goes first, or neither would ever go on.
func TestRankBehindGoesFirst(t *testing.T) {
	x := newScript(t, nil).member(0, 1)
	for _, h := range x.said(wire.Where) {
		step := uint64(8)
		if h.Rank == 1 {
			step = 6
		}
		x.fromShard(int(h.Shard), wire.Header{Kind: wire.Here, Rank: h.Rank, Seq: h.Seq, Step: step}, nil)
	}
	x.said(wire.Pull)
	for range 5 {
		x.tick(retry)
		x.give(6, 0)
	}
	if hs := x.said(wire.Pull); !slices.ContainsFunc(hs, func(h wire.Header) bool { return h.Step == 6 }) {
		t.Errorf("asked for %+v, want version 6", hs)
	}
	x.give(6, all()...)
	if w := x.take(); w.Step != 6 || !slices.Equal(w.Ranks, []int{1}) {
		t.Errorf("work %+v", w)
	}
}

// ruleOf is the spec of a rule with one push of the given roles.
func ruleOf(roles ...optim.Role) *optim.Spec {
	return &optim.Spec{Name: "test", Phases: []optim.Phase{{Needs: roles, Passes: []optim.Pass{{}}}}}
}

// evaluating is a worker that asks for the point of evaluation at version 1.
func evaluating(t *testing.T) *script {
	t.Helper()
	x := newScript(t, func(p *Plan) { p.Rule = &optim.Spec{Name: "other", Eval: "x", Phases: p.Rule.Phases} }).member(0)
	x.here(1)
	x.give(1, all()...)
	x.take()
	x.said(wire.Pull)
	x.evaluate(1)
	return x
}

func (x *script) evaluate(v uint64) { x.out = append(x.out, x.s.Evaluate(v, x.now)...) }

func (x *script) point(v uint64, chunks ...uint32) {
	x.t.Helper()
	for _, c := range chunks {
		tail := wire.Bytes32([]float32{100 + float32(v), float32(c), 0, 0})
		x.fromShard(x.shardOf(c), wire.Header{Kind: wire.Params, Chunk: c, Step: v, Count: 4, CRC: wire.Checksum(tail), Point: optim.Eval}, tail)
	}
}

// The point of evaluation is pulled with a window of its own, again when it is
// lost, and disturbs nothing of the training.
func TestEvaluate(t *testing.T) {
	x := evaluating(t)
	if got := chunksOf(x.said(wire.Pull)); !slices.Equal(got, []uint32{0, 1, 4, 5, 8, 9}) {
		t.Fatalf("asked for %v, want a window of each shard", got)
	}
	x.evaluate(1)
	if got := x.said(wire.Pull); len(got) != 0 {
		t.Errorf("asked twice: %v", got)
	}
	x.point(1, 0, 4, 8)
	x.point(2, 1) // not asked for
	x.give(1, 1)  // another point
	if got := chunksOf(x.said(wire.Pull)); !slices.Equal(got, []uint32{2, 6, 10}) {
		t.Errorf("goes on with %v", got)
	}
	if _, ok, _ := x.s.Evaluated(1); ok {
		t.Error("handed out in part")
	}
	for _, h := range []wire.Header{{Code: wire.ErrBusy}, {Code: wire.ErrAhead}, {Code: wire.ErrHalted}, {Code: wire.ErrStaleEpoch}} {
		h.Kind, h.Step, h.Chunk, h.Point = wire.Ack, 1, 1, optim.Eval
		x.fromShard(0, h, nil)
	}
	x.tick(2 * retry)
	if got := chunksOf(x.said(wire.Pull)); !slices.Equal(got, []uint32{1, 2, 5, 6, 9, 10}) {
		t.Errorf("asked again for %v", got)
	}
	x.point(1, all()...)
	if _, ok, _ := x.s.Evaluated(2); ok {
		t.Error("another version handed out")
	}
	got, ok, err := x.s.Evaluated(1)
	if !ok || err != nil || got[4] != 101 || got[5] != 1 || got[47] != 0 {
		t.Errorf("got %v, %v, %v", got, ok, err)
	}
	if _, ok, _ := x.s.Evaluated(1); ok {
		t.Error("handed out twice")
	}
	x.push(0, 1)
	if w := x.s.held(1); w == nil || w.data[0] != 1 {
		t.Error("the parameters were disturbed")
	}
}

// Who evaluates does not wait for a version that is gone, or that a rewound job
// may never reach again.
func TestEvaluateGone(t *testing.T) {
	x := evaluating(t)
	x.fromShard(0, wire.Header{Kind: wire.Ack, Step: 2, Point: optim.Eval, Code: wire.ErrGone}, nil)
	if _, ok, _ := x.s.Evaluated(1); ok {
		t.Error("gave up for another version's sake")
	}
	x.fromShard(0, wire.Header{Kind: wire.Ack, Step: 1, Point: optim.Eval, Code: wire.ErrGone}, nil)
	if _, ok, err := x.s.Evaluated(1); !ok || !errors.Is(err, wire.ErrGone) {
		t.Errorf("gone: %v, %v", ok, err)
	}
	if !x.s.ranks[0].known {
		t.Error("the worker lost its place")
	}
	x = evaluating(t)
	x.point(1, all()...) // all of it, but of the timeline before
	x.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, CutTimeline: 0, Step: 0, Epochs: []uint64{10, 11, 12}})
	if _, ok, err := x.s.Evaluated(1); !ok || !errors.Is(err, wire.ErrGone) {
		t.Errorf("after a rewind: %v, %v", ok, err)
	}
	if _, ok := x.s.Rewound(); !ok {
		t.Error("the rewind is forgotten")
	}
	if _, ok, _ := x.s.Evaluated(1); ok {
		t.Error("handed out again")
	}
}

// What overflows bfloat16 is found before it travels, whatever its sign.
func TestHalfOverflow(t *testing.T) {
	least := math.Float32frombits(0x7f7f8000)
	for _, v := range []float32{least, -least, math.MaxFloat32, float32(math.Inf(-1)), float32(math.NaN())} {
		if i := firstNonFinite([]float32{1, v}, nil, true); i != 1 {
			t.Errorf("%v: %d", v, i)
		}
	}
	for _, v := range []float32{0, 1, math.Nextafter32(least, 0), -math.Nextafter32(least, 0), math.SmallestNonzeroFloat32} {
		var h [1]uint16
		if wire.ToHalf(h[:], []float32{v}); firstNonFinite([]float32{v}, nil, true) >= 0 || wire.FirstNonFiniteHalf(h[:]) >= 0 {
			t.Errorf("%v is refused", v)
		}
	}
}
