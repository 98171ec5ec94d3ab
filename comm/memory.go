package comm

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"tributary/comm/wire"
)

// Memory is a broker inside the process: a message is encoded once, into pooled
// memory that every matching subscription shares. It starts nothing and needs
// no closing; its connections do.
type Memory struct {
	mu sync.RWMutex
	// Both guarded by mu. Senders hold it for reading while they queue, so that
	// nothing is queued on a subscription that has been removed.
	exact map[string]map[*memorySub]struct{} // by subject
	wild  map[*memorySub]struct{}            // with * or >
}

// NewMemory returns a broker without connections.
func NewMemory() *Memory {
	return &Memory{exact: map[string]map[*memorySub]struct{}{}, wild: map[*memorySub]struct{}{}}
}

// Connect returns a new connection to the broker. Its name appears in errors.
func (b *Memory) Connect(name string) Conn {
	c := &memoryConn{broker: b, name: name, subs: map[*memorySub]struct{}{}}
	c.close = sync.OnceValue(c.drain)
	return c
}

// What a subscription may queue. More is dropped and counted, as a NATS client
// does with a slow consumer: publishers never wait for subscribers.
const (
	queueLen   = 4096
	queueBytes = 256 << 20
)

type memoryConn struct {
	broker *Memory
	name   string
	subs   map[*memorySub]struct{} // guarded by broker.mu
	closed bool                    // guarded by broker.mu
	close  func() error
	gate   gate

	msgsIn, msgsOut, bytesIn, bytesOut, dropped, malformed atomic.Uint64
}

type memorySub struct {
	conn    *memoryConn
	pattern string
	handle  func(string, *wire.Message)
	queue   chan memoryMsg // closed when the subscription is removed
	bytes   atomic.Int64   // queued or being handled
	tap     tap
	ended   chan struct{}
}

type memoryMsg struct {
	subject string
	frame   *sharedFrame
}

// sharedFrame is a frame that goes back to its pool when the last receiver has
// released it.
type sharedFrame struct {
	buf  []byte
	refs atomic.Int32
	free func() // release, bound once so that a delivery does not allocate it
}

var sharedFrames = sync.Pool{New: func() any { return &sharedFrame{} }}

// newFrame returns an empty frame with one reference, the caller's.
func newFrame() *sharedFrame {
	f := sharedFrames.Get().(*sharedFrame)
	if f.free == nil {
		f.free = f.release
	}
	f.refs.Store(1)
	f.buf = f.buf[:0]
	return f
}

func (f *sharedFrame) release() {
	if f.refs.Add(-1) == 0 {
		sharedFrames.Put(f)
	}
}

func (c *memoryConn) Publish(subject string, h *wire.Header, tail []byte) error {
	if err := checkSubject(subject, false); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := h.Check(); err != nil {
		return fmt.Errorf("publish %s: %w", subject, err)
	}
	if err := checkSize(subject, len(tail)); err != nil { // before copying it
		return err
	}
	f := newFrame()
	defer f.release()
	f.buf = wire.Append(f.buf, h, tail)
	if err := checkSize(subject, len(f.buf)); err != nil {
		return err
	}
	return c.send(subject, f)
}

// PublishFrame sends bytes as they are, right or wrong: a test's way to damage
// messages.
func (c *memoryConn) PublishFrame(subject string, frame []byte) error {
	f := newFrame()
	defer f.release()
	f.buf = append(f.buf, frame...)
	return c.send(subject, f)
}

func (c *memoryConn) send(subject string, f *sharedFrame) error {
	b := c.broker
	b.mu.RLock()
	defer b.mu.RUnlock()
	if c.closed {
		return c.errClosed()
	}
	c.msgsOut.Add(1)
	c.bytesOut.Add(uint64(len(f.buf)))
	for s := range b.exact[subject] {
		s.offer(subject, f)
	}
	for s := range b.wild {
		if matches(s.pattern, subject) {
			s.offer(subject, f)
		}
	}
	return nil
}

// offer queues a frame, or drops and counts it.
func (s *memorySub) offer(subject string, f *sharedFrame) {
	n := int64(len(f.buf))
	if s.bytes.Add(n) <= queueBytes {
		f.refs.Add(1)
		select {
		case s.queue <- memoryMsg{subject, f}:
			return
		default:
			f.refs.Add(-1) // never the last: the sender holds one
		}
	}
	s.bytes.Add(-n)
	s.conn.dropped.Add(1)
}

func (c *memoryConn) Subscribe(subject string, f func(string, *wire.Message)) (Subscription, error) {
	if err := checkSubject(subject, true); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := &memorySub{conn: c, pattern: subject, handle: f, queue: make(chan memoryMsg, queueLen), ended: make(chan struct{})}
	c.broker.mu.Lock()
	defer c.broker.mu.Unlock()
	if c.closed {
		return nil, c.errClosed()
	}
	set := c.broker.wild
	if !strings.ContainsAny(subject, "*>") {
		if set = c.broker.exact[subject]; set == nil {
			set = map[*memorySub]struct{}{}
			c.broker.exact[subject] = set
		}
	}
	set[s] = struct{}{}
	c.subs[s] = struct{}{}
	go s.run() // until the subscription is removed; Close waits for its handlers
	return s, nil
}

// run delivers until the queue is closed and empty.
func (s *memorySub) run() {
	defer close(s.ended)
	for m := range s.queue {
		n := len(m.frame.buf)
		if s.conn.gate.enter(&s.tap) {
			s.conn.msgsIn.Add(1)
			s.conn.bytesIn.Add(uint64(n))
			s.deliver(m)
			s.conn.gate.leave()
		} else {
			m.frame.release()
		}
		s.bytes.Add(-int64(n))
	}
}

func (s *memorySub) deliver(m memoryMsg) {
	msg, err := wire.Decode(m.frame.buf, m.frame.free)
	if err != nil {
		s.conn.malformed.Add(1)
		m.frame.release()
		return
	}
	s.handle(m.subject, msg)
}

func (s *memorySub) Unsubscribe() error {
	s.conn.gate.turnOff(&s.tap)
	s.conn.broker.mu.Lock()
	defer s.conn.broker.mu.Unlock()
	s.removeLocked()
	return nil
}

// removeLocked lets nothing more into the queue; what is in it stays.
func (s *memorySub) removeLocked() {
	if _, ok := s.conn.subs[s]; !ok {
		return
	}
	b := s.conn.broker
	delete(s.conn.subs, s)
	delete(b.wild, s)
	delete(b.exact[s.pattern], s)
	if len(b.exact[s.pattern]) == 0 {
		delete(b.exact, s.pattern)
	}
	close(s.queue)
}

// Flush has nothing to wait for: Publish queues at the subscribers.
func (c *memoryConn) Flush(ctx context.Context) error {
	if !c.Connected() {
		return c.errClosed()
	}
	return ctx.Err()
}

func (c *memoryConn) Connected() bool {
	c.broker.mu.RLock()
	defer c.broker.mu.RUnlock()
	return !c.closed
}

func (c *memoryConn) Stats() Stats {
	return Stats{MsgsIn: c.msgsIn.Load(), MsgsOut: c.msgsOut.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Dropped: c.dropped.Load(), Malformed: c.malformed.Load()}
}

func (c *memoryConn) Close() error { return c.close() }

func (c *memoryConn) drain() error {
	var ending []*memorySub
	c.broker.mu.Lock()
	c.closed = true
	for s := range c.subs {
		ending = append(ending, s)
		s.removeLocked()
	}
	c.broker.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	for _, s := range ending {
		await(ctx, s.ended)
	}
	// Handlers of subscriptions that ended earlier may still run.
	if !c.gate.shut(ctx) {
		return fmt.Errorf("%s: %w", c.name, errHandlers)
	}
	return nil
}

func (c *memoryConn) errClosed() error { return fmt.Errorf("%s: %w", c.name, ErrClosed) }
