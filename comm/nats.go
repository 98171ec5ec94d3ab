package comm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"tributary/comm/wire"
)

// Options configure a connection to a NATS server.
type Options struct {
	// URL is the server's address, or several with commas between them.
	URL string
	// Conn is an open connection to use instead of dialling URL, for example to a
	// broker in the same process. It must have been made with [ConnOptions]; it
	// then belongs to the Conn that DialNATS returns, with its handlers.
	Conn   *nats.Conn
	Name   string // shown in the server's list of connections
	Logger *slog.Logger
	// Extra options come last when URL is dialled, for example credentials.
	Extra []nats.Option
	// Wait is how long DialNATS keeps trying; 0 means one attempt.
	Wait time.Duration
	// OnWait is told at once, and then every 5 s, that nobody answers at URL.
	OnWait func(text string)
	// OnState is told of every loss (false) and return (true) of the server, one
	// call at a time. It must not block: logs and other events wait for it.
	OnState func(connected bool)
	// PendingBytes bounds what one subscription may queue (default 256 MiB).
	// Beyond it messages are dropped, counted and logged, never silently.
	PendingBytes int
}

// ConnOptions are what a connection to NATS needs to carry messages as [Conn]
// promises. Nothing is buffered while disconnected (ReconnectBufSize −1), and it
// reconnects for ever.
func ConnOptions(name string) []nats.Option {
	return []nats.Option{
		nats.Name(name), nats.ReconnectBufSize(-1), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2), nats.Timeout(2 * time.Second),
		nats.DrainTimeout(closeTimeout),
		// A publisher waits no longer than this for a server that does not read.
		nats.FlusherTimeout(5 * time.Second), nats.ReconnectOnFlusherError(),
	}
}

const (
	retryEvery   = 200 * time.Millisecond
	tellEvery    = 5 * time.Second
	pendingBytes = 256 << 20
)

// natsConn is a Conn over a NATS server.
type natsConn struct {
	nc      *nats.Conn
	log     *slog.Logger
	url     string // without secrets
	onState func(bool)
	pending int

	gate      gate
	closing   atomic.Bool
	closed    chan struct{} // closed by nats.go when the connection has ended
	close     func() error
	malformed atomic.Uint64

	mu      sync.Mutex
	subs    map[*natsSub]struct{} // guarded by mu
	dropped uint64                // of subscriptions that have ended; guarded by mu
}

// DialNATS connects to a NATS server, or takes over o.Conn. It fails when
// nobody answers within o.Wait, when the server refuses the credentials, or
// when ctx ends.
func DialNATS(ctx context.Context, o Options) (Conn, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.PendingBytes == 0 {
		o.PendingBytes = pendingBytes
	}
	if o.OnState == nil {
		o.OnState = func(bool) {}
	}
	nc := o.Conn
	if nc == nil {
		var err error
		if nc, err = dial(ctx, o); err != nil {
			return nil, err
		}
	} else if nc.Opts.ReconnectBufSize >= 0 || nc.Opts.MaxReconnect >= 0 {
		return nil, errors.New("take over a NATS connection: it was not made with comm.ConnOptions")
	}
	c := &natsConn{nc: nc, log: o.Logger, url: redact(o.URL), onState: o.OnState, pending: o.PendingBytes,
		closed: make(chan struct{}), subs: map[*natsSub]struct{}{}}
	if c.url == "" {
		c.url = redact(nc.ConnectedUrl())
	}
	c.close = sync.OnceValue(c.drain)
	nc.SetErrorHandler(c.asyncError)
	nc.SetDisconnectErrHandler(c.lost)
	nc.SetReconnectHandler(c.back)
	nc.SetClosedHandler(func(*nats.Conn) { close(c.closed) })
	if nc.IsClosed() {
		return nil, fmt.Errorf("broker at %s: %w", c.url, ErrClosed)
	}
	return c, nil
}

// dial connects, again and again until o.Wait has passed.
func dial(ctx context.Context, o Options) (*nats.Conn, error) {
	opts := append(ConnOptions(o.Name), o.Extra...)
	where, start, tell := redact(o.URL), time.Now(), time.Duration(0)
	for {
		nc, err := connect(ctx, o.URL, opts)
		if err == nil {
			return nc, nil
		}
		waited := time.Since(start)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("no broker at %s: %w", where, err)
		case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
			return nil, fmt.Errorf("the broker at %s refuses this client: %w", where, err)
		case waited >= o.Wait:
			return nil, fmt.Errorf("no broker at %s: %w", where, err)
		case o.OnWait != nil && waited >= tell:
			tell = waited + tellEvery
			o.OnWait(fmt.Sprintf("waiting for a broker at %s (%v); giving up after %v", where, err, o.Wait))
		}
		select {
		case <-ctx.Done(): // the next attempt says so
		case <-time.After(min(retryEvery, o.Wait-waited)):
		}
	}
}

// connect is nats.Connect that ends with ctx. The attempt itself cannot be
// interrupted: it then ends by itself within its timeout of two seconds.
func connect(ctx context.Context, url string, opts []nats.Option) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		nc  *nats.Conn
		err error
	}
	done := make(chan result)
	go func() {
		nc, err := nats.Connect(url, opts...)
		select {
		case done <- result{nc, err}:
		case <-ctx.Done():
			nc.Close() // nobody wants it any more; nil is allowed
		}
	}()
	select {
	case r := <-done:
		return r.nc, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// redact removes secrets from a list of addresses.
func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, s := range list {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		switch at := strings.LastIndexByte(s, '@'); {
		case err == nil && u.User != nil:
			u.User = url.User("REDACTED")
			s = u.String()
		case at >= 0: // user:password@host without a scheme, or no URL at all
			s = "REDACTED" + s[at:]
		}
		list[i] = s
	}
	return strings.Join(list, ",")
}

// Raw returns the NATS connection of a Conn made by DialNATS, or nil.
func Raw(c Conn) *nats.Conn {
	if n, ok := c.(*natsConn); ok {
		return n.nc
	}
	return nil
}

func (c *natsConn) lost(_ *nats.Conn, err error) {
	if c.closing.Load() {
		return
	}
	c.log.Warn("broker lost; reconnecting", "url", c.url, "err", err)
	c.onState(false)
}

func (c *natsConn) back(*nats.Conn) {
	c.log.Info("broker is back", "url", c.url)
	c.onState(true)
}

// asyncError hears of a slow consumer once per episode; Stats counts messages.
func (c *natsConn) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	subject := ""
	if sub != nil {
		subject = sub.Subject
	}
	if errors.Is(err, nats.ErrSlowConsumer) {
		c.log.Warn("messages dropped: the subscriber is too slow", "subject", subject, "limit", c.pending)
		return
	}
	c.log.Warn("broker connection", "subject", subject, "err", err)
}

var frames = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

func (c *natsConn) Publish(subject string, h *wire.Header, tail []byte) error {
	if err := checkSubject(subject, false); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := h.Check(); err != nil {
		return fmt.Errorf("publish %s: %w", subject, err)
	}
	if err := checkSize(subject, len(tail)); err != nil { // before copying it
		return err
	}
	b := frames.Get().(*[]byte)
	defer frames.Put(b)
	*b = wire.Append((*b)[:0], h, tail)
	if err := checkSize(subject, len(*b)); err != nil {
		return err
	}
	return c.PublishFrame(subject, *b)
}

// PublishFrame sends bytes as they are, right or wrong: a test's way to damage
// messages. The frame is copied before it returns.
func (c *natsConn) PublishFrame(subject string, frame []byte) error {
	err := c.nc.Publish(subject, frame)
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("publish %s: %w: %d bytes, the broker's max_payload is %d", subject, wire.ErrTooLarge, len(frame), c.nc.MaxPayload())
	}
	return c.mapped(err, "publish", subject)
}

// mapped turns an error of nats.go into one of ours.
func (c *natsConn) mapped(err error, what, subject string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConnectionDraining):
		return ErrClosed
	case errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, nats.ErrConnectionReconnecting):
		return ErrDisconnected
	case !c.nc.IsConnected(): // a write that failed half-way
		return fmt.Errorf("%s %s: %w: %v", what, subject, ErrDisconnected, err)
	}
	return fmt.Errorf("%s %s: %w", what, subject, err)
}

// natsSub is one subscription. nats.go runs its handlers, one at a time.
type natsSub struct {
	conn *natsConn
	sub  *nats.Subscription
	tap  tap
	lost uint64 // messages dropped when last asked; guarded by conn.mu
}

func (c *natsConn) Subscribe(subject string, f func(string, *wire.Message)) (Subscription, error) {
	if err := checkSubject(subject, true); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s := &natsSub{conn: c}
	var err error
	s.sub, err = c.nc.Subscribe(subject, func(msg *nats.Msg) {
		if c.gate.enter(&s.tap) {
			defer c.gate.leave()
			c.deliver(msg, f)
		}
	})
	if err != nil {
		return nil, c.mapped(err, "subscribe", subject)
	}
	if err := s.sub.SetPendingLimits(-1, c.pending); err != nil {
		return nil, c.mapped(err, "subscribe", subject)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = struct{}{}
	return s, nil
}

func (c *natsConn) deliver(msg *nats.Msg, f func(string, *wire.Message)) {
	m, err := wire.Decode(msg.Data, nil)
	if err != nil {
		level := slog.LevelDebug
		if c.malformed.Add(1) == 1 { // the first is news, a flood of them is not
			level = slog.LevelWarn
		}
		c.log.Log(context.Background(), level, "malformed frame", "subject", msg.Subject, "err", err)
		return
	}
	f(msg.Subject, m)
}

func (s *natsSub) Unsubscribe() error {
	c := s.conn
	c.gate.turnOff(&s.tap)
	c.mu.Lock()
	if _, ok := c.subs[s]; ok {
		c.dropped += s.droppedLocked()
		delete(c.subs, s)
	}
	c.mu.Unlock()
	err := s.sub.Unsubscribe()
	if err == nil || errors.Is(err, nats.ErrBadSubscription) || errors.Is(err, nats.ErrConnectionClosed) {
		return nil // it has ended, which is what was asked for
	}
	return c.mapped(err, "unsubscribe", s.sub.Subject)
}

// droppedLocked is how many messages the subscription lost; of one that has
// ended, what it said last.
func (s *natsSub) droppedLocked() uint64 {
	if n, err := s.sub.Dropped(); err == nil {
		s.lost = uint64(n)
	}
	return s.lost
}

func (c *natsConn) Flush(ctx context.Context) error {
	if c.nc.IsClosed() {
		return ErrClosed
	}
	if !c.nc.IsConnected() && !c.nc.IsDraining() {
		return ErrDisconnected
	}
	if _, ok := ctx.Deadline(); !ok { // nats.go insists on one
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, closeTimeout)
		defer cancel()
	}
	return c.mapped(c.nc.FlushWithContext(ctx), "flush", c.url)
}

func (c *natsConn) Stats() Stats {
	s := c.nc.Stats()
	c.mu.Lock()
	defer c.mu.Unlock()
	dropped := c.dropped
	for sub := range c.subs {
		dropped += sub.droppedLocked()
	}
	return Stats{MsgsIn: s.InMsgs, MsgsOut: s.OutMsgs, BytesIn: s.InBytes, BytesOut: s.OutBytes,
		Dropped: dropped, Malformed: c.malformed.Load(), Reconnects: s.Reconnects}
}

func (c *natsConn) Connected() bool { return c.nc.IsConnected() }

func (c *natsConn) Close() error { return c.close() }

// drain ends the connection. Drain of nats.go returns at once, so this waits
// for the closed handler; and that comes while handlers run when the server is
// away, since nothing can be drained then, so this waits for the handlers too.
func (c *natsConn) drain() error {
	c.closing.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if !c.nc.IsConnected() || c.nc.Drain() != nil {
		c.nc.Close()
	}
	ended := await(ctx, c.closed)
	c.nc.Close()
	if !c.gate.shut(ctx) {
		return fmt.Errorf("broker at %s: %w", c.url, errHandlers)
	}
	if !ended {
		return fmt.Errorf("broker at %s: what was published may be lost: %w", c.url, context.DeadlineExceeded)
	}
	return nil
}
