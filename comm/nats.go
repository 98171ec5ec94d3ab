package comm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"tributary/comm/wire"
)

// NATSOptions configure a connection to a NATS server.
type NATSOptions struct {
	URL    string
	Name   string
	Logger *slog.Logger
	// Extra options come last, for example nats.InProcessServer or credentials.
	Extra []nats.Option
	// Wait is how long DialNATS keeps trying; 0 means one attempt.
	Wait time.Duration
	// OnWait is told, after about a second and then every few, that nobody
	// answers at URL.
	OnWait func(text string)
	// PendingBytes bounds what one subscription may queue (default 256 MiB).
	// Beyond it messages are dropped, counted and logged, never silently.
	PendingBytes int
}

type natsConn struct {
	nc        *nats.Conn
	log       *slog.Logger
	pending   int
	closed    chan struct{}
	malformed atomic.Uint64
	dropped   atomic.Uint64
}

// DialNATS connects to a NATS server. Nothing is buffered while disconnected
// (ReconnectBufSize −1) and it reconnects for ever.
func DialNATS(ctx context.Context, o NATSOptions) (Conn, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PendingBytes == 0 {
		o.PendingBytes = 256 << 20
	}
	c := &natsConn{log: o.Logger, pending: o.PendingBytes, closed: make(chan struct{})}
	opts := append([]nats.Option{
		nats.Name(o.Name), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2), nats.Timeout(2 * time.Second),
		nats.ErrorHandler(c.asyncError),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { c.log.Warn("broker lost; reconnecting", "url", o.URL, "err", err) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { c.log.Info("broker is back", "url", nc.ConnectedUrl()) }),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
	}, o.Extra...)
	start, told := time.Now(), time.Duration(0)
	for {
		nc, err := nats.Connect(o.URL, opts...)
		if err == nil {
			c.nc = nc
			return c, nil
		}
		waited := time.Since(start)
		if waited >= o.Wait {
			return nil, fmt.Errorf("no broker at %s: %w; start one with `ps broker`, or give --nats URL", o.URL, err)
		}
		if o.OnWait != nil && waited >= told {
			told = waited + 5*time.Second
			o.OnWait(fmt.Sprintf("waiting for a broker at %s (%v); giving up after %v", o.URL, err, o.Wait))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no broker at %s: %w", o.URL, errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Raw returns the NATS connection of a Conn made by DialNATS, or nil.
func Raw(c Conn) *nats.Conn {
	if n, ok := c.(*natsConn); ok {
		return n.nc
	}
	return nil
}

func (c *natsConn) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	subject := ""
	if sub != nil {
		subject = sub.Subject
	}
	if errors.Is(err, nats.ErrSlowConsumer) {
		c.dropped.Add(1)
	}
	c.log.Warn("broker connection", "subject", subject, "err", err)
}

var frames = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

func (c *natsConn) Publish(subject string, h *wire.Header, tail []byte) error {
	b := frames.Get().(*[]byte)
	defer frames.Put(b)
	*b = wire.Append((*b)[:0], h, tail)
	// Publish copies into its own write buffer, so the frame can be reused.
	switch err := c.nc.Publish(subject, *b); {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrConnectionClosed):
		return ErrClosed
	case errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrConnectionReconnecting):
		return ErrDisconnected
	default:
		return fmt.Errorf("publish %s: %w", subject, err)
	}
}

func (c *natsConn) Subscribe(subject string, f func(string, *wire.Message)) (Subscription, error) {
	sub, err := c.nc.Subscribe(subject, func(msg *nats.Msg) {
		m, err := wire.Decode(msg.Data, nil)
		if err != nil {
			c.malformed.Add(1)
			c.log.Debug("malformed frame", "subject", msg.Subject, "err", err)
			return
		}
		f(msg.Subject, m)
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	if err := sub.SetPendingLimits(-1, c.pending); err != nil {
		return nil, fmt.Errorf("subscribe %s: %w", subject, err)
	}
	return sub, nil
}

func (c *natsConn) Flush(ctx context.Context) error { return c.nc.FlushWithContext(ctx) }

func (c *natsConn) Stats() Stats {
	s := c.nc.Stats()
	return Stats{MsgsIn: s.InMsgs, MsgsOut: s.OutMsgs, BytesIn: s.InBytes, BytesOut: s.OutBytes,
		Dropped: c.dropped.Load(), Malformed: c.malformed.Load(), Reconnects: s.Reconnects}
}

func (c *natsConn) Connected() bool { return c.nc.IsConnected() }

// Close drains: handlers finish what has arrived, then the connection closes.
// Drain returns at once, so Close waits for the closed handler; a broker that
// is away cannot be drained and the connection is cut.
func (c *natsConn) Close() error {
	if c.nc.IsClosed() {
		return nil
	}
	if !c.nc.IsConnected() || c.nc.Drain() != nil {
		c.nc.Close()
	}
	select {
	case <-c.closed:
		return nil
	case <-time.After(10 * time.Second):
		c.nc.Close()
		return errors.New("handlers did not end within 10 s of closing")
	}
}
