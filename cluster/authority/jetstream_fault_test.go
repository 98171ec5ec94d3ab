package authority_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"tributary/cluster/authority"
)

// through connects by way of a new proxy.
func (b *testBroker) through(t *testing.T) (*proxy, *nats.Conn) {
	t.Helper()
	p := startProxy(t, b.b.URL())
	nc, err := nats.Connect(p.url(), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1), nats.IgnoreDiscoveredServers(),
		nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return p, nc
}

// poll waits until f is true.
func poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("waited %v in vain: %s", patience, what)
		}
	}
}

func TestJetStreamRestart(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	a := open(t, b.connect(t), authority.JetStreamOptions{Limit: patience})
	r1 := cas(t, a, authority.Op{Key: "k", Value: []byte("1")})
	w := watch(t, a, "")
	slow := watch(t, a, "") // takes nothing until the end
	wants(t, w, "k", r1, false)
	wants(t, w, "", 0, false)
	l, err := a.Lease(t.Context(), "l", []byte("v"), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, w, "l", l.Revision(), false)
	rev := r1
	for range 3 {
		b.stop()
		// A call that begins without a broker ends well once it is back.
		renewed := make(chan error, 1)
		go func() { renewed <- l.Renew(t.Context()) }()
		b.start()
		if err := <-renewed; err != nil {
			t.Fatalf("Renew during a restart = %v", err)
		}
		if e, err := a.Get(t.Context(), "k"); err != nil || e.Revision != rev {
			t.Fatalf("Get after a restart = %v, %v, want revision %d", e, err, rev)
		}
		wants(t, w, "l", l.Revision(), false)
		next := cas(t, a, authority.Op{Key: "k", Value: []byte("x"), Expect: rev})
		if next <= rev {
			t.Errorf("revision %d after the restart, %d before", next, rev)
		}
		rev = next
		wants(t, w, "k", rev, false)
	}
	last, err := a.Batch(t.Context(), []authority.Op{{Key: "k", Expect: rev, Delete: true}, {Key: "end"}})
	if err != nil {
		t.Fatal(err)
	}
	wants(t, w, "k", last-1, true)
	wants(t, w, "end", last, false)
	wants(t, slow, "k", r1, false)
	wants(t, slow, "", 0, false)
	seen := map[string]authority.Entry{}
	for seen["end"].Revision == 0 {
		e, ok := next(t, slow)
		if !ok || e.Marker() {
			t.Fatalf("the slow watch delivered %v (open: %v)", e, ok)
		}
		seen[e.Key] = e
	}
	if seen["k"].Revision != last-1 || !seen["k"].Deleted || seen["l"].Revision != l.Revision() {
		t.Errorf("the slow watch delivered last %v", seen)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Errorf("Release = %v", err)
	}
}

// TestJetStreamExpiresWhileDown: what expires while nobody runs is gone
// afterwards, and watches hear of it.
func TestJetStreamExpiresWhileDown(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	a := open(t, b.connect(t), authority.JetStreamOptions{Limit: patience})
	w := watch(t, a, "")
	wants(t, w, "", 0, false)
	l, err := a.Lease(t.Context(), "l", nil, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	end := time.NewTimer(1500 * time.Millisecond)
	wants(t, w, "l", l.Revision(), false)
	b.stop()
	<-end.C
	b.start()
	if e, ok := next(t, w); !ok || e.Key != "l" || !e.Deleted || e.Revision < l.Revision() {
		t.Errorf("watch delivered %v, want the end of l after %d", e, l.Revision())
	}
	if err := l.Renew(t.Context()); !errors.Is(err, authority.ErrLeaseLost) {
		t.Errorf("Renew = %v, want %v", err, authority.ErrLeaseLost)
	}
}

// TestJetStreamWatchCut changes keys while a watch has no connection.
func TestJetStreamWatchCut(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	p, nc := b.through(t)
	o := authority.JetStreamOptions{Limit: patience}.WithMarkerTTL(time.Second)
	cutOff, other := open(t, nc, o), open(t, b.connect(t), o)
	revs := map[string]uint64{}
	for _, key := range []string{"stays", "changes", "deleted", "returns"} {
		revs[key] = cas(t, other, authority.Op{Key: key})
	}
	w := watch(t, cutOff, "")
	for range revs {
		next(t, w)
	}
	wants(t, w, "", 0, false)

	p.refuse.Store(true)
	p.cut()
	deleted := cas(t, other, authority.Op{Key: "deleted", Expect: revs["deleted"], Delete: true})
	gone := cas(t, other, authority.Op{Key: "returns", Expect: revs["returns"], Delete: true})
	changes := cas(t, other, authority.Op{Key: "changes", Expect: revs["changes"]})
	returns := cas(t, other, authority.Op{Key: "returns"})
	created := cas(t, other, authority.Op{Key: "created"})
	// Wait until the store has forgotten even that "deleted" was deleted.
	js, err := jetstream.New(b.connect(t))
	if err != nil {
		t.Fatal(err)
	}
	poll(t, "the deletion is forgotten", func() bool {
		s, err := js.Stream(t.Context(), "KV_tributary")
		return err == nil && s.CachedInfo().State.Msgs == 4
	})
	p.refuse.Store(false)
	wants(t, w, "changes", changes, false)
	wants(t, w, "returns", returns, false)
	wants(t, w, "created", created, false)
	wants(t, w, "deleted", created, true)
	if deleted >= gone || gone >= returns {
		t.Errorf("revisions %d, %d, %d", deleted, gone, returns)
	}
	end := cas(t, other, authority.Op{Key: "end"})
	wants(t, w, "end", end, false)
	// A key whose deletion has been forgotten can be created, and not changed
	// at that revision.
	if _, err := other.CAS(t.Context(), authority.Op{Key: "deleted", Expect: deleted}); !errors.Is(err, authority.ErrConflict) {
		t.Errorf("CAS at a forgotten revision = %v, want %v", err, authority.ErrConflict)
	}
	if rev := cas(t, other, authority.Op{Key: "deleted"}); rev <= end {
		t.Errorf("created again at %d, not above %d", rev, end)
	}
}

// calls are all ways to ask, with a lease that was taken earlier.
func calls(a authority.Authority, l authority.Lease) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Get": func(ctx context.Context) error { _, err := a.Get(ctx, "k"); return err },
		"CAS": func(ctx context.Context) error { _, err := a.CAS(ctx, authority.Op{Key: "new"}); return err },
		"Batch": func(ctx context.Context) error {
			_, err := a.Batch(ctx, []authority.Op{{Key: "x"}, {Key: "y"}})
			return err
		},
		"List":    func(ctx context.Context) error { _, err := a.List(ctx, ""); return err },
		"Watch":   func(ctx context.Context) error { _, err := a.Watch(ctx, ""); return err },
		"Lease":   func(ctx context.Context) error { _, err := a.Lease(ctx, "m", nil, time.Second); return err },
		"Renew":   l.Renew,
		"Release": l.Release,
	}
}

func TestJetStreamStoreLost(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, b *testBroker){
		"empty": func(t *testing.T, b *testBroker) {
			b.stop()
			b.wipe()
			b.start()
		},
		"another": func(t *testing.T, b *testBroker) {
			b.stop()
			b.wipe()
			b.start()
			open(t, b.connect(t), authority.JetStreamOptions{})
		},
		"deleted": func(t *testing.T, b *testBroker) { // without a restart
			js, err := jetstream.New(b.connect(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := js.DeleteStream(t.Context(), "KV_tributary"); err != nil {
				t.Fatal(err)
			}
			open(t, b.connect(t), authority.JetStreamOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startBroker(t)
			a := open(t, b.connect(t), authority.JetStreamOptions{Limit: patience})
			rev := cas(t, a, authority.Op{Key: "k"})
			l, err := a.Lease(t.Context(), "l", nil, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			w := watch(t, a, "k")
			wants(t, w, "k", rev, false)
			wants(t, w, "", 0, false)
			lose(t, b)
			for name, f := range calls(a, l) {
				if err := f(t.Context()); !errors.Is(err, authority.ErrStoreLost) {
					t.Errorf("%s = %v, want %v", name, err, authority.ErrStoreLost)
				}
			}
			if e, ok := next(t, w); ok {
				t.Errorf("watch delivered %v, want its end", e)
			}
			// Nothing of all this was written to the new store.
			fresh := open(t, b.connect(t), authority.JetStreamOptions{})
			if list, err := fresh.List(t.Context(), ""); err != nil || len(list) != 0 {
				t.Errorf("the new store holds %v, %v", list, err)
			}
		})
	}
}

func TestJetStreamOldCopy(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	a := open(t, b.connect(t), authority.JetStreamOptions{Limit: patience})
	rev := cas(t, a, authority.Op{Key: "k"})
	b.stop()
	store, old := filepath.Join(b.o.StoreDir, "jetstream"), t.TempDir()
	if err := os.CopyFS(old, os.DirFS(store)); err != nil {
		t.Fatal(err)
	}
	b.start()
	rev = cas(t, a, authority.Op{Key: "k", Expect: rev})
	w := watch(t, a, "")
	wants(t, w, "k", rev, false)
	wants(t, w, "", 0, false)
	b.stop()
	b.wipe()
	if err := os.CopyFS(store, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	b.start()
	if _, err := a.CAS(t.Context(), authority.Op{Key: "k", Expect: rev}); !errors.Is(err, authority.ErrStoreLost) {
		t.Errorf("CAS in an old copy = %v, want %v", err, authority.ErrStoreLost)
	}
	if _, err := a.CAS(t.Context(), authority.Op{Key: "new"}); !errors.Is(err, authority.ErrStoreLost) {
		t.Errorf("CAS in an old copy = %v, want %v", err, authority.ErrStoreLost)
	}
	if e, ok := next(t, w); ok {
		t.Errorf("watch delivered %v, want its end", e)
	}
}

// loseRequest loses the next write on its way to the server.
func (p *proxy) loseRequest() {
	p.set(func(toServer bool, b []byte) bool {
		if toServer && bytes.Contains(b, []byte("Tributary-Write")) {
			p.set(nil)
			return false
		}
		return true
	})
}

// loseAnswer loses the answer to the next write, after meanwhile has returned.
func (p *proxy) loseAnswer(meanwhile func()) {
	p.set(func(toServer bool, b []byte) bool {
		if !toServer && bytes.Contains(b, []byte(`"seq":`)) && bytes.Contains(b, []byte(`{"stream":"KV_`)) {
			p.set(nil)
			meanwhile()
			return false
		}
		return true
	})
}

// TestJetStreamLostMessages loses one message of every kind of write. The call
// itself must find out what happened.
func TestJetStreamLostMessages(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	p, nc := b.through(t)
	a := open(t, nc, authority.JetStreamOptions{Limit: patience})
	for name, lose := range map[string]func(){"request": p.loseRequest, "answer": func() { p.loseAnswer(func() {}) }} {
		lose()
		rev := cas(t, a, authority.Op{Key: "k", Value: []byte("1")})
		if e, err := a.Get(t.Context(), "k"); err != nil || e.Revision != rev {
			t.Errorf("lost %s of a creation: returned revision %d, stored %v, %v", name, rev, e, err)
		}
		lose()
		last, err := a.Batch(t.Context(), []authority.Op{{Key: "k", Expect: rev, Value: []byte("2")}, {Key: "new"}, {Key: "newer"}})
		if err != nil {
			t.Errorf("lost %s of a batch: %v", name, err)
		}
		for i, key := range []string{"k", "new", "newer"} {
			if e, err := a.Get(t.Context(), key); err != nil || e.Revision != last-2+uint64(i) {
				t.Errorf("lost %s of a batch: returned revision %d, stored %v, %v", name, last, e, err)
			}
		}
		lose()
		gone := cas(t, a, authority.Op{Key: "k", Expect: last - 2, Delete: true})
		if gone != last+1 {
			t.Errorf("lost %s of a deletion: revision %d, want %d", name, gone, last+1)
		}
		lose()
		l, err := a.Lease(t.Context(), "l", nil, time.Minute)
		if err != nil {
			t.Fatalf("lost %s of a lease: %v", name, err)
		}
		lose()
		if err := l.Renew(t.Context()); err != nil {
			t.Errorf("lost %s of a renewal: %v", name, err)
		}
		if e, err := a.Get(t.Context(), "l"); err != nil || e.Revision != l.Revision() {
			t.Errorf("lost %s of a renewal: revision %d, stored %v, %v", name, l.Revision(), e, err)
		}
		lose()
		if err := l.Release(t.Context()); err != nil {
			t.Errorf("lost %s of a release: %v", name, err)
		}
		cas(t, a, authority.Op{Key: "new", Expect: last - 1, Delete: true})
		cas(t, a, authority.Op{Key: "newer", Expect: last, Delete: true})
	}
}

// TestJetStreamAmbiguous loses an answer and leaves no way to find out.
func TestJetStreamAmbiguous(t *testing.T) {
	t.Parallel()
	b := startBroker(t)
	p, nc := b.through(t)
	a, other := open(t, nc, authority.JetStreamOptions{}), open(t, b.connect(t), authority.JetStreamOptions{Limit: patience})
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	l, err := a.Lease(t.Context(), "l", nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}

	// Somebody overwrites what may have been written.
	p.loseAnswer(func() {
		e, err := other.Get(t.Context(), "k")
		if err != nil {
			t.Errorf("Get = %v", err)
		}
		if _, err := other.CAS(t.Context(), authority.Op{Key: "k", Expect: e.Revision, Value: []byte("other")}); err != nil {
			t.Errorf("CAS = %v", err)
		}
	})
	if _, err := a.CAS(t.Context(), authority.Op{Key: "k", Value: []byte("mine")}); !errors.Is(err, authority.ErrAmbiguous) || errors.Is(err, authority.ErrConflict) {
		t.Errorf("CAS that was overwritten = %v, want %v", err, authority.ErrAmbiguous)
	}
	// Somebody deletes it: it must not be created a second time.
	p.loseAnswer(func() {
		e, err := other.Get(t.Context(), "d")
		if err != nil {
			t.Errorf("Get = %v", err)
		}
		if _, err := other.CAS(t.Context(), authority.Op{Key: "d", Expect: e.Revision, Delete: true}); err != nil {
			t.Errorf("CAS = %v", err)
		}
	})
	if _, err := a.CAS(t.Context(), authority.Op{Key: "d"}); !errors.Is(err, authority.ErrAmbiguous) {
		t.Errorf("CAS whose key was deleted = %v, want %v", err, authority.ErrAmbiguous)
	}
	if e, err := other.Get(t.Context(), "d"); !errors.Is(err, authority.ErrNotFound) {
		t.Errorf("Get of the deleted key = %v, %v", e, err)
	}

	// The broker stops between the change and its answer.
	for name, f := range map[string]func(context.Context) error{
		"CAS": func(ctx context.Context) error {
			_, err := a.CAS(ctx, authority.Op{Key: "c", Value: []byte("mine")})
			return err
		},
		"Batch": func(ctx context.Context) error {
			_, err := a.Batch(ctx, []authority.Op{{Key: "x"}, {Key: "y"}})
			return err
		},
		"Renew": l.Renew,
	} {
		p.loseAnswer(b.stop)
		if err := f(short()); !errors.Is(err, authority.ErrAmbiguous) {
			t.Errorf("%s = %v, want %v", name, err, authority.ErrAmbiguous)
		}
		b.start()
	}
	for _, key := range []string{"c", "x", "y"} { // they did happen
		if e, err := other.Get(t.Context(), key); err != nil {
			t.Errorf("Get(%q) = %v, %v", key, e, err)
		}
	}
	// A lease finds out by itself.
	old := l.Revision()
	if err := l.Renew(t.Context()); err != nil || l.Revision() <= old {
		t.Errorf("Renew after an ambiguous one = %v, revision %d after %d", err, l.Revision(), old)
	}
}
