// Package commtest says what every implementation of comm.Conn must do.
package commtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"tributary/comm"
	"tributary/comm/wire"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// Run tests an implementation. connect returns two new connections to one
// broker that nobody else uses; Run closes them.
func Run(t *testing.T, connect func(t *testing.T) (a, b comm.Conn)) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, a, b comm.Conn)
	}{
		{"delivers", testDelivers},
		{"keeps each publisher's order", testOrder},
		{"matches wildcards", testWildcards},
		{"names the sender in the subject", testSender},
		{"carries large messages", testLarge},
		{"refuses what no receiver takes", testRefuses},
		{"reads only until Publish returns", testReuse},
		{"keeps a tail until Release", testRelease},
		{"reaches every subscription", testFanOut},
		{"counts malformed frames", testMalformed},
		{"counts messages and bytes", testStats},
		{"stops at Unsubscribe", testUnsubscribe},
		{"unsubscribes from a handler", testUnsubscribeInside},
		{"waits for handlers in Close", testCloseWaits},
		{"waits in Close for a handler after Unsubscribe", testCloseAfterUnsubscribe},
		{"lets handlers finish what arrived", testCloseDrains},
		{"fails after Close", testClosed},
		{"serves many goroutines", testConcurrent},
		{"closes while others publish", testCloseRace},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := connect(t)
			t.Cleanup(func() {
				if err := errors.Join(a.Close(), b.Close()); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
			c.test(t, a, b)
		})
	}
}

// got is a message that arrived; its memory is its own.
type got struct {
	subject string
	wire.Header
	tail []byte
}

// collect subscribes and returns a channel with room for n messages. Those
// that do not fit fail the test.
func collect(t *testing.T, c comm.Conn, subject string, n int) (<-chan got, comm.Subscription) {
	t.Helper()
	ch := make(chan got, n)
	sub := subscribe(t, c, subject, func(subject string, m *wire.Message) {
		defer m.Release()
		select {
		case ch <- got{subject, m.Header, bytes.Clone(m.Tail)}:
		default:
			t.Errorf("%s: more than %d messages", subject, n)
		}
	})
	return ch, sub
}

// subscribe returns when the broker knows of the subscription.
func subscribe(t *testing.T, c comm.Conn, subject string, f func(string, *wire.Message)) comm.Subscription {
	t.Helper()
	sub, err := c.Subscribe(subject, f)
	if err != nil {
		t.Fatalf("Subscribe(%s): %v", subject, err)
	}
	flush(t, c)
	return sub
}

func flush(t *testing.T, c comm.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Flush(ctx); err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

func header(seq uint64) *wire.Header { return &wire.Header{Kind: wire.Push, Job: "j", Seq: seq} }

func publish(t *testing.T, c comm.Conn, subject string, seq uint64, tail []byte) {
	t.Helper()
	if err := c.Publish(subject, header(seq), tail); err != nil {
		t.Fatalf("Publish(%s): %v", subject, err)
	}
}

// next is the next message.
func next[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case m := <-ch:
		return m
	case <-time.After(patience):
		t.Fatal("nothing arrives")
		panic("unreachable")
	}
}

func testDelivers(t *testing.T, a, b comm.Conn) {
	if !a.Connected() || !b.Connected() {
		t.Fatal("Connected() = false on a new connection")
	}
	ch, _ := collect(t, b, "tb.j.x", 4)
	h := wire.Header{Kind: wire.Ack, Job: "j", Worker: "w", Step: 7, Loss: 0.5, Code: wire.ErrLate, Text: "too late"}
	for _, tail := range [][]byte{[]byte("tail"), nil, make([]byte, 7)} {
		if err := a.Publish("tb.j.x", &h, tail); err != nil {
			t.Fatal(err)
		}
		if m := next(t, ch); m.subject != "tb.j.x" || m.Header != h || !bytes.Equal(m.tail, tail) {
			t.Errorf("got %+v; want %+v and %q", m, h, tail)
		}
	}
	publish(t, b, "tb.j.x", 9, nil)
	if m := next(t, ch); m.Seq != 9 {
		t.Errorf("a connection's own message: got %+v", m)
	}
}

func testOrder(t *testing.T, a, b comm.Conn) {
	const n = 2000
	ch, _ := collect(t, b, "tb.j.*", 2*n)
	var wg sync.WaitGroup
	for i, c := range []comm.Conn{a, b} {
		wg.Go(func() {
			for seq := range uint64(n) {
				if err := c.Publish(fmt.Sprintf("tb.j.%d", i), header(seq+1), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	last := map[string]uint64{}
	for range 2 * n {
		m := next(t, ch)
		if m.Seq != last[m.subject]+1 {
			t.Fatalf("%s: message %d after %d", m.subject, m.Seq, last[m.subject])
		}
		last[m.subject] = m.Seq
	}
}

func testWildcards(t *testing.T, a, b comm.Conn) {
	subjects := []string{"tb", "tb.j", "tb.j.shard.1.w", "tb.j.shard.1.v", "tb.j.shard.2.w", "tb.j.shard.1", "tb.j.shard.1.w.x", "tb.k.shard.1.w"}
	for pattern, want := range map[string]string{
		"tb.j.shard.1.w": "tb.j.shard.1.w",
		"tb.j.shard.1.*": "tb.j.shard.1.w tb.j.shard.1.v",
		"tb.*.shard.1.w": "tb.j.shard.1.w tb.k.shard.1.w",
		"tb.j.shard.*.*": "tb.j.shard.1.w tb.j.shard.1.v tb.j.shard.2.w",
		"tb.j.shard.1.>": "tb.j.shard.1.w tb.j.shard.1.v tb.j.shard.1.w.x",
		"tb.*":           "tb.j",
		">":              strings.Join(subjects, " ") + " end",
	} {
		t.Run(pattern, func(t *testing.T) {
			// The end is marked on the same connection, for a handler of its own.
			ch, sub := collect(t, b, pattern, 2*len(subjects))
			end, endSub := collect(t, b, "end", 1)
			for _, s := range subjects {
				publish(t, a, s, 1, nil)
			}
			publish(t, a, "end", 1, nil)
			next(t, end)
			var seen []string
			for range strings.Fields(want) {
				seen = append(seen, next(t, ch).subject)
			}
			if got := strings.Join(seen, " "); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if err := errors.Join(sub.Unsubscribe(), endSub.Unsubscribe()); err != nil {
				t.Error(err)
			}
			if len(ch) > 0 {
				t.Errorf("%d messages too many", len(ch))
			}
		})
	}
	for _, bad := range []string{"", "a..b", ".a", "a.", "a b", ">.a"} {
		if _, err := a.Subscribe(bad, func(string, *wire.Message) {}); err == nil {
			t.Errorf("Subscribe(%q) = nil error", bad)
		}
		if err := a.Publish(bad, header(1), nil); err == nil {
			t.Errorf("Publish(%q) = nil error", bad)
		}
	}
	for _, bad := range []string{"tb.*", "tb.>"} {
		if err := a.Publish(bad, header(1), nil); err == nil {
			t.Errorf("Publish(%q) = nil error", bad)
		}
	}
}

func testSender(t *testing.T, a, b comm.Conn) {
	shards, _ := collect(t, b, comm.ShardAll("j", 3), 4)
	coord, _ := collect(t, b, comm.CoordAll("j"), 4)
	for _, who := range []string{"worker-1", "coordinator"} {
		publish(t, a, comm.ShardSubject("j", 3, who), 1, nil)
		publish(t, a, comm.ShardSubject("j", 4, who), 2, nil) // another shard
		publish(t, a, comm.CoordSubject("j", who), 3, nil)
		for what, ch := range map[string]<-chan got{"shard": shards, "coordinator": coord} {
			s := next(t, ch).subject
			if sender := s[strings.LastIndexByte(s, '.')+1:]; sender != who {
				t.Errorf("%s: subject %s; want sender %s", what, s, who)
			}
		}
	}
}

func testLarge(t *testing.T, a, b comm.Conn) {
	tail := make([]byte, 4<<20)
	for i := range len(tail) / 8 {
		binary.LittleEndian.PutUint64(tail[8*i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	ch, _ := collect(t, b, "tb.j.x", 4)
	for seq := range uint64(4) {
		publish(t, a, "tb.j.x", seq, tail)
	}
	for seq := range uint64(4) {
		if m := next(t, ch); m.Seq != seq || !bytes.Equal(m.tail, tail) {
			t.Errorf("message %d with %d bytes; want message %d with the %d sent", m.Seq, len(m.tail), seq, len(tail))
		}
	}
}

func testRefuses(t *testing.T, a, b comm.Conn) {
	ch, _ := collect(t, b, "tb.j.x", 1)
	for _, c := range []struct {
		name string
		h    wire.Header
		tail int
		want error
	}{
		{"tail above the limit", *header(1), comm.MaxMessageBytes + 1, wire.ErrTooLarge},
		{"header and tail above the limit", *header(1), comm.MaxMessageBytes, wire.ErrTooLarge},
		{"loss NaN", wire.Header{Kind: wire.Push, Job: "j", Loss: math.NaN()}, 0, wire.ErrNotFinite},
		{"no kind", wire.Header{Job: "j"}, 0, wire.ErrBadMessage},
		{"no job", wire.Header{Kind: wire.Push}, 0, wire.ErrBadMessage},
	} {
		if err := a.Publish("tb.j.x", &c.h, make([]byte, c.tail)); !errors.Is(err, c.want) {
			t.Errorf("%s: Publish = %v, want %v", c.name, err, c.want)
		}
	}
	long := wire.Header{Kind: wire.Ack, Job: "j", Code: wire.ErrHalted, Text: strings.Repeat("x", 2*wire.MaxTextBytes)}
	if err := a.Publish("tb.j.x", &long, nil); err != nil {
		t.Fatal(err)
	}
	if m := next(t, ch); len(m.Text) != wire.MaxTextBytes {
		t.Errorf("text of %d bytes arrives with %d", len(long.Text), len(m.Text))
	}
}

func testReuse(t *testing.T, a, b comm.Conn) {
	const n = 100
	ch, _ := collect(t, b, "tb.j.x", n)
	h, tail := header(0), make([]byte, 10_000)
	for i := range n {
		h.Seq = uint64(i + 1)
		fill(tail, byte(i))
		if err := a.Publish("tb.j.x", h, tail); err != nil {
			t.Fatal(err)
		}
	}
	h.Seq = 0
	fill(tail, 0xff)
	for i := range n {
		if m := next(t, ch); m.Seq != uint64(i+1) || !filled(m.tail, byte(i)) || len(m.tail) != len(tail) {
			t.Fatalf("message %d changed after Publish returned", i+1)
		}
	}
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

func filled(b []byte, v byte) bool {
	for _, x := range b {
		if x != v {
			return false
		}
	}
	return true
}

// testRelease holds messages while many others come and go, whose memory may
// be reused. Held ones must not change; releasing twice must not give the same
// memory to two messages.
func testRelease(t *testing.T, a, b comm.Conn) {
	const n, every = 500, 10
	type numbered struct {
		i int
		m *wire.Message
	}
	held := make(chan numbered, n/every)
	done := make(chan struct{})
	i := 0
	subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) {
		if !filled(m.Tail, byte(i)) {
			t.Errorf("message %d arrives damaged", i)
		}
		if i%every == 0 {
			held <- numbered{i, m}
		} else {
			m.Release()
			m.Release()
			if m.Tail != nil {
				t.Error("Tail is not nil after Release")
			}
		}
		if i++; i == n {
			close(done)
		}
	})
	tail := make([]byte, 10_000)
	for k := range n {
		fill(tail, byte(k))
		publish(t, a, "tb.j.x", 1, tail)
	}
	next(t, done)
	for range n / every {
		x := next(t, held)
		if len(x.m.Tail) != len(tail) || !filled(x.m.Tail, byte(x.i)) {
			t.Errorf("message %d changed before it was released", x.i)
		}
		x.m.Release()
	}
}

func testFanOut(t *testing.T, a, b comm.Conn) {
	const n = 200
	var chans []<-chan got
	for range 3 {
		ch, _ := collect(t, b, "tb.j.x", n)
		chans = append(chans, ch)
	}
	ch, _ := collect(t, a, "tb.j.>", n)
	chans = append(chans, ch)
	for seq := range uint64(n) {
		publish(t, a, "tb.j.x", seq, []byte{byte(seq), 1, 2, 3})
	}
	for i, ch := range chans {
		for seq := range uint64(n) {
			if m := next(t, ch); m.Seq != seq || len(m.tail) != 4 || m.tail[0] != byte(seq) {
				t.Fatalf("subscription %d: got message %d %x, want %d", i, m.Seq, m.tail, seq)
			}
		}
	}
}

// framePublisher is what implementations offer for sending damage.
type framePublisher interface {
	PublishFrame(subject string, frame []byte) error
}

func testMalformed(t *testing.T, a, b comm.Conn) {
	raw, ok := a.(framePublisher)
	if !ok {
		t.Fatalf("%T has no PublishFrame to damage messages with", a)
	}
	ch, _ := collect(t, b, "tb.j.x", 2)
	publish(t, a, "tb.j.x", 1, nil)
	good := wire.Append(nil, header(2), []byte("tail"))
	bad := [][]byte{nil, []byte("\xc6\xff\xff\xff\xff"), []byte("not a frame at all"), good[:9], append([]byte{0}, good...)}
	for _, f := range bad {
		if err := raw.PublishFrame("tb.j.x", f); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.PublishFrame("tb.j.x", good); err != nil {
		t.Fatal(err)
	}
	if m := next(t, ch); m.Seq != 1 {
		t.Errorf("before the damage: got %+v", m)
	}
	if m := next(t, ch); m.Seq != 2 || string(m.tail) != "tail" {
		t.Errorf("after the damage: got %+v", m)
	}
	if got := b.Stats().Malformed; got != uint64(len(bad)) {
		t.Errorf("Malformed = %d, want %d", got, len(bad))
	}
}

func testStats(t *testing.T, a, b comm.Conn) {
	ch, _ := collect(t, b, "tb.j.x", 10)
	out, in := a.Stats(), b.Stats()
	tail := make([]byte, 1000)
	for seq := range uint64(10) {
		publish(t, a, "tb.j.x", seq+1, tail)
	}
	for range 10 {
		next(t, ch)
	}
	bytes := uint64(wire.Size(header(1), tail) * 10)
	after := a.Stats()
	if m, n := after.MsgsOut-out.MsgsOut, after.BytesOut-out.BytesOut; m != 10 || n != bytes {
		t.Errorf("the publisher counts %d messages and %d bytes out; want 10 and %d", m, n, bytes)
	}
	after = b.Stats()
	if m, n := after.MsgsIn-in.MsgsIn, after.BytesIn-in.BytesIn; m != 10 || n != bytes {
		t.Errorf("the subscriber counts %d messages and %d bytes in; want 10 and %d", m, n, bytes)
	}
	if after.Dropped != 0 || after.Malformed != 0 {
		t.Errorf("the subscriber counts losses: %+v", after)
	}
}

func testUnsubscribe(t *testing.T, a, b comm.Conn) {
	started, release := make(chan uint64, 200), make(chan struct{})
	sub := subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) {
		started <- m.Seq
		<-release
		m.Release()
	})
	for seq := range uint64(100) {
		publish(t, a, "tb.j.x", seq, nil)
	}
	flush(t, a)
	next(t, started)
	flush(t, b) // one handler runs, 99 messages are queued
	for range 2 {
		if err := sub.Unsubscribe(); err != nil {
			t.Errorf("Unsubscribe: %v", err)
		}
	}
	for seq := range uint64(10) {
		publish(t, a, "tb.j.x", seq, nil)
	}
	flush(t, a)
	close(release)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if len(started) > 0 {
		t.Errorf("%d handlers started after Unsubscribe", len(started))
	}
}

func testUnsubscribeInside(t *testing.T, a, b comm.Conn) {
	done := make(chan error, 10)
	subs := make(chan comm.Subscription, 1)
	subs <- subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) {
		m.Release()
		done <- (<-subs).Unsubscribe()
	})
	for seq := range uint64(10) {
		publish(t, a, "tb.j.x", seq, nil)
	}
	if err := next(t, done); err != nil {
		t.Error(err)
	}
	flush(t, a)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if len(done) > 0 {
		t.Error("a handler started after Unsubscribe in the handler before it")
	}
}

func testCloseWaits(t *testing.T, a, b comm.Conn) { closeWaits(t, a, b, false) }

func testCloseAfterUnsubscribe(t *testing.T, a, b comm.Conn) { closeWaits(t, a, b, true) }

func closeWaits(t *testing.T, a, b comm.Conn, unsubscribe bool) {
	started, release := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	ended := false
	sub := subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) {
		defer m.Release()
		close(started)
		<-release
		mu.Lock()
		defer mu.Unlock()
		ended = true
	})
	publish(t, a, "tb.j.x", 1, nil)
	next(t, started)
	if unsubscribe {
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	select {
	case <-closed:
		t.Error("Close returned while a handler ran")
	case <-time.After(20 * time.Millisecond): // that nothing happens can only be watched for a while
	}
	close(release)
	if err := next(t, closed); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !ended {
		t.Error("Close returned before the handler did")
	}
}

func testCloseDrains(t *testing.T, a, b comm.Conn) {
	const n = 100
	start := make(chan struct{})
	var seen []uint64
	first := make(chan struct{}, n)
	subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) {
		defer m.Release()
		first <- struct{}{}
		<-start
		seen = append(seen, m.Seq)
	})
	for seq := range uint64(n) {
		publish(t, a, "tb.j.x", seq, nil)
	}
	flush(t, a)
	next(t, first)
	flush(t, b) // everything has arrived at b
	closed := make(chan error, 1)
	go func() { closed <- b.Close() }()
	close(start)
	if err := next(t, closed); err != nil {
		t.Fatal(err)
	}
	if len(seen) != n { // no lock: no handler runs any more, as the race detector confirms
		t.Errorf("%d of %d messages were handled", len(seen), n)
	}
}

func testClosed(t *testing.T, a, b comm.Conn) {
	sub := subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) { m.Release() })
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	if b.Connected() {
		t.Error("Connected() = true")
	}
	if err := b.Publish("tb.j.x", header(1), nil); !errors.Is(err, comm.ErrClosed) {
		t.Errorf("Publish = %v, want ErrClosed", err)
	}
	if _, err := b.Subscribe("tb.j.x", func(string, *wire.Message) {}); !errors.Is(err, comm.ErrClosed) {
		t.Errorf("Subscribe = %v, want ErrClosed", err)
	}
	if err := b.Flush(context.Background()); !errors.Is(err, comm.ErrClosed) {
		t.Errorf("Flush = %v, want ErrClosed", err)
	}
	if err := sub.Unsubscribe(); err != nil {
		t.Errorf("Unsubscribe after Close = %v", err)
	}
	publish(t, a, "tb.j.x", 1, nil) // the other connection lives
	flush(t, a)
}

func testConcurrent(t *testing.T, a, b comm.Conn) {
	const publishers, n = 8, 200
	ch, _ := collect(t, b, "tb.j.shard.*.*", publishers*n)
	var wg sync.WaitGroup
	for i := range publishers {
		wg.Go(func() {
			conn, tail := []comm.Conn{a, b}[i%2], bytes.Repeat([]byte{byte(i)}, 100*i)
			for seq := range uint64(n) {
				if err := conn.Publish(comm.ShardSubject("j", i, "w"), header(seq), tail); err != nil {
					t.Error(err)
					return
				}
				if seq%50 == 0 {
					conn.Stats()
					sub, err := conn.Subscribe("tb.j.other", func(_ string, m *wire.Message) { m.Release() })
					if err != nil {
						t.Error(err)
						return
					}
					if err := sub.Unsubscribe(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	last := map[string]uint64{}
	for range publishers * n {
		m := next(t, ch)
		var i int
		if _, err := fmt.Sscanf(m.subject, "tb.j.shard.%d.w", &i); err != nil {
			t.Fatal(err)
		}
		if m.Seq != last[m.subject] || len(m.tail) != 100*i || !filled(m.tail, byte(i)) {
			t.Fatalf("%s: message %d with %d bytes; want message %d with %d", m.subject, m.Seq, len(m.tail), last[m.subject], 100*i)
		}
		last[m.subject]++
	}
}

func testCloseRace(t *testing.T, a, b comm.Conn) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	arrived := make(chan struct{}, 1)
	subscribe(t, b, "tb.j.x", func(_ string, m *wire.Message) {
		m.Release()
		select {
		case arrived <- struct{}{}:
		default:
		}
	})
	for _, c := range []comm.Conn{a, b} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.Publish("tb.j.x", header(1), []byte("tail")); err != nil {
					if c == a || !errors.Is(err, comm.ErrClosed) {
						t.Errorf("Publish = %v", err)
					}
					return
				}
			}
		})
	}
	next(t, arrived)
	if err := b.Close(); err != nil {
		t.Errorf("Close while others publish: %v", err)
	}
}
