// Package authoritytest says what every implementation of
// [authority.Authority] must do.
package authoritytest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"tributary/cluster/authority"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// An Env runs one test, for example inside a bubble of testing/synctest, or in
// parallel with the others.
type Env func(t *testing.T, test func(t *testing.T))

// Run tests an implementation. open returns a new and empty store that nobody
// else uses; env may be nil.
func Run(t *testing.T, open func(t *testing.T) authority.Authority, env Env) {
	if env == nil {
		env = func(t *testing.T, test func(t *testing.T)) { test(t) }
	}
	for _, c := range []struct {
		name string
		test func(s *store)
	}{
		{"reads what was written", testGet},
		{"compares before it sets", testCompare},
		{"never repeats a revision", testRevisions},
		{"tells an empty value from none", testEmpty},
		{"takes every legal key", testKeys},
		{"refuses bad keys", testBadKeys},
		{"refuses bad operations", testBadOps},
		{"keeps values to itself", testOwnership},
		{"lets one of many create", testCreateRace},
		{"lets one of many update", testUpdateRace},
		{"loses no increment", testIncrements},
		{"changes nothing once the context has ended", testEndedContext},
		{"applies a batch in order", testBatch},
		{"applies a batch or nothing", testBatchConflict},
		{"recreates keys in a batch", testBatchRecreate},
		{"takes a batch of the largest size", testLargeBatch},
		{"lets one of many batches through", testBatchRace},
		{"moves ownership in one batch", testTakeOver},
		{"lists by prefix, sorted", testList},
		{"watches what exists, then changes", testWatch},
		{"watches a prefix", testWatchPrefix},
		{"marks the start of an empty watch", testWatchEmpty},
		{"keeps the last revisions for a slow watcher", testSlowWatcher},
		{"keeps the start complete for a slow watcher", testSlowStart},
		{"shows all watchers the same", testWatchers},
		{"misses nothing while others write", testWatchRace},
		{"ends a watch with its context", testWatchEnds},
		{"forgets a key after its time to live", testExpiry},
		{"starts the time to live anew with each change", testExpiryAnew},
		{"leases to one holder", testLease},
		{"leases to one of many", testLeaseRace},
		{"keeps a lease that is renewed", testLeaseRenew},
		{"loses a lease that is not renewed", testLeaseExpires},
		{"loses a lease that was overwritten", testLeaseRevoked},
		{"releases a lease", testLeaseRelease},
		{"refuses bad leases", testLeaseBad},
	} {
		t.Run(c.name, func(t *testing.T) {
			env(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
				defer cancel()
				c.test(&store{T: t, ctx: ctx, a: open(t)})
			})
		})
	}
}

// store is the authority under test, with what tests do most often.
type store struct {
	*testing.T
	ctx context.Context
	a   authority.Authority
}

// must makes one change.
func (s *store) must(op authority.Op) uint64 {
	s.Helper()
	rev, err := s.a.CAS(s.ctx, op)
	if err != nil {
		s.Fatalf("CAS(%v) = %v", show(op), err)
	}
	return rev
}

func (s *store) mustBatch(ops ...authority.Op) uint64 {
	s.Helper()
	rev, err := s.a.Batch(s.ctx, ops)
	if err != nil {
		s.Fatalf("Batch of %d, first %v = %v", len(ops), show(ops[0]), err)
	}
	return rev
}

// fails makes a change that must fail with want.
func (s *store) fails(op authority.Op, want error) {
	s.Helper()
	rev, err := s.a.CAS(s.ctx, op)
	if !errors.Is(err, want) || rev != 0 {
		s.Errorf("CAS(%v) = %d, %v, want 0, %v", show(op), rev, err, want)
	}
}

func show(op authority.Op) string {
	if op.Delete {
		return fmt.Sprintf("delete %q at %d", op.Key, op.Expect)
	}
	return fmt.Sprintf("%q=%.20q at %d, ttl %v", op.Key, op.Value, op.Expect, op.TTL)
}

// has checks the stored value and revision of a key.
func (s *store) has(key, value string, rev uint64) {
	s.Helper()
	e, err := s.a.Get(s.ctx, key)
	if err != nil || e.Key != key || string(e.Value) != value || e.Value == nil || e.Revision != rev || e.Deleted {
		s.Errorf("Get(%q) = %v, %v, want %q at %d", key, e, err, value, rev)
	}
}

// hasNot checks that a key does not exist.
func (s *store) hasNot(key string) {
	s.Helper()
	if e, err := s.a.Get(s.ctx, key); !errors.Is(err, authority.ErrNotFound) {
		s.Errorf("Get(%q) = %v, %v, want %v", key, e, err, authority.ErrNotFound)
	}
}

// watcher is a watch under test.
type watcher struct {
	s      *store
	ch     <-chan authority.Entry
	cancel context.CancelFunc
}

func (s *store) watch(prefix string) *watcher {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	ch, err := s.a.Watch(ctx, prefix)
	if err != nil {
		cancel()
		s.Fatalf("Watch(%q) = %v", prefix, err)
	}
	w := &watcher{s, ch, cancel}
	s.Cleanup(cancel)
	return w
}

// next waits for an entry.
func (w *watcher) next() authority.Entry {
	w.s.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case e, ok := <-w.ch:
		if !ok {
			w.s.Fatal("the watch was closed")
		}
		return e
	case <-timer.C:
		w.s.Fatalf("the watch delivered nothing for %v", patience)
	}
	panic("unreachable")
}

// wants waits for an entry and compares it. A nil value means deleted.
func (w *watcher) wants(key string, value []byte, rev uint64) {
	w.s.Helper()
	e := w.next()
	if e.Key != key || string(e.Value) != string(value) || e.Deleted != (value == nil) || (e.Value == nil) != (value == nil) || e.Revision != rev {
		w.s.Fatalf("watch delivered %v, want %q=%q at %d", e, key, value, rev)
	}
}

func (w *watcher) wantsMarker() {
	w.s.Helper()
	if e := w.next(); !e.Marker() || e.Revision != 0 || e.Value != nil || e.Deleted {
		w.s.Fatalf("watch delivered %v, want the marker", e)
	}
}

// wantsClosed waits until the channel is closed.
func (w *watcher) wantsClosed() {
	w.s.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case _, ok := <-w.ch:
			if !ok {
				return
			}
		case <-timer.C:
			w.s.Fatalf("the watch was not closed within %v", patience)
		}
	}
}
