package authoritytest

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"tributary/cluster/authority"
)

const ttl = authority.MinTTL

// testTakeOver is the batch of docs/consistency.md, C7: the old owner's lease is
// overwritten at its last seen revision and the shards move, or neither.
func testTakeOver(s *store) {
	l, err := s.a.Lease(s.ctx, "nodes.a", []byte("a"), 10*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	seen := l.Revision()
	s0 := s.must(op{Key: "shards.0", Value: []byte("a")})
	s1 := s.must(op{Key: "shards.1", Value: []byte("a")})
	if err := l.Renew(s.ctx); err != nil {
		s.Fatal(err)
	}
	move := func(expect uint64) error {
		_, err := s.a.Batch(s.ctx, []op{
			{Key: "nodes.a", Expect: expect, Value: []byte("revoked")},
			{Key: "shards.0", Expect: s0, Value: []byte("b")},
			{Key: "shards.1", Expect: s1, Value: []byte("b")},
		})
		return err
	}
	if err := move(seen); !errors.Is(err, authority.ErrConflict) {
		s.Errorf("take-over of a renewed lease = %v, want %v", err, authority.ErrConflict)
	}
	s.has("shards.0", "a", s0)
	if err := move(l.Revision()); err != nil {
		s.Fatalf("take-over = %v", err)
	}
	if err := l.Renew(s.ctx); !errors.Is(err, authority.ErrLeaseLost) {
		s.Errorf("Renew of a revoked lease = %v, want %v", err, authority.ErrLeaseLost)
	}
	if e, err := s.a.Get(s.ctx, "shards.1"); err != nil || string(e.Value) != "b" {
		s.Errorf("Get = %v, %v, want b", e, err)
	}
}

// expires waits for the end of key ("" for any), which must not come before
// earliest.
func (w *watcher) expires(key string, earliest time.Time) uint64 {
	w.s.Helper()
	e := w.next()
	if key != "" && e.Key != key || !e.Deleted || e.Value != nil {
		w.s.Fatalf("watch delivered %v, want the end of %q", e, key)
	}
	if early := time.Until(earliest); early > 0 {
		w.s.Errorf("%q expired %v too early", key, early)
	}
	return e.Revision
}

func testExpiry(s *store) {
	w := s.watch("")
	w.wantsMarker()
	stays := s.must(op{Key: "stays", Value: []byte("x")})
	w.wants("stays", []byte("x"), stays)
	start := time.Now()
	rev := s.must(op{Key: "goes", Value: []byte("x"), TTL: ttl})
	w.wants("goes", []byte("x"), rev)
	batch := time.Now()
	last := s.mustBatch(op{Key: "goes.too", Value: []byte("x"), TTL: ttl + time.Millisecond}, op{Key: "stays", Expect: stays, Value: []byte("y")})
	w.wants("goes.too", []byte("x"), last-1)
	w.wants("stays", []byte("y"), last)

	gone := w.expires("goes", start.Add(ttl))
	if gone <= last {
		s.Errorf("expired with revision %d, not above %d", gone, last)
	}
	s.hasNot("goes")
	s.fails(op{Key: "goes", Expect: rev, Value: []byte("late")}, authority.ErrConflict)
	s.fails(op{Key: "goes", Expect: rev, Delete: true}, authority.ErrConflict)
	// Rounded up to whole seconds.
	w.expires("goes.too", batch.Add(2*time.Second))
	again := s.must(op{Key: "goes", Value: []byte("again")})
	if again <= gone {
		s.Errorf("created again at %d, not above the end at %d", again, gone)
	}
	w.wants("goes", []byte("again"), again)
	s.has("goes", "again", again)
	s.has("stays", "y", last)
	list, err := s.a.List(s.ctx, "")
	if err != nil || len(list) != 2 {
		s.Errorf("List = %v, %v, want two entries", list, err)
	}
}

func testExpiryAnew(s *store) {
	w := s.watch("")
	w.wantsMarker()
	short := s.must(op{Key: "short", TTL: ttl})
	w.wants("short", []byte{}, short)
	kept := s.must(op{Key: "kept", TTL: ttl})
	w.wants("kept", []byte{}, kept)
	long := s.must(op{Key: "long", TTL: ttl})
	w.wants("long", []byte{}, long)
	kept = s.must(op{Key: "kept", Expect: kept, Value: []byte("for ever")})
	w.wants("kept", []byte("for ever"), kept)
	start := time.Now()
	long = s.must(op{Key: "long", Expect: long, TTL: 3 * ttl})
	w.wants("long", []byte{}, long)
	w.expires("short", start)
	w.expires("long", start.Add(3*ttl))
	s.has("kept", "for ever", kept)
}

func testLease(s *store) {
	l, err := s.a.Lease(s.ctx, "nodes.a", []byte("addr"), 10*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	first := l.Revision()
	s.has("nodes.a", "addr", first)
	if _, err := s.a.Lease(s.ctx, "nodes.a", []byte("addr"), 10*time.Second); !errors.Is(err, authority.ErrConflict) {
		s.Errorf("a second lease with the same value = %v, want %v", err, authority.ErrConflict)
	}
	s.fails(op{Key: "nodes.a", Value: []byte("x")}, authority.ErrConflict)
	other, err := s.a.Lease(s.ctx, "nodes.b", []byte("addr"), 10*time.Second)
	if err != nil {
		s.Fatalf("a lease of another key = %v", err)
	}
	if other.Revision() <= first {
		s.Errorf("epochs %d, then %d", first, other.Revision())
	}
	for range 3 {
		old := l.Revision()
		if err := l.Renew(s.ctx); err != nil {
			s.Fatalf("Renew = %v", err)
		}
		if l.Revision() <= old {
			s.Errorf("renewed from %d to %d", old, l.Revision())
		}
		s.has("nodes.a", "addr", l.Revision())
	}
	if err := other.Renew(s.ctx); err != nil {
		s.Errorf("Renew = %v", err)
	}
	s.must(op{Key: "taken"})
	if _, err := s.a.Lease(s.ctx, "taken", nil, 10*time.Second); !errors.Is(err, authority.ErrConflict) {
		s.Errorf("a lease of a plain key = %v, want %v", err, authority.ErrConflict)
	}
}

func testLeaseRace(s *store) {
	leases := make([]authority.Lease, racers)
	won := s.race(racers, func(i int) (err error) {
		leases[i], err = s.a.Lease(s.ctx, "coordinator", []byte("same"), 10*time.Second)
		return err
	})
	if won != 1 {
		s.Errorf("%d of %d hold the lease", won, racers)
	}
	for _, l := range leases {
		if l != nil {
			s.has("coordinator", "same", l.Revision())
		}
	}
}

func testLeaseRenew(s *store) {
	const term = 2 * ttl
	w := s.watch("")
	w.wantsMarker()
	l, err := s.a.Lease(s.ctx, "l", []byte("v"), term)
	if err != nil {
		s.Fatal(err)
	}
	w.wants("l", []byte("v"), l.Revision())
	// More than one and a half terms, with nothing else from the watch.
	tick := time.NewTicker(term / 3)
	defer tick.Stop()
	var last time.Time
	for range 5 {
		<-tick.C
		last = time.Now()
		if err := l.Renew(s.ctx); err != nil {
			s.Fatalf("Renew = %v", err)
		}
		w.wants("l", []byte("v"), l.Revision())
	}
	// The renewals carry the time to live: without them the key ends.
	w.expires("l", last.Add(term))
}

func testLeaseExpires(s *store) {
	w := s.watch("")
	w.wantsMarker()
	start := time.Now()
	l, err := s.a.Lease(s.ctx, "l", []byte("old"), ttl)
	if err != nil {
		s.Fatal(err)
	}
	idle, err := s.a.Lease(s.ctx, "idle", nil, ttl)
	if err != nil {
		s.Fatal(err)
	}
	w.wants("l", []byte("old"), l.Revision())
	w.wants("idle", []byte{}, idle.Revision())
	// Which of the two ends first is left open.
	end := max(w.expires("", start.Add(ttl)), w.expires("", start.Add(ttl)))
	next, err := s.a.Lease(s.ctx, "l", []byte("new"), 10*time.Second)
	if err != nil {
		s.Fatalf("a lease after the end of another = %v", err)
	}
	if next.Revision() <= end {
		s.Errorf("epoch %d, not above the end at %d", next.Revision(), end)
	}
	for range 2 {
		if err := l.Renew(s.ctx); !errors.Is(err, authority.ErrLeaseLost) {
			s.Errorf("Renew of an expired lease = %v, want %v", err, authority.ErrLeaseLost)
		}
	}
	s.has("l", "new", next.Revision())
	if err := idle.Release(s.ctx); err != nil {
		s.Errorf("Release of an expired lease = %v", err)
	}
	if err := next.Renew(s.ctx); err != nil {
		s.Errorf("Renew = %v", err)
	}
}

func testLeaseRevoked(s *store) {
	for i, f := range []func(l authority.Lease) error{
		func(l authority.Lease) error { return l.Renew(s.ctx) },
		func(l authority.Lease) error { return l.Release(s.ctx) },
	} {
		key := "nodes." + strconv.Itoa(i)
		l, err := s.a.Lease(s.ctx, key, []byte("mine"), 10*time.Second)
		if err != nil {
			s.Fatal(err)
		}
		rev := s.must(op{Key: key, Expect: l.Revision(), Value: []byte("mine")}) // the value is no proof
		if err := f(l); !errors.Is(err, authority.ErrLeaseLost) {
			s.Errorf("call %d on an overwritten lease = %v, want %v", i, err, authority.ErrLeaseLost)
		}
		if err := l.Renew(s.ctx); !errors.Is(err, authority.ErrLeaseLost) {
			s.Errorf("Renew of a lost lease = %v, want %v", err, authority.ErrLeaseLost)
		}
		s.has(key, "mine", rev)
	}
}

func testLeaseRelease(s *store) {
	w := s.watch("")
	w.wantsMarker()
	l, err := s.a.Lease(s.ctx, "l", []byte("v"), 10*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	w.wants("l", []byte("v"), l.Revision())
	if err := l.Renew(s.ctx); err != nil {
		s.Fatal(err)
	}
	w.wants("l", []byte("v"), l.Revision())
	for range 2 {
		if err := l.Release(s.ctx); err != nil {
			s.Errorf("Release = %v", err)
		}
	}
	s.hasNot("l")
	if e := w.next(); e.Key != "l" || !e.Deleted || e.Revision <= l.Revision() {
		s.Errorf("watch delivered %v, want the release after %d", e, l.Revision())
	}
	if err := l.Renew(s.ctx); !errors.Is(err, authority.ErrLeaseLost) {
		s.Errorf("Renew of a released lease = %v, want %v", err, authority.ErrLeaseLost)
	}
	next, err := s.a.Lease(s.ctx, "l", []byte("w"), 10*time.Second)
	if err != nil || next.Revision() <= l.Revision() {
		s.Fatalf("a lease after the release = %v", err)
	}
	if err := l.Release(s.ctx); err != nil {
		s.Errorf("Release again = %v", err)
	}
	s.has("l", "w", next.Revision())
}

func testLeaseBad(s *store) {
	for _, d := range []time.Duration{0, -1, authority.MinTTL - 1} {
		if _, err := s.a.Lease(s.ctx, "l", nil, d); !errors.Is(err, authority.ErrBadOp) {
			s.Errorf("Lease for %v = %v, want %v", d, err, authority.ErrBadOp)
		}
	}
	s.hasNot("l")
	value := bytes.Repeat([]byte("v"), 10<<10)
	l, err := s.a.Lease(s.ctx, "l", value, 10*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	if err := l.Renew(s.ctx); err != nil {
		s.Fatal(err)
	}
	s.has("l", string(value), l.Revision())
}
