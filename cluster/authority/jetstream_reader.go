package authority

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	heartbeat = time.Second
	// silence ends a reader: its consumer is gone, or the server hangs.
	silence = 2*heartbeat + heartbeat/2
	// idleConsumer is how long the server keeps a consumer that nobody
	// listens to and that could not be deleted.
	idleConsumer = 10 * time.Second
)

var errGap = errors.New("the server's messages have a gap")

// reader delivers the records under a prefix in the order of their revisions:
// first the newest one of each key, deletions included, then each change. It
// ends with an error as soon as it may have missed one: when the connection is
// lost, after a gap, or when the server has been silent. Used by one goroutine.
//
// Underneath is a push consumer without acknowledgements. Its messages are
// numbered without gaps, and heartbeats repeat the last number.
type reader struct {
	j        *JetStream
	sub      *nats.Subscription
	consumer string
	received uint64 // messages so far
	initial  uint64 // messages that stood at the start
	caughtUp bool   // all that stood at the start has been delivered

	ctx    context.Context // ends when the connection is lost; of this reader only
	cancel context.CancelFunc
}

// openReader creates a reader, once.
func (j *JetStream) openReader(ctx context.Context, prefix string) (_ *reader, err error) {
	ctx, cancel := j.attempt(ctx)
	defer cancel()
	// A consumer in the server's memory may outlive a reconnection or not; the
	// reader never does.
	r := &reader{j: j}
	r.ctx, r.cancel = j.whileConnected(context.Background())
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if err := j.connected(); err != nil {
		return nil, err
	}
	inbox := j.nc.NewInbox()
	if r.sub, err = j.nc.SubscribeSync(inbox); err != nil {
		return nil, err
	}
	if err := r.sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	c, err := j.js.CreatePushConsumer(ctx, j.streamName(), jetstream.ConsumerConfig{
		DeliverSubject: inbox, DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, AckPolicy: jetstream.AckNonePolicy,
		FilterSubject: j.filter(prefix), IdleHeartbeat: heartbeat, InactiveThreshold: idleConsumer,
		MemoryStorage: true, Replicas: 1,
	})
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("%w: bucket %q is gone", ErrStoreLost, j.o.Bucket)
	case err != nil:
		return nil, err
	}
	info := c.CachedInfo()
	r.consumer = info.Name
	// Some may have been delivered before the server wrote its answer.
	r.initial = info.NumPending + info.Delivered.Consumer
	r.caughtUp = r.initial == 0
	// The filter matches nothing in another store.
	if err := j.verify(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// filter is the narrowest subject that covers the keys with the prefix.
func (j *JetStream) filter(prefix string) string {
	return j.root + prefix[:strings.LastIndexByte(prefix, '.')+1] + ">"
}

// next waits for a record. One without a key says that nothing happened but
// perhaps that the reader has caught up.
func (r *reader) next(ctx context.Context) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	m, err := r.sub.NextMsgWithContext(ctx)
	if err != nil {
		return record{}, fmt.Errorf("wait for changes: %w", err)
	}
	if status := m.Header.Get("Status"); status != "" {
		if status == "100" && m.Header.Get("Nats-Last-Consumer") != strconv.FormatUint(r.received, 10) {
			return record{}, errGap
		}
		// The server is idle, so what stood at the start and did not come has
		// been removed meanwhile.
		r.caughtUp = true
		return record{}, nil
	}
	meta, err := m.Metadata()
	if err != nil {
		return record{}, fmt.Errorf("a message of the consumer: %w", err)
	}
	r.received++
	if meta.Sequence.Consumer != r.received {
		return record{}, errGap
	}
	r.caughtUp = r.caughtUp || r.received >= r.initial || meta.NumPending == 0
	return r.j.newRecord(m.Subject, meta.Sequence.Stream, m.Header, m.Data), nil
}

// close frees the consumer as far as the connection allows.
func (r *reader) close() {
	r.cancel()
	if r.sub == nil {
		return
	}
	// Errors mean that it is gone already, or will be when it idles.
	_ = r.sub.Unsubscribe()
	if r.consumer != "" && r.j.nc.IsConnected() {
		ctx, cancel := context.WithTimeout(context.Background(), heartbeat)
		defer cancel()
		_ = r.j.js.DeleteConsumer(ctx, r.j.streamName(), r.consumer)
	}
}
