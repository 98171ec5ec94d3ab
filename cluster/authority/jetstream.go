package authority

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// attemptLimit bounds one request; a call repeats it within its own limit.
	attemptLimit = 2 * time.Second
	// retryWait lies between two attempts, so that a broker that comes back is
	// noticed at once and one that stays away costs next to nothing.
	retryWait = 25 * time.Millisecond
)

var (
	errClosed       = errors.New("the authority was closed")
	errDisconnected = errors.New("no connection to the broker")
)

// JetStreamOptions says which bucket is opened. The zero value works.
type JetStreamOptions struct {
	// Bucket is letters, digits, '-' and '_'; default "tributary".
	Bucket string
	// Replicas, 1 to 5, is how many servers hold the bucket; default 1. Only
	// used when the bucket is created.
	Replicas int
	// Limit bounds calls whose context has no deadline; default 5 s.
	Limit time.Duration

	markerTTL time.Duration // how long a deletion can be seen; default 1 h
}

func (o JetStreamOptions) withDefaults() JetStreamOptions {
	if o.Bucket == "" {
		o.Bucket = "tributary"
	}
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Limit == 0 {
		o.Limit = 5 * time.Second
	}
	if o.markerTTL == 0 {
		o.markerTTL = time.Hour
	}
	return o
}

func (o JetStreamOptions) validate() error {
	var errs []error
	if strings.Trim(o.Bucket, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		errs = append(errs, fmt.Errorf("bucket %q is not letters, digits, '-' and '_'", o.Bucket))
	}
	if o.Replicas < 1 || o.Replicas > 5 {
		errs = append(errs, fmt.Errorf("%d replicas, not 1 to 5", o.Replicas))
	}
	if o.Limit < 0 {
		errs = append(errs, fmt.Errorf("limit %v is negative", o.Limit))
	}
	return errors.Join(errs...)
}

// JetStream is an Authority in a KV bucket of a NATS server with JetStream,
// version 2.12 or later. A key is a subject of the bucket's stream, its
// revision the stream's sequence, a time to live the message's.
//
// All keys begin with an id that is drawn when the bucket is created (hidden
// from callers). A store that was lost and created anew has another id, so no
// write can ever land in it by mistake: nobody listens on the old subjects.
//
// Reads go to the server that leads the stream, never to a follower. What was
// acknowledged survives a kill of the server, and a crash of the machine if
// the server syncs always (`jetstream { sync_interval: always }`; the broker
// of this module does).
type JetStream struct {
	o      JetStreamOptions
	nc     *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
	root   string // subject of a key without the key, ends with a dot

	seen    atomic.Uint64 // highest revision that the store has shown
	checked atomic.Uint64 // number of reconnections after which the store was verified

	life    context.Context // ends with Close; a context and not a channel, to end others with it
	end     context.CancelFunc
	mu      sync.Mutex // taken by end, and to start goroutines in watches
	watches sync.WaitGroup
}

// OpenJetStream opens the bucket, and creates it if it does not exist. It
// fails when the server has no JetStream or is too old, when the bucket
// belongs to somebody else, and with ErrUnavailable when nobody answers until
// ctx or o.Limit ends.
//
// The connection remains the caller's. Only one that reconnects for ever
// outlives a restart of the server; while it is away calls wait within their
// limit. One without a reconnect buffer (nats.ReconnectBufSize(-1)) is
// preferable: what nats.go buffers, it sends when nobody expects it any more.
func OpenJetStream(ctx context.Context, nc *nats.Conn, o JetStreamOptions) (*JetStream, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	j := &JetStream{o: o, nc: nc, js: js}
	j.life, j.end = context.WithCancel(context.Background())
	err = j.retry(ctx, func(ctx context.Context) error {
		ctx, cancel := j.attempt(ctx)
		defer cancel()
		reconnects := nc.Stats().Reconnects
		if err := j.connected(); err != nil {
			return err
		}
		if err := j.attach(ctx); err != nil {
			return err
		}
		j.checked.Store(reconnects)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("authority: open bucket %q: %w", o.Bucket, err)
	}
	return j, nil
}

// attach finds the stream or creates it. Of several that create it at the same
// time one succeeds; the others find it on their next attempt.
func (j *JetStream) attach(ctx context.Context) error {
	prefix := "$KV." + j.o.Bucket + "."
	s, err := j.js.Stream(ctx, j.streamName())
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = j.js.CreateStream(ctx, j.config(prefix+rand.Text()+"."))
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return permanent{fmt.Errorf("the server has no JetStream; enable JetStream (nats-server -js) or use ps broker: %w", err)}
	case err != nil:
		return err
	}
	cfg := s.CachedInfo().Config
	if !cfg.AllowAtomicPublish || !cfg.AllowMsgTTL {
		return permanent{fmt.Errorf("the bucket lacks atomic batches or times to live (server %s); use nats-server 2.12 or later and a bucket of our own", j.nc.ConnectedServerVersion())}
	}
	if len(cfg.Subjects) != 1 || !strings.HasPrefix(cfg.Subjects[0], prefix) || !strings.HasSuffix(cfg.Subjects[0], ".>") ||
		strings.Count(cfg.Subjects[0], ".") != 3 || cfg.MaxMsgsPerSubject != 1 {
		return permanent{errors.New("the bucket was made by something else; choose another name")}
	}
	j.stream, j.root = s, strings.TrimSuffix(cfg.Subjects[0], ">")
	return nil
}

func (j *JetStream) streamName() string { return "KV_" + j.o.Bucket }

// config is that of a KV bucket as nats.go makes it, but for two things:
// batches are allowed, and direct reads are not, because followers answer
// those too and may be behind. History must be 1: with more, the server
// lengthens short times to live to that of deletion markers.
func (j *JetStream) config(root string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: j.streamName(), Description: "tributary authority", Subjects: []string{root + ">"},
		MaxMsgsPerSubject: 1, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1,
		Storage: jetstream.FileStorage, Replicas: j.o.Replicas, Discard: jetstream.DiscardNew,
		AllowRollup: true, DenyDelete: true,
		AllowMsgTTL: true, SubjectDeleteMarkerTTL: j.o.markerTTL, AllowAtomicPublish: true,
	}
}

// Close ends the watches, whose channels are then closed, and waits for them.
// Later calls fail with ErrUnavailable; calls on their way are not
// interrupted. Keys, leases and the connection stay as they are.
func (j *JetStream) Close() error {
	j.mu.Lock()
	j.end()
	j.mu.Unlock()
	j.watches.Wait()
	return nil
}

// permanent marks an error that another attempt would only repeat.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

func isPermanent(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrStoreLost) || errors.Is(err, ErrBadOp) || errors.As(err, new(permanent))
}

// bound gives a context without a deadline the default one.
func (j *JetStream) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, j.o.Limit)
}

// retry repeats f, which must change nothing, until it succeeds or fails for
// good, or until the limit.
func (j *JetStream) retry(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := j.bound(ctx)
	defer cancel()
	for {
		err := ctx.Err()
		if err == nil {
			err = f(ctx)
		}
		if err == nil || isPermanent(err) {
			return err
		}
		if end := pause(ctx); end != nil {
			return unavailable(err, end)
		}
	}
}

// unavailable says why the last attempt failed and what ended the attempts.
func unavailable(last, end error) error {
	if errors.Is(last, end) {
		return fmt.Errorf("%w: %w", ErrUnavailable, last)
	}
	return fmt.Errorf("%w: %w (%w)", ErrUnavailable, last, end)
}

// pause waits between two attempts. An error says that there must be no other.
func pause(ctx context.Context) error {
	t := time.NewTimer(retryWait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connected fails when a request would not be sent now.
func (j *JetStream) connected() error {
	if j.life.Err() != nil {
		return permanent{fmt.Errorf("%w: %w", ErrUnavailable, errClosed)}
	}
	if j.nc.IsClosed() {
		return permanent{fmt.Errorf("%w: %w", ErrUnavailable, nats.ErrConnectionClosed)}
	}
	if !j.nc.IsConnected() {
		return errDisconnected
	}
	return nil
}

// attempt bounds one request by attemptLimit and by the connection: nats.go
// waits on for an answer that cannot come any more.
func (j *JetStream) attempt(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	ctx, stop := j.whileConnected(ctx)
	return ctx, func() { stop(); cancel() }
}

// whileConnected returns a context that also ends when the connection is lost
// after this call. The function frees what watches over it.
func (j *JetStream) whileConnected(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	status := j.nc.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	var wait sync.WaitGroup
	wait.Go(func() {
		if _, lost := <-status; lost { // otherwise closed by RemoveStatusListener
			cancel(errDisconnected)
		}
	})
	return ctx, func() {
		j.nc.RemoveStatusListener(status)
		wait.Wait()
		cancel(nil)
	}
}

// ready is connected, and after a reconnection it verifies the store.
func (j *JetStream) ready(ctx context.Context) error {
	if err := j.connected(); err != nil {
		return err
	}
	reconnects := j.nc.Stats().Reconnects
	if reconnects == j.checked.Load() {
		return nil
	}
	if err := j.verify(ctx); err != nil {
		return err
	}
	j.checked.Store(reconnects)
	return nil
}

// verify returns ErrStoreLost unless the bucket is the one that was opened and
// holds at least what it held.
func (j *JetStream) verify(ctx context.Context) error {
	ctx, cancel := j.attempt(ctx)
	defer cancel()
	seen := j.seen.Load()
	s, err := j.js.Stream(ctx, j.streamName())
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w: bucket %q is gone", ErrStoreLost, j.o.Bucket)
	}
	if err != nil {
		return fmt.Errorf("verify the store: %w", err)
	}
	info := s.CachedInfo()
	if !slices.Equal(info.Config.Subjects, []string{j.root + ">"}) {
		return fmt.Errorf("%w: bucket %q is another one of the same name", ErrStoreLost, j.o.Bucket)
	}
	// With replicas a new leader may not have applied all that is committed.
	if info.Config.Replicas <= 1 && info.State.LastSeq < seen {
		return fmt.Errorf("%w: bucket %q is at revision %d and was at %d; was an old copy restored?", ErrStoreLost, j.o.Bucket, info.State.LastSeq, seen)
	}
	return nil
}

// saw remembers a revision, by which an older copy of the store is recognized.
func (j *JetStream) saw(rev uint64) {
	for {
		old := j.seen.Load()
		if rev <= old || j.seen.CompareAndSwap(old, rev) {
			return
		}
	}
}

// Lease implements [Authority].
func (j *JetStream) Lease(ctx context.Context, key string, value []byte, ttl time.Duration) (Lease, error) {
	return newLease(ctx, j, key, value, ttl)
}
