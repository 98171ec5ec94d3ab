package comm_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"tributary/comm"
	"tributary/comm/commtest"
	"tributary/comm/wire"
)

// startServer starts a NATS server on loopback; port −1 takes a free one.
func startServer(t testing.TB, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoLog: true, NoSigs: true, MaxPayload: comm.MaxMessageBytes})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stop(s) })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func dial(t testing.TB, o comm.Options) comm.Conn {
	t.Helper()
	c, err := comm.DialNATS(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func next[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case m := <-ch:
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("nothing arrives")
		panic("unreachable")
	}
}

func TestNATS(t *testing.T) {
	commtest.Run(t, func(t *testing.T) (a, b comm.Conn) {
		url := startServer(t, -1).ClientURL()
		return dial(t, comm.Options{URL: url, Name: "a"}), dial(t, comm.Options{URL: url, Name: "b"})
	})
}

// TestNATSInProcess takes over connections that do not go through a socket.
func TestNATSInProcess(t *testing.T) {
	commtest.Run(t, func(t *testing.T) (a, b comm.Conn) {
		s := startServer(t, -1)
		take := func(name string) comm.Conn {
			nc, err := nats.Connect("", append(comm.ConnOptions(name), nats.InProcessServer(s))...)
			if err != nil {
				t.Fatal(err)
			}
			return dial(t, comm.Options{Conn: nc})
		}
		return take("a"), take("b")
	})
}

// TestOutage: the server goes and comes back on the same port.
func TestOutage(t *testing.T) {
	s := startServer(t, -1)
	port, url := s.Addr().(*net.TCPAddr).Port, s.ClientURL()
	states := map[string]chan bool{"a": make(chan bool, 100), "b": make(chan bool, 100)}
	a := dial(t, comm.Options{URL: url, OnState: func(up bool) { states["a"] <- up }})
	b := dial(t, comm.Options{URL: url, OnState: func(up bool) { states["b"] <- up }})
	got := make(chan uint64, 100)
	if _, err := b.Subscribe("x.*", func(_ string, m *wire.Message) { got <- m.Seq; m.Release() }); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish := func(seq uint64) error {
		return a.Publish("x.y", &wire.Header{Kind: wire.Push, Job: "j", Seq: seq}, nil)
	}
	for round := range uint64(2) {
		if err := publish(10 * round); err != nil {
			t.Fatal(err)
		}
		if seq := next(t, got); seq != 10*round {
			t.Fatalf("got message %d, want %d", seq, 10*round)
		}
		stop(s)
		for name, ch := range states {
			if next(t, ch) {
				t.Errorf("%s hears of a return first", name)
			}
		}
		if a.Connected() {
			t.Error("Connected() = true without a server")
		}
		for range 100 {
			if err := publish(10*round + 1); !errors.Is(err, comm.ErrDisconnected) {
				t.Errorf("Publish without a server = %v, want ErrDisconnected", err)
			}
		}
		if err := a.Flush(t.Context()); !errors.Is(err, comm.ErrDisconnected) {
			t.Errorf("Flush without a server = %v, want ErrDisconnected", err)
		}
		s = startServer(t, port)
		for name, ch := range states {
			if !next(t, ch) {
				t.Errorf("%s hears of a second loss first", name)
			}
		}
		if err := b.Flush(t.Context()); err != nil { // the subscription is known again
			t.Fatal(err)
		}
	}
	if err := publish(99); err != nil {
		t.Fatal(err)
	}
	if seq := next(t, got); seq != 99 {
		t.Errorf("got message %d, want 99: nothing published during the outage may arrive", seq)
	}
	if n := a.Stats().Reconnects; n != 2 {
		t.Errorf("Reconnects = %d, want 2", n)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	for name, ch := range states {
		if len(ch) > 0 {
			t.Errorf("%s: Close is reported as a change of state", name)
		}
	}
}

// TestCloseDuringOutage: nothing can be drained, yet Close waits for handlers.
func TestCloseDuringOutage(t *testing.T) {
	s := startServer(t, -1)
	lost := make(chan bool, 10)
	c := dial(t, comm.Options{URL: s.ClientURL(), OnState: func(up bool) { lost <- up }})
	started, release, ended := make(chan bool), make(chan bool), false
	if _, err := c.Subscribe("x", func(_ string, m *wire.Message) {
		close(started)
		<-release
		ended = true
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Publish("x", &wire.Header{Kind: wire.Push, Job: "j"}, nil); err != nil {
		t.Fatal(err)
	}
	next(t, started)
	stop(s)
	next(t, lost)
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case <-closed:
		t.Error("Close returned while a handler ran")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	if err := next(t, closed); err != nil {
		t.Error(err)
	}
	if !ended {
		t.Error("Close returned before the handler did")
	}
}

// TestSlowConsumer: what is dropped is counted message by message and logged.
func TestSlowConsumer(t *testing.T) {
	s := startServer(t, -1)
	var log logBuffer
	a := dial(t, comm.Options{URL: s.ClientURL()})
	b := dial(t, comm.Options{URL: s.ClientURL(), PendingBytes: 10_000, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	release, handled := make(chan bool), 0
	sub, err := b.Subscribe("x", func(_ string, m *wire.Message) { <-release; handled++ })
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	const n = 50
	for range n {
		if err := a.Publish("x", &wire.Header{Kind: wire.Push, Job: "j"}, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []comm.Conn{a, b} {
		if err := c.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	dropped := b.Stats().Dropped
	close(release)
	if err := errors.Join(a.Close(), b.Close(), sub.Unsubscribe()); err != nil {
		t.Fatal(err)
	}
	if dropped == 0 || handled+int(dropped) != n {
		t.Errorf("of %d messages %d were handled and %d dropped", n, handled, dropped)
	}
	if got := b.Stats().Dropped; got != dropped {
		t.Errorf("after Close: Dropped = %d, want %d", got, dropped)
	}
	if text := log.String(); !strings.Contains(text, "messages dropped") || !strings.Contains(text, "subject=x") {
		t.Errorf("the log says nothing of it:\n%s", text)
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder // guarded by mu
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPayloadLimit: a broker of the user's own may allow less than we do.
func TestPayloadLimit(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, MaxPayload: 1000})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stop(s) })
	c := dial(t, comm.Options{URL: s.ClientURL()})
	defer c.Close()
	err = c.Publish("x", &wire.Header{Kind: wire.Push, Job: "j"}, make([]byte, 2000))
	if !errors.Is(err, wire.ErrTooLarge) || !strings.Contains(err.Error(), "max_payload is 1000") {
		t.Errorf("Publish = %v, want ErrTooLarge with the limit", err)
	}
}

// freePort is a port at which nobody listens.
func freePort(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr)
}

func TestDialFails(t *testing.T) {
	url := "nats://me:secret@" + freePort(t).String()
	check := func(t *testing.T, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "no broker at nats://REDACTED@127.0.0.1:") || strings.Contains(err.Error(), "secret") {
			t.Errorf("DialNATS = %v; want the address without the password", err)
		}
	}
	t.Run("at once", func(t *testing.T) {
		_, err := comm.DialNATS(t.Context(), comm.Options{URL: url})
		check(t, err)
	})
	t.Run("after waiting", func(t *testing.T) {
		var told []string
		start := time.Now()
		_, err := comm.DialNATS(t.Context(), comm.Options{URL: url, Wait: 300 * time.Millisecond, OnWait: func(s string) { told = append(told, s) }})
		check(t, err)
		if d := time.Since(start); d < 300*time.Millisecond {
			t.Errorf("gave up after %v", d)
		}
		if len(told) != 1 || !strings.Contains(told[0], "waiting for a broker at nats://REDACTED@") {
			t.Errorf("told %q", told)
		}
	})
	t.Run("context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := comm.DialNATS(ctx, comm.Options{URL: url, Wait: time.Hour, OnWait: func(string) { cancel() }})
		check(t, err)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("DialNATS = %v, want Canceled", err)
		}
	})
	t.Run("context while a silent server is asked", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, but never speaks
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := comm.DialNATS(ctx, comm.Options{URL: l.Addr().String(), Wait: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("DialNATS = %v, want DeadlineExceeded", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v to notice", d)
		}
	})
	t.Run("refused", func(t *testing.T) {
		s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoLog: true, NoSigs: true, Authorization: "right"})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { stop(s) })
		_, err = comm.DialNATS(t.Context(), comm.Options{URL: s.ClientURL(), Wait: time.Hour})
		if err == nil || !strings.Contains(err.Error(), "refuses this client") {
			t.Errorf("DialNATS = %v; want no waiting for a server that refuses", err)
		}
	})
	t.Run("connection of another make", func(t *testing.T) {
		nc, err := nats.Connect(startServer(t, -1).ClientURL())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if _, err := comm.DialNATS(t.Context(), comm.Options{Conn: nc}); err == nil {
			t.Error("DialNATS takes over a connection that buffers while disconnected")
		}
	})
}

// TestDialWaits: the server starts after the client.
func TestDialWaits(t *testing.T) {
	addr := freePort(t)
	c := dial(t, comm.Options{URL: addr.String(), Wait: 20 * time.Second, OnWait: func(string) { startServer(t, addr.Port) }})
	if !c.Connected() || comm.Raw(c) == nil {
		t.Error("not connected")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// BenchmarkNATS is one message of 1 MiB through a server in this process, both
// connections in process.
func BenchmarkNATS(b *testing.B) {
	s := startServer(b, -1)
	take := func() comm.Conn { return dial(b, comm.Options{Extra: []nats.Option{nats.InProcessServer(s)}}) }
	x, y := take(), take()
	defer x.Close()
	defer y.Close()
	benchmark(b, x, y)
}
