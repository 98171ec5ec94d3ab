package comm

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"tributary/comm/wire"
)

// Memory is a broker inside the process: messages are encoded once, handed to
// every matching subscription, and their memory is pooled.
type Memory struct {
	mu   sync.RWMutex
	subs map[*memorySub]struct{} // guarded by mu
}

// NewMemory returns a broker without connections.
func NewMemory() *Memory { return &Memory{subs: map[*memorySub]struct{}{}} }

// Connect returns a new connection to the broker.
func (b *Memory) Connect() Conn { return &memoryConn{broker: b} }

// queueLen is how many messages a subscription may queue; more are dropped and
// counted, as a NATS client does with a slow consumer.
const queueLen = 4096

type memorySub struct {
	conn    *memoryConn
	pattern []string
	queue   chan memoryMsg
	quit    chan struct{}
	ended   chan struct{}
	once    sync.Once
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
}

var shared = sync.Pool{New: func() any { return &sharedFrame{} }}

func (f *sharedFrame) release() {
	if f.refs.Add(-1) == 0 {
		shared.Put(f)
	}
}

type memoryConn struct {
	broker                                                 *Memory
	closed                                                 atomic.Bool
	msgsIn, msgsOut, bytesIn, bytesOut, dropped, malformed atomic.Uint64
}

func (c *memoryConn) Publish(subject string, h *wire.Header, tail []byte) error {
	if c.closed.Load() {
		return ErrClosed
	}
	f := shared.Get().(*sharedFrame)
	f.buf = wire.Append(f.buf[:0], h, tail)
	return c.publishFrame(subject, f)
}

func (c *memoryConn) publishFrame(subject string, f *sharedFrame) error {
	f.refs.Store(1)
	defer f.release()
	c.msgsOut.Add(1)
	c.bytesOut.Add(uint64(len(f.buf)))
	parts := strings.Split(subject, ".")
	c.broker.mu.RLock()
	defer c.broker.mu.RUnlock()
	for s := range c.broker.subs {
		if !matches(s.pattern, parts) {
			continue
		}
		f.refs.Add(1)
		select {
		case s.queue <- memoryMsg{subject, f}:
		default:
			f.release()
			s.conn.dropped.Add(1)
		}
	}
	return nil
}

// matches says whether a subject matches a pattern with * and >.
func matches(pattern, subject []string) bool {
	for i, p := range pattern {
		switch {
		case p == ">":
			return i < len(subject)
		case i >= len(subject) || p != "*" && p != subject[i]:
			return false
		}
	}
	return len(pattern) == len(subject)
}

func (c *memoryConn) Subscribe(subject string, f func(string, *wire.Message)) (Subscription, error) {
	if c.closed.Load() {
		return nil, ErrClosed
	}
	s := &memorySub{conn: c, pattern: strings.Split(subject, "."), queue: make(chan memoryMsg, queueLen), quit: make(chan struct{}), ended: make(chan struct{})}
	c.broker.mu.Lock()
	c.broker.subs[s] = struct{}{}
	c.broker.mu.Unlock()
	go s.run(f)
	return s, nil
}

// run delivers until Unsubscribe or Close; each waits for it to end.
func (s *memorySub) run(f func(string, *wire.Message)) {
	defer close(s.ended)
	for {
		select {
		case m := <-s.queue:
			s.conn.msgsIn.Add(1)
			s.conn.bytesIn.Add(uint64(len(m.frame.buf)))
			msg, err := wire.Decode(m.frame.buf, m.frame.release)
			if err != nil {
				s.conn.malformed.Add(1)
				m.frame.release()
				continue
			}
			f(m.subject, msg)
		case <-s.quit:
			return
		}
	}
}

func (s *memorySub) Unsubscribe() error {
	s.conn.broker.mu.Lock()
	delete(s.conn.broker.subs, s)
	s.conn.broker.mu.Unlock()
	s.once.Do(func() { close(s.quit) })
	<-s.ended
	return nil
}

func (c *memoryConn) Flush(context.Context) error { return nil }

func (c *memoryConn) Connected() bool { return !c.closed.Load() }

func (c *memoryConn) Stats() Stats {
	return Stats{MsgsIn: c.msgsIn.Load(), MsgsOut: c.msgsOut.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Dropped: c.dropped.Load(), Malformed: c.malformed.Load()}
}

func (c *memoryConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.broker.mu.RLock()
	var mine []*memorySub
	for s := range c.broker.subs {
		if s.conn == c {
			mine = append(mine, s)
		}
	}
	c.broker.mu.RUnlock()
	for _, s := range mine {
		if err := s.Unsubscribe(); err != nil {
			return err
		}
	}
	return nil
}
