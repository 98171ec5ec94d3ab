package authoritytest

import (
	"fmt"
	"strconv"
	"sync"

	"tributary/cluster/authority"
)

func testWatch(s *store) {
	b := s.must(op{Key: "b", Value: []byte("b")})
	a := s.must(op{Key: "a", Value: []byte("a")})
	gone := s.must(op{Key: "gone"})
	s.must(op{Key: "gone", Expect: gone, Delete: true})
	b2 := s.must(op{Key: "b", Expect: b, Value: []byte("b2")})
	w := s.watch("")
	w.wants("a", []byte("a"), a) // in the order of revisions
	w.wants("b", []byte("b2"), b2)
	w.wantsMarker()

	c := s.must(op{Key: "c", Value: []byte("c")})
	w.wants("c", []byte("c"), c)
	a2 := s.must(op{Key: "a", Expect: a, Value: []byte("a2")})
	w.wants("a", []byte("a2"), a2)
	d := s.must(op{Key: "a", Expect: a2, Delete: true})
	w.wants("a", nil, d)
	a3 := s.must(op{Key: "a", Value: []byte("a3")})
	w.wants("a", []byte("a3"), a3)
	s.fails(op{Key: "a", Value: []byte("x")}, authority.ErrConflict)
	end := s.must(op{Key: "end"})
	w.wants("end", []byte{}, end)
}

func testWatchPrefix(s *store) {
	in := s.must(op{Key: "nodes.a", Value: []byte("in")})
	s.must(op{Key: "nodesy"})
	s.must(op{Key: "jobs.1"})
	w, narrow, empty := s.watch("nodes."), s.watch("nodes.ab"), s.watch("other.")
	w.wants("nodes.a", []byte("in"), in)
	w.wantsMarker()
	narrow.wantsMarker()
	empty.wantsMarker()

	s.must(op{Key: "nodes"})
	s.must(op{Key: "nodesz"})
	in = s.must(op{Key: "nodes.b", Value: []byte("in")})
	w.wants("nodes.b", []byte("in"), in)
	in = s.must(op{Key: "nodes.abc", Value: []byte("in")})
	w.wants("nodes.abc", []byte("in"), in)
	narrow.wants("nodes.abc", []byte("in"), in)
	in = s.must(op{Key: "other.x", Value: []byte("in")})
	empty.wants("other.x", []byte("in"), in)
}

func testWatchEmpty(s *store) {
	gone := s.must(op{Key: "gone"})
	s.must(op{Key: "gone", Expect: gone, Delete: true})
	w := s.watch("")
	w.wantsMarker()
	rev := s.must(op{Key: "gone", Value: []byte("back")})
	w.wants("gone", []byte("back"), rev)
}

// testSlowWatcher overwrites keys while nobody receives.
func testSlowWatcher(s *store) {
	const keys, writes = 4, 50
	w := s.watch("")
	w.wantsMarker()
	want := map[string]uint64{}
	for range writes {
		for k := range keys {
			key := strconv.Itoa(k)
			want[key] = s.must(op{Key: key, Expect: want[key], Value: []byte("x")})
		}
	}
	once := s.must(op{Key: "once"})
	want["0"] = s.must(op{Key: "0", Expect: want["0"], Delete: true})
	end := s.must(op{Key: "end"})

	got := map[string]uint64{}
	var last uint64
	for e := w.next(); e.Key != "end"; e = w.next() {
		if e.Revision <= last {
			s.Fatalf("revision %d after %d", e.Revision, last)
		}
		last = e.Revision
		got[e.Key] = e.Revision
		if e.Deleted != (e.Revision == want["0"]) {
			s.Errorf("delivered %v", e)
		}
	}
	for key, rev := range want {
		if got[key] != rev {
			s.Errorf("the last revision of %q is %d, delivered was %d", key, rev, got[key])
		}
	}
	if got["once"] != once || last >= end {
		s.Errorf("a key written once was delivered as %d, want %d", got["once"], once)
	}
}

// testSlowStart changes everything before the receiver takes what stood at the
// start: by the Marker it must know of each key all the same.
func testSlowStart(s *store) {
	const keys = 10
	revs := map[string]uint64{}
	for k := range keys {
		key := strconv.Itoa(k)
		revs[key] = s.must(op{Key: key, Value: []byte("old")})
	}
	w := s.watch("")
	for key, rev := range revs {
		revs[key] = s.must(op{Key: key, Expect: rev, Value: []byte("new")})
	}
	got := map[string]uint64{}
	for e := w.next(); !e.Marker(); e = w.next() {
		got[e.Key] = e.Revision
	}
	if len(got) != keys {
		s.Errorf("before the marker came %v, want %d keys", got, keys)
	}
	rev := s.must(op{Key: "end"})
	for e := w.next(); e.Revision != rev; e = w.next() {
		got[e.Key] = e.Revision
	}
	for key, rev := range revs {
		if got[key] != rev {
			s.Errorf("the last revision of %q is %d, delivered was %d", key, rev, got[key])
		}
	}
}

func testWatchers(s *store) {
	const watchers = 5
	var ws []*watcher
	for range watchers {
		w := s.watch("")
		w.wantsMarker()
		ws = append(ws, w)
	}
	for i := range 20 {
		key, value := "k."+strconv.Itoa(i), fmt.Append(nil, i)
		rev := s.must(op{Key: key, Value: value})
		for _, w := range ws {
			w.wants(key, value, rev)
		}
	}
}

// testWatchRace opens watches while keys are created. Each watch must see each
// key once, before or after its Marker, in the order of revisions.
func testWatchRace(s *store) {
	const writers, each = 3, 20
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for n := range each {
				if _, err := s.a.CAS(s.ctx, op{Key: fmt.Sprintf("k.%d.%d", i, n)}); err != nil {
					s.Errorf("CAS = %v", err)
				}
			}
		})
	}
	defer wg.Wait()
	for range 4 {
		w := s.watch("k.")
		seen, markers := map[string]bool{}, 0
		var last uint64
		for len(seen) < writers*each || markers == 0 {
			e := w.next()
			if e.Marker() {
				markers++
				continue
			}
			if e.Revision <= last || seen[e.Key] || e.Deleted {
				s.Fatalf("delivered %v after revision %d, seen before: %v", e, last, seen[e.Key])
			}
			seen[e.Key], last = true, e.Revision
		}
		if markers != 1 {
			s.Errorf("%d markers", markers)
		}
		w.cancel()
	}
}

func testWatchEnds(s *store) {
	s.must(op{Key: "a"})
	s.must(op{Key: "b"})
	idle, busy := s.watch(""), s.watch("")
	idle.next()
	idle.next()
	idle.wantsMarker()
	busy.next() // and leave the rest
	idle.cancel()
	busy.cancel()
	idle.wantsClosed()
	busy.wantsClosed()
}
