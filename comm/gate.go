package comm

import (
	"context"
	"errors"
	"sync"
	"time"
)

// closeTimeout is how long Close waits for handlers.
const closeTimeout = 10 * time.Second

var errHandlers = errors.New("handlers did not end within 10 s of closing")

// gate knows which handlers of a connection run, and lets new ones start until
// it is shut. Transports alone promise less: a NATS subscription may start one
// more handler after Unsubscribe, and a NATS connection that is cut is closed
// while handlers still run.
type gate struct {
	mu      sync.Mutex
	running int           // guarded by mu
	idle    chan struct{} // made by shut, closed when nothing runs; guarded by mu
}

// tap stops the handlers of one subscription.
type tap struct{ off bool } // guarded by the mu of the connection's gate

// enter says whether a handler may start; if so, leave must follow.
func (g *gate) enter(t *tap) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle != nil || t.off {
		return false
	}
	g.running++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running--; g.running == 0 && g.idle != nil {
		close(g.idle)
	}
}

func (g *gate) turnOff(t *tap) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t.off = true
}

// shut keeps handlers from starting and waits until none runs. It says whether
// that was before ctx ended.
func (g *gate) shut(ctx context.Context) bool {
	g.mu.Lock()
	if g.idle == nil {
		g.idle = make(chan struct{})
		if g.running == 0 {
			close(g.idle)
		}
	}
	idle := g.idle
	g.mu.Unlock()
	return await(ctx, idle)
}

// await says whether done closes before ctx ends. When both have, done counts.
func await(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}
