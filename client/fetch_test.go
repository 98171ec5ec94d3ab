package client

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tributary/comm"
	"tributary/comm/wire"
	"tributary/internal/rng"
	"tributary/job"
	"tributary/layout"
	"tributary/ledger"
)

// archive is the far side of Fetch: a coordinator's decisions and the chunks of
// every shard, behind a connection that loses what lose says.
type archive struct {
	comm.Conn
	pipe     *job.Pipeline
	decided  []*ledger.Decision
	version  uint64
	timeline uint64
	handlers map[string]func(string, *wire.Message)
	asked    map[uint32]int
	lose     func(h *wire.Header) bool
	spoil    func(h *wire.Header, tail []byte)
	pulls    int
}

func newArchive(t *testing.T, async bool) *archive {
	t.Helper()
	s := job.Default()
	s.Model, s.Data = job.Model{Kind: "tensors", Tensors: []layout.Tensor{{Name: "w", Shape: []int{160}}}}, job.Data{Name: "none"}
	s.Chunk, s.Shards, s.Steps = 4, 3, 7
	if async {
		s.Staleness = -1
	}
	p, err := job.Compile(job.NewRecord(s, nil))
	if err != nil {
		t.Fatal(err)
	}
	a := &archive{pipe: p, version: 7, timeline: 2, handlers: map[string]func(string, *wire.Message){}, asked: map[uint32]int{}}
	a.decide(ledger.Decision{Kind: ledger.View, View: 1})
	a.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 1, Epochs: []uint64{1, 2, 3}})
	a.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 2, Epochs: []uint64{10, 11, 12}})
	return a
}

func (a *archive) decide(d ledger.Decision) {
	d.N = uint64(len(a.decided) + 1)
	if d.Timeline == 0 {
		d.Timeline = 2
	}
	a.decided = append(a.decided, &d)
}

func (a *archive) finish() *archive {
	a.decide(ledger.Decision{Kind: ledger.Cut, Step: 7})
	a.decide(ledger.Decision{Kind: ledger.Finish, Step: 7})
	return a
}

func (a *archive) Subscribe(subject string, f func(string, *wire.Message)) (comm.Subscription, error) {
	a.handlers[subject] = f
	return ended(func() { delete(a.handlers, subject) }), nil
}

type ended func()

func (f ended) Unsubscribe() error { f(); return nil }

func (a *archive) say(subject string, h wire.Header, tail []byte) {
	if f := a.handlers[subject]; f != nil && (a.lose == nil || !a.lose(&h)) {
		f(subject, wire.NewMessage(h, slices.Clone(tail), nil))
	}
}

func (a *archive) Publish(subject string, h *wire.Header, _ []byte) error {
	if a.lose != nil && a.lose(h) {
		return comm.ErrDisconnected
	}
	name := a.pipe.Spec.Name
	mine := comm.WorkerSubject(name, h.Worker)
	switch h.Kind {
	case wire.AskNews:
		for n := h.Seq; n <= uint64(len(a.decided)) && n < h.Seq+2; n++ {
			d := a.decided[n-1]
			a.say(mine, wire.Header{Kind: wire.News, Job: name, Seq: n}, d.Encode())
		}
		a.say(comm.NewsSubject(name), wire.Header{Kind: wire.News, Job: name, Seq: uint64(len(a.decided))}, nil)
	case wire.Pull:
		a.pulls++
		a.asked[h.Chunk]++
		k := shardOf(a.pipe.Layout.Shards(a.pipe.Shards), int(h.Chunk))
		if want := comm.ShardSubject(name, k, h.Worker); subject != want || int(h.Shard) != k || h.Timeline == 2 && h.Epoch != uint64(10+k) || h.Timeline == 3 && h.Epoch != uint64(20+k) {
			return errors.New("asked " + subject + " for chunk " + strconv.Itoa(int(h.Chunk)) + ", want " + want)
		}
		tail := wire.Bytes32([]float32{float32(h.Chunk), 1, 2, 3})
		p := wire.Header{Kind: wire.Params, Job: name, Timeline: a.timeline, Shard: uint32(k), Chunk: h.Chunk, Step: a.version, Count: 4, CRC: wire.Checksum(tail)}
		tail = slices.Clone(tail)
		if a.spoil != nil {
			a.spoil(&p, tail)
		}
		a.say(mine, p, tail)
	}
	return nil
}

// fetch reads in virtual time, at most one minute of it.
func fetch(t *testing.T, a *archive) (s *Snapshot, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, err = Fetch(ctx, a, a, a.pipe)
	})
	if len(a.handlers) != 0 {
		t.Errorf("%d subscriptions left", len(a.handlers))
	}
	return s, err
}

func whole(t *testing.T, s *Snapshot, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if s.Step != 7 || s.Timeline < 2 || len(s.Params) != 160 {
		t.Fatalf("snapshot of step %d, timeline %d, %d parameters", s.Step, s.Timeline, len(s.Params))
	}
	for c := range 40 {
		if s.Params[4*c] != float32(c) || s.Params[4*c+3] != 3 {
			t.Errorf("chunk %d is %v", c, s.Params[4*c:4*c+4])
		}
	}
}

func TestFetch(t *testing.T) {
	for _, async := range []bool{false, true} {
		a := newArchive(t, async).finish()
		s, err := fetch(t, a)
		whole(t, s, err)
		if a.pulls != 40 {
			t.Errorf("%d pulls for 40 chunks", a.pulls)
		}
	}
}

// What is lost or damaged, on whatever way, is asked for again.
func TestFetchOverBadNetwork(t *testing.T) {
	n := uint64(0)
	a := newArchive(t, false).finish()
	a.lose = func(*wire.Header) bool { n++; return rng.New(1, "loss").Float64(n) < 0.3 }
	s, err := fetch(t, a)
	whole(t, s, err)

	a = newArchive(t, false).finish()
	m := 0
	a.spoil = func(h *wire.Header, tail []byte) {
		switch m++; m % 8 {
		case 0:
			tail[0] ^= 1
		case 1:
			h.Count = 3
		case 2:
			h.Step = 6
		case 3:
			h.Timeline = 1
		case 4:
			h.Chunk = 40
		case 5:
			h.Job = "other"
		}
	}
	s, err = fetch(t, a)
	whole(t, s, err)
}

// A server restarts while its shards are read: what was read of the timeline
// before is read again, with the new one's epochs.
func TestFetchRewound(t *testing.T) {
	a := newArchive(t, false).finish()
	a.lose = func(h *wire.Header) bool {
		if a.pulls == 20 && a.timeline == 2 && h.Kind == wire.Pull {
			a.timeline = 3
			a.decide(ledger.Decision{Kind: ledger.Begin, Timeline: 3, CutTimeline: 2, Step: 7, Epochs: []uint64{20, 21, 22}})
			a.say(comm.NewsSubject(a.pipe.Spec.Name), wire.Header{Kind: wire.News, Job: a.pipe.Spec.Name, Seq: uint64(len(a.decided))}, nil)
		}
		return false
	}
	s, err := fetch(t, a)
	whole(t, s, err)
	for c := range uint32(40) {
		if c < 10 && a.asked[c] < 2 {
			t.Errorf("chunk %d, read before the restart, was not read again", c)
		}
	}
	if s.Timeline != 3 {
		t.Errorf("timeline %d, want 3", s.Timeline)
	}
}

func TestFetchWaits(t *testing.T) {
	// A stopped job is read at the step of its stop, once the cut is there.
	a := newArchive(t, false)
	a.version = 5
	a.decide(ledger.Decision{Kind: ledger.Stop, Step: 5, Reason: "asked to"})
	if _, err := fetch(t, a); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has not ended") {
		t.Errorf("a job that is stopping: %v", err)
	}
	a.decide(ledger.Decision{Kind: ledger.Cut, Step: 5})
	s, err := fetch(t, a)
	if err != nil || s.Step != 5 || s.Params[4] != 1 {
		t.Errorf("a job that has stopped: %+v, %v", s, err)
	}

	a = newArchive(t, false)
	if _, err := fetch(t, a); !errors.Is(err, ErrRunning) {
		t.Errorf("a job that runs: %v", err)
	}
	a.decide(ledger.Decision{Kind: ledger.Halt, Reason: "disk full"})
	if _, err := fetch(t, a); !errors.Is(err, ErrHalted) || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("a job that halted: %v", err)
	}

	a = newArchive(t, false).finish()
	a.lose = func(h *wire.Header) bool { return h.Kind == wire.AskNews }
	if _, err := fetch(t, a); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "coordinator does not answer") {
		t.Errorf("no coordinator: %v", err)
	}
	a = newArchive(t, false).finish()
	a.lose = func(h *wire.Header) bool { return h.Kind == wire.Pull && h.Shard == 1 }
	if _, err := fetch(t, a); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "shard 1 does not answer") {
		t.Errorf("no shard 1: %v", err)
	}
}
