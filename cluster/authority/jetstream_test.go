package authority_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"tributary/cluster/authority"
	"tributary/cluster/authority/authoritytest"
	"tributary/comm/broker"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func TestJetStream(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	var buckets atomic.Int64
	authoritytest.Run(t, func(t *testing.T) authority.Authority {
		return open(t, b.connect(t), authority.JetStreamOptions{Bucket: "b" + strconv.FormatInt(buckets.Add(1), 10)})
	}, func(t *testing.T, test func(t *testing.T)) {
		t.Parallel()
		test(t)
	})
}

// testBroker is a broker that a test stops and starts on one port and store.
type testBroker struct {
	t *testing.T
	b *broker.Broker
	o broker.Options
}

func startBroker(t *testing.T) *testBroker {
	t.Helper()
	b := &testBroker{t: t, o: broker.Options{StoreDir: t.TempDir()}}
	b.start()
	u, err := url.Parse(b.b.URL())
	if err != nil {
		t.Fatal(err)
	}
	if b.o.Port, err = strconv.Atoi(u.Port()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	return b
}

// start starts it. Its port was ours a moment ago, but sockets of the previous
// one may linger.
func (b *testBroker) start() {
	b.t.Helper()
	var err error
	for range 100 {
		b.b, err = broker.Start(b.o)
		if !errors.Is(err, broker.ErrPortInUse) {
			break
		}
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *testBroker) stop() {
	b.t.Helper()
	if err := b.b.Close(); err != nil {
		b.t.Error(err)
	}
}

// wipe empties the store of a stopped broker.
func (b *testBroker) wipe() {
	b.t.Helper()
	if err := os.RemoveAll(filepath.Join(b.o.StoreDir, "jetstream")); err != nil {
		b.t.Fatal(err)
	}
}

// connect returns a connection that survives restarts of the broker.
func (b *testBroker) connect(t *testing.T, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(b.b.URL(), append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(20 * time.Millisecond), nats.ReconnectJitter(0, 0)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func open(t *testing.T, nc *nats.Conn, o authority.JetStreamOptions) *authority.JetStream {
	t.Helper()
	a, err := authority.OpenJetStream(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return a
}

func cas(t *testing.T, a authority.Authority, op authority.Op) uint64 {
	t.Helper()
	rev, err := a.CAS(t.Context(), op)
	if err != nil {
		t.Fatalf("CAS(%q) = %v", op.Key, err)
	}
	return rev
}

func watch(t *testing.T, a authority.Authority, prefix string) <-chan authority.Entry {
	t.Helper()
	ch, err := a.Watch(t.Context(), prefix)
	if err != nil {
		t.Fatalf("Watch = %v", err)
	}
	return ch
}

// next waits for an entry, or for the end of the watch.
func next(t *testing.T, ch <-chan authority.Entry) (authority.Entry, bool) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case e, ok := <-ch:
		return e, ok
	case <-timer.C:
		t.Fatalf("the watch delivered nothing for %v", patience)
	}
	panic("unreachable")
}

// wants waits for an entry with this key and revision.
func wants(t *testing.T, ch <-chan authority.Entry, key string, rev uint64, deleted bool) {
	t.Helper()
	if e, ok := next(t, ch); !ok || e.Key != key || e.Revision != rev || e.Deleted != deleted {
		t.Fatalf("watch delivered %v (open: %v), want %q at %d, deleted: %v", e, ok, key, rev, deleted)
	}
}

func TestJetStreamBucket(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	nc := b.connect(t)
	a := open(t, nc, authority.JetStreamOptions{})
	rev := cas(t, a, authority.Op{Key: "k", Value: []byte("v"), TTL: time.Hour})

	// It is a KV bucket to other tools.
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "tributary")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kv.Keys(t.Context())
	if err != nil || len(keys) != 1 || !strings.HasSuffix(keys[0], ".k") {
		t.Fatalf("keys of the bucket = %q, %v", keys, err)
	}
	if e, err := kv.Get(t.Context(), keys[0]); err != nil || string(e.Value()) != "v" || e.Revision() != rev {
		t.Errorf("the bucket has %v, %v, want v at %d", e, err, rev)
	}
	status, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := status.(*jetstream.KeyValueBucketStatus).StreamInfo().Config
	if cfg.Replicas != 1 || cfg.Storage != jetstream.FileStorage || cfg.MaxMsgsPerSubject != 1 || !cfg.AllowMsgTTL || !cfg.AllowAtomicPublish {
		t.Errorf("the bucket is configured as %+v", cfg)
	}

	// Opened again, and by many at once.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			again := open(t, nc, authority.JetStreamOptions{})
			if e, err := again.Get(t.Context(), "k"); err != nil || e.Revision != rev {
				t.Errorf("Get after opening again = %v, %v", e, err)
			}
			fresh := open(t, nc, authority.JetStreamOptions{Bucket: "fresh"})
			if _, err := fresh.Get(t.Context(), "k"); !errors.Is(err, authority.ErrNotFound) {
				t.Errorf("Get in a new bucket = %v", err)
			}
		})
	}
	wg.Wait()

	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "foreign"}); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]authority.JetStreamOptions{
		"somebody else's bucket": {Bucket: "foreign"}, "a bad name": {Bucket: "a.b"}, "replicas": {Replicas: 6}, "limit": {Limit: -1},
	} {
		if _, err := authority.OpenJetStream(t.Context(), nc, o); err == nil {
			t.Errorf("OpenJetStream with %s succeeded", name)
		}
	}
}

func TestJetStreamWithoutJetStream(t *testing.T) {
	t.Parallel()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	_, err = authority.OpenJetStream(t.Context(), nc, authority.JetStreamOptions{})
	if err == nil || !strings.Contains(err.Error(), "enable JetStream (nats-server -js) or use ps broker") {
		t.Errorf("OpenJetStream = %v", err)
	}
	nc.Close()
	if _, err := authority.OpenJetStream(t.Context(), nc, authority.JetStreamOptions{}); !errors.Is(err, authority.ErrUnavailable) {
		t.Errorf("OpenJetStream on a closed connection = %v", err)
	}
}

func TestJetStreamLimit(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	nc := b.connect(t)
	a := open(t, nc, authority.JetStreamOptions{Limit: 300 * time.Millisecond})
	l, err := a.Lease(t.Context(), "l", nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	poll(t, "the connection is lost", func() bool { return !nc.IsConnected() })
	for name, f := range calls(a, l) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		for _, ctx := range []context.Context{t.Context(), ctx} {
			start := time.Now()
			if err := f(ctx); !errors.Is(err, authority.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s without a broker = %v, want %v", name, err, authority.ErrUnavailable)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("%s without a broker took %v", name, d)
			}
		}
		cancel()
	}
	b.start()
	if err := l.Renew(t.Context()); err != nil && !errors.Is(err, authority.ErrUnavailable) { // the limit is short
		t.Errorf("Renew after the outage = %v", err)
	}
}

func TestJetStreamClose(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	nc := b.connect(t)
	a := open(t, nc, authority.JetStreamOptions{})
	rev := cas(t, a, authority.Op{Key: "k"})
	busy := watch(t, a, "") // with entries that nobody takes
	for range 2 {
		if err := a.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if e, ok := next(t, busy); ok {
		t.Errorf("after Close the watch delivered %v", e)
	}
	_, get := a.Get(t.Context(), "k")
	_, cas := a.CAS(t.Context(), authority.Op{Key: "k", Expect: rev})
	_, watch := a.Watch(t.Context(), "")
	for _, err := range []error{get, cas, watch} {
		if !errors.Is(err, authority.ErrUnavailable) {
			t.Errorf("after Close a call = %v, want %v", err, authority.ErrUnavailable)
		}
	}
	if !nc.IsConnected() {
		t.Error("Close closed the connection")
	}
	again := open(t, nc, authority.JetStreamOptions{})
	if e, err := again.Get(t.Context(), "k"); err != nil || e.Revision != rev {
		t.Errorf("Get after opening again = %v, %v, want revision %d", e, err, rev)
	}
}
