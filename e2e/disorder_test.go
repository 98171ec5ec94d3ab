package e2e

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"tributary/comm"
	"tributary/comm/wire"
)

// disorder is a connection on which every tensor that is sent takes a seeded
// time of its own, so that contributions arrive in any order.
type disorder struct {
	comm.Conn
	mu    sync.Mutex
	rng   *rand.Rand // guarded by mu
	shut  bool       // guarded by mu
	onway sync.WaitGroup
}

func newDisorder(c comm.Conn, seed uint64) *disorder {
	return &disorder{Conn: c, rng: rand.New(rand.NewPCG(seed, 1))}
}

// longest is the most a tensor is late by: far below the wait after which it
// is sent again, so that a run stays short.
const longest = 4 * time.Millisecond

// Publish sends a tensor later, everything else at once.
func (d *disorder) Publish(subject string, h *wire.Header, tail []byte) error {
	if h.Kind != wire.Push {
		return d.Conn.Publish(subject, h, tail)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shut {
		return comm.ErrClosed
	}
	head, bytes := *h, slices.Clone(tail)
	d.onway.Add(1)
	time.AfterFunc(time.Duration(d.rng.Int64N(int64(longest))), func() {
		defer d.onway.Done()
		d.Conn.Publish(subject, &head, bytes) // fails only when nobody needs it any more
	})
	return nil
}

// end waits until nothing is on its way any more.
func (d *disorder) end() {
	d.mu.Lock()
	d.shut = true
	d.mu.Unlock()
	d.onway.Wait()
}
