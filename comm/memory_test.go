package comm_test

import (
	"testing"

	"tributary/comm"
	"tributary/comm/commtest"
	"tributary/comm/wire"
)

func TestMemory(t *testing.T) {
	commtest.Run(t, func(*testing.T) (a, b comm.Conn) {
		hub := comm.NewMemory()
		return hub.Connect("a"), hub.Connect("b")
	})
}

// TestMemoryDrops: a subscriber that does not read costs bounded memory and
// never holds up a publisher; what it loses is counted.
func TestMemoryDrops(t *testing.T) {
	for _, c := range []struct {
		name   string
		tail   int
		queued int // at least this many fit
	}{{"too many messages", 0, 4096}, {"too many bytes", 4 << 20, 63}} {
		t.Run(c.name, func(t *testing.T) {
			hub := comm.NewMemory()
			a, b := hub.Connect("a"), hub.Connect("b")
			started, release := make(chan struct{}, 10_000), make(chan struct{})
			if _, err := b.Subscribe("x", func(_ string, m *wire.Message) {
				started <- struct{}{}
				<-release
				m.Release()
			}); err != nil {
				t.Fatal(err)
			}
			h, tail, n := wire.Header{Kind: wire.Push, Job: "j"}, make([]byte, c.tail), c.queued+10
			for range n {
				if err := a.Publish("x", &h, tail); err != nil {
					t.Fatal(err)
				}
			}
			close(release)
			if err := b.Close(); err != nil { // handles what was queued
				t.Fatal(err)
			}
			dropped := int(b.Stats().Dropped)
			if handled := len(started); handled < c.queued || dropped == 0 || handled+dropped != n {
				t.Errorf("of %d messages %d were handled and %d dropped; want at least %d handled, some dropped, none unaccounted for", n, handled, dropped, c.queued)
			}
		})
	}
}

// BenchmarkMemory is one message of 1 MiB to one subscriber.
func BenchmarkMemory(b *testing.B) {
	hub := comm.NewMemory()
	x, y := hub.Connect("x"), hub.Connect("y")
	defer x.Close()
	defer y.Close()
	benchmark(b, x, y)
}

// benchmark sends messages of 1 MiB, at most 8 in flight.
func benchmark(b *testing.B, x, y comm.Conn) {
	credit := make(chan struct{}, 8)
	if _, err := y.Subscribe("x", func(_ string, m *wire.Message) {
		m.Release()
		<-credit
	}); err != nil {
		b.Fatal(err)
	}
	if err := y.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	h, tail := wire.Header{Kind: wire.Push, Job: "j", Worker: "w", Step: 1000, Count: 1 << 18}, make([]byte, 1<<20)
	b.SetBytes(int64(len(tail)))
	b.ReportAllocs()
	for b.Loop() {
		credit <- struct{}{}
		if err := x.Publish("x", &h, tail); err != nil {
			b.Fatal(err)
		}
	}
}
