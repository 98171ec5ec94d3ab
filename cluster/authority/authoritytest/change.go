package authoritytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tributary/cluster/authority"
)

type op = authority.Op

func testGet(s *store) {
	s.hasNot("nodes.a")
	r1 := s.must(op{Key: "nodes.a", Value: []byte("one")})
	s.has("nodes.a", "one", r1)
	r2 := s.must(op{Key: "nodes.a", Value: []byte("two"), Expect: r1})
	s.has("nodes.a", "two", r2)
	s.hasNot("nodes")
	s.hasNot("nodes.a.b")
	r3 := s.must(op{Key: "nodes.a", Expect: r2, Delete: true})
	if r3 <= r2 {
		s.Errorf("the deletion has revision %d, not above %d", r3, r2)
	}
	s.hasNot("nodes.a")
}

func testCompare(s *store) {
	s.fails(op{Key: "k", Value: []byte("x"), Expect: 1}, authority.ErrConflict)
	s.fails(op{Key: "k", Expect: 1, Delete: true}, authority.ErrConflict)
	r1 := s.must(op{Key: "k", Value: []byte("one")})
	s.fails(op{Key: "k", Value: []byte("x")}, authority.ErrConflict)
	s.fails(op{Key: "k", Value: []byte("x"), Expect: r1 + 1}, authority.ErrConflict)
	s.has("k", "one", r1)
	r2 := s.must(op{Key: "k", Value: []byte("two"), Expect: r1})
	s.fails(op{Key: "k", Value: []byte("x"), Expect: r1}, authority.ErrConflict)
	s.fails(op{Key: "k", Expect: r1, Delete: true}, authority.ErrConflict)
	s.has("k", "two", r2)
	s.must(op{Key: "k", Expect: r2, Delete: true})
	s.fails(op{Key: "k", Value: []byte("x"), Expect: r2}, authority.ErrConflict)
	s.fails(op{Key: "k", Expect: r2, Delete: true}, authority.ErrConflict)
	s.hasNot("k")
}

func testRevisions(s *store) {
	var last uint64
	check := func(what string, rev uint64) {
		s.Helper()
		if rev <= last {
			s.Fatalf("%s has revision %d, not above %d", what, rev, last)
		}
		last = rev
	}
	for i := range 3 {
		a := s.must(op{Key: "a", Value: []byte("x")})
		check("create", a)
		b := s.must(op{Key: "b." + strconv.Itoa(i), Value: []byte("x")})
		check("another key", b)
		a = s.must(op{Key: "a", Value: []byte("x"), Expect: a})
		check("the same value again", a)
		check("delete", s.must(op{Key: "a", Expect: a, Delete: true}))
		check("batch", s.mustBatch(op{Key: "c", Value: []byte("x")}, op{Key: "b." + strconv.Itoa(i), Expect: b, Delete: true}))
		check("delete", s.must(op{Key: "c", Expect: last - 1, Delete: true}))
	}
}

func testEmpty(s *store) {
	w := s.watch("")
	w.wantsMarker()
	r1 := s.must(op{Key: "nil"})
	r2 := s.must(op{Key: "empty", Value: []byte{}})
	s.has("nil", "", r1)
	s.has("empty", "", r2)
	w.wants("nil", []byte{}, r1)
	w.wants("empty", []byte{}, r2)
	list, err := s.a.List(s.ctx, "")
	if err != nil || len(list) != 2 || list[0].Value == nil || list[1].Value == nil {
		s.Errorf("List = %v, %v, want two empty values", list, err)
	}
	s.fails(op{Key: "nil"}, authority.ErrConflict)
	r3 := s.must(op{Key: "nil", Expect: r1, Delete: true})
	w.wants("nil", nil, r3)
}

func testKeys(s *store) {
	for _, key := range []string{
		"a", "A.b.C", "0", "-", "_", "=", "/", "a/b=c-d_e.f", strings.Repeat("k", authority.MaxKey), strings.Repeat("t.", 127) + "t", "KV", "a.KV.b",
	} {
		value := "value of " + key
		rev := s.must(op{Key: key, Value: []byte(value)})
		s.has(key, value, rev)
	}
	binary := make([]byte, 64<<10)
	for i := range binary {
		binary[i] = byte(i * 7)
	}
	rev := s.must(op{Key: "binary", Value: binary})
	s.has("binary", string(binary), rev)
}

func testBadKeys(s *store) {
	for _, key := range []string{
		"", ".", "a.", ".a", "a..b", "a b", "a*", "*", "a.>", ">", "ä", "a\x00", "a\n", "a:b", "$a", strings.Repeat("k", authority.MaxKey+1),
	} {
		if _, err := s.a.Get(s.ctx, key); !errors.Is(err, authority.ErrBadKey) {
			s.Errorf("Get(%q) = %v, want %v", key, err, authority.ErrBadKey)
		}
		s.fails(op{Key: key}, authority.ErrBadKey)
		s.fails(op{Key: key, Expect: 1, Delete: true}, authority.ErrBadKey)
		if _, err := s.a.Batch(s.ctx, []op{{Key: "good"}, {Key: key}}); !errors.Is(err, authority.ErrBadKey) {
			s.Errorf("Batch with %q = %v, want %v", key, err, authority.ErrBadKey)
		}
		if _, err := s.a.Lease(s.ctx, key, nil, time.Second); !errors.Is(err, authority.ErrBadKey) {
			s.Errorf("Lease(%q) = %v, want %v", key, err, authority.ErrBadKey)
		}
		if key == "" || key == "a." {
			continue // legal prefixes
		}
		if _, err := s.a.List(s.ctx, key); !errors.Is(err, authority.ErrBadKey) {
			s.Errorf("List(%q) = %v, want %v", key, err, authority.ErrBadKey)
		}
		if _, err := s.a.Watch(s.ctx, key); !errors.Is(err, authority.ErrBadKey) {
			s.Errorf("Watch(%q) = %v, want %v", key, err, authority.ErrBadKey)
		}
	}
	s.hasNot("good")
}

func testBadOps(s *store) {
	rev := s.must(op{Key: "k", Value: []byte("x")})
	bad := []op{
		{Key: "k", Delete: true},
		{Key: "k", Expect: rev, Delete: true, Value: []byte("x")},
		{Key: "k", Expect: rev, Delete: true, TTL: time.Second},
		{Key: "k", Expect: rev, TTL: -1},
		{Key: "k", Expect: rev, TTL: authority.MinTTL - 1},
	}
	for _, o := range bad {
		s.fails(o, authority.ErrBadOp)
		if _, err := s.a.Batch(s.ctx, []op{{Key: "other"}, o}); !errors.Is(err, authority.ErrBadOp) {
			s.Errorf("Batch with %v = %v, want %v", show(o), err, authority.ErrBadOp)
		}
	}
	long := make([]op, authority.MaxBatch+1)
	for i := range long {
		long[i].Key = "long." + strconv.Itoa(i)
	}
	for name, ops := range map[string][]op{
		"nil": nil, "empty": {}, "too long": long, "one key twice": {{Key: "a"}, {Key: "b"}, {Key: "a"}},
	} {
		if rev, err := s.a.Batch(s.ctx, ops); !errors.Is(err, authority.ErrBadOp) || rev != 0 {
			s.Errorf("Batch, %s = %d, %v, want 0, %v", name, rev, err, authority.ErrBadOp)
		}
	}
	s.has("k", "x", rev)
	if list, err := s.a.List(s.ctx, ""); err != nil || len(list) != 1 {
		s.Errorf("List = %v, %v, want only k", list, err)
	}
}

func testOwnership(s *store) {
	w1, w2 := s.watch(""), s.watch("")
	w1.wantsMarker()
	w2.wantsMarker()
	scribble := func(b []byte) {
		for i := range b {
			b[i] = '#'
		}
	}
	v := []byte("value")
	rev := s.must(op{Key: "k", Value: v})
	if string(v) != "value" {
		s.Errorf("CAS changed its argument to %q", v)
	}
	scribble(v)
	s.has("k", "value", rev)

	e := w1.next()
	scribble(e.Value)
	w2.wants("k", []byte("value"), rev)
	e, err := s.a.Get(s.ctx, "k")
	if err != nil {
		s.Fatal(err)
	}
	scribble(e.Value)
	list, err := s.a.List(s.ctx, "")
	if err != nil || len(list) != 1 || string(list[0].Value) != "value" {
		s.Fatalf("List = %v, %v", list, err)
	}
	scribble(list[0].Value)
	s.has("k", "value", rev)

	v = []byte("lease")
	l, err := s.a.Lease(s.ctx, "l", v, 10*time.Second)
	if err != nil {
		s.Fatal(err)
	}
	scribble(v)
	if err := l.Renew(s.ctx); err != nil {
		s.Fatal(err)
	}
	s.has("l", "lease", l.Revision())
}

// race runs f n times at once and returns the number of nil errors. All others
// must be conflicts.
func (s *store) race(n int, f func(i int) error) int {
	s.Helper()
	errs := make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = f(i)
		})
	}
	close(start)
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, authority.ErrConflict):
			s.Errorf("a loser failed with %v, want %v", err, authority.ErrConflict)
		}
	}
	return won
}

const racers = 16

func testCreateRace(s *store) {
	for round := range 5 {
		key := "round." + strconv.Itoa(round%2) // created for the first time and again
		var winner op
		var rev uint64
		var mu sync.Mutex
		won := s.race(racers, func(i int) error {
			o := op{Key: key, Value: []byte(strconv.Itoa(i))}
			r, err := s.a.CAS(s.ctx, o)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				winner, rev = o, r
			}
			return err
		})
		if won != 1 {
			s.Fatalf("%d of %d created the key", won, racers)
		}
		s.has(key, string(winner.Value), rev)
		s.must(op{Key: key, Expect: rev, Delete: true})
	}
}

func testUpdateRace(s *store) {
	rev := s.must(op{Key: "k"})
	for range 5 {
		won := s.race(racers, func(i int) error {
			_, err := s.a.CAS(s.ctx, op{Key: "k", Expect: rev, Value: []byte(strconv.Itoa(i)), Delete: false})
			return err
		})
		if won != 1 {
			s.Fatalf("%d of %d updated the key", won, racers)
		}
		e, err := s.a.Get(s.ctx, "k")
		if err != nil || e.Revision <= rev {
			s.Fatalf("Get = %v, %v, want a revision above %d", e, err, rev)
		}
		rev = e.Revision
	}
	won := s.race(racers, func(int) error {
		_, err := s.a.CAS(s.ctx, op{Key: "k", Expect: rev, Delete: true})
		return err
	})
	if won != 1 {
		s.Errorf("%d of %d deleted the key", won, racers)
	}
	s.hasNot("k")
}

func testIncrements(s *store) {
	const workers, each = 4, 15
	s.must(op{Key: "n", Value: []byte("0")})
	failed := s.race(workers, func(int) error {
		for done := 0; done < each; {
			e, err := s.a.Get(s.ctx, "n")
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(string(e.Value))
			if err != nil {
				return err
			}
			_, err = s.a.CAS(s.ctx, op{Key: "n", Expect: e.Revision, Value: []byte(strconv.Itoa(n + 1))})
			switch {
			case err == nil:
				done++
			case !errors.Is(err, authority.ErrConflict):
				return err
			}
		}
		return nil
	})
	e, err := s.a.Get(s.ctx, "n")
	if failed != workers || err != nil || string(e.Value) != strconv.Itoa(workers*each) {
		s.Errorf("after %d increments: %q, %v", workers*each, e.Value, err)
	}
}

func testEndedContext(s *store) {
	rev := s.must(op{Key: "k", Value: []byte("x")})
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, get := s.a.Get(ctx, "k")
	_, cas := s.a.CAS(ctx, op{Key: "k", Expect: rev})
	_, batch := s.a.Batch(ctx, []op{{Key: "k", Expect: rev}, {Key: "l"}})
	_, list := s.a.List(ctx, "")
	_, watch := s.a.Watch(ctx, "")
	_, lease := s.a.Lease(ctx, "l", nil, time.Second)
	for name, err := range map[string]error{"Get": get, "CAS": cas, "Batch": batch, "List": list, "Watch": watch, "Lease": lease} {
		if !errors.Is(err, context.Canceled) || !errors.Is(err, authority.ErrUnavailable) {
			s.Errorf("%s with an ended context = %v, want %v and %v", name, err, authority.ErrUnavailable, context.Canceled)
		}
	}
	s.has("k", "x", rev)
	s.hasNot("l")
}

func testBatch(s *store) {
	w := s.watch("")
	w.wantsMarker()
	a := s.must(op{Key: "a", Value: []byte("old")})
	b := s.must(op{Key: "b", Value: []byte("old")})
	w.wants("a", []byte("old"), a)
	w.wants("b", []byte("old"), b)
	rev := s.mustBatch(
		op{Key: "z", Value: []byte("new")},
		op{Key: "b", Expect: b, Delete: true},
		op{Key: "a", Expect: a, Value: []byte("new")},
	)
	s.has("z", "new", rev-2)
	s.hasNot("b")
	s.has("a", "new", rev)
	w.wants("z", []byte("new"), rev-2)
	w.wants("b", nil, rev-1)
	w.wants("a", []byte("new"), rev)
	one := s.mustBatch(op{Key: "one", Value: []byte("x")})
	s.has("one", "x", one)
}

func testBatchConflict(s *store) {
	a := s.must(op{Key: "a", Value: []byte("a")})
	b := s.must(op{Key: "b", Value: []byte("b")})
	c := s.must(op{Key: "c", Value: []byte("c")})
	w := s.watch("")
	for range 3 {
		w.next()
	}
	w.wantsMarker()
	good := []op{
		{Key: "a", Expect: a, Value: []byte("x")},
		{Key: "b", Expect: b, Delete: true},
		{Key: "new", Value: []byte("x")},
	}
	for name, bad := range map[string]op{
		"exists": {Key: "c", Value: []byte("x")}, "an old revision": {Key: "c", Expect: c - 1, Value: []byte("x")},
		"never existed": {Key: "d", Expect: 1, Value: []byte("x")}, "delete at an old revision": {Key: "c", Expect: a, Delete: true},
		"delete what never existed": {Key: "d", Expect: 1, Delete: true},
	} {
		for at := range len(good) + 1 {
			ops := slices.Insert(slices.Clone(good), at, bad)
			if rev, err := s.a.Batch(s.ctx, ops); !errors.Is(err, authority.ErrConflict) || rev != 0 {
				s.Errorf("Batch, %s at %d = %d, %v, want 0, %v", name, at, rev, err, authority.ErrConflict)
			}
		}
	}
	s.has("a", "a", a)
	s.has("b", "b", b)
	s.has("c", "c", c)
	s.hasNot("d")
	s.hasNot("new")
	end := s.must(op{Key: "end"})
	w.wants("end", []byte{}, end) // and nothing before it
}

func testBatchRecreate(s *store) {
	a := s.must(op{Key: "a", Value: []byte("old")})
	a = s.must(op{Key: "a", Expect: a, Delete: true})
	b := s.must(op{Key: "b", Value: []byte("old")})
	c := s.must(op{Key: "c", Value: []byte("old")})
	s.must(op{Key: "c", Expect: c, Delete: true})
	rev := s.mustBatch(op{Key: "a", Value: []byte("new")}, op{Key: "b", Expect: b, Value: []byte("new")}, op{Key: "c", Value: []byte("new")}, op{Key: "d"})
	s.has("a", "new", rev-3)
	s.has("b", "new", rev-2)
	s.has("c", "new", rev-1)
	s.has("d", "", rev)
	if rev-3 <= a {
		s.Errorf("recreated at %d, not above the deletion at %d", rev-3, a)
	}
}

func testLargeBatch(s *store) {
	ops := make([]op, authority.MaxBatch)
	for i := range ops {
		ops[i] = op{Key: fmt.Sprintf("k.%04d", i), Value: bytes.Repeat([]byte{byte(i)}, 100)}
	}
	rev := s.mustBatch(ops...)
	list, err := s.a.List(s.ctx, "k.")
	if err != nil || len(list) != len(ops) {
		s.Fatalf("List = %d entries, %v, want %d", len(list), err, len(ops))
	}
	for i, e := range list {
		if e.Key != ops[i].Key || !bytes.Equal(e.Value, ops[i].Value) || e.Revision != rev-uint64(len(ops)-1-i) {
			s.Fatalf("entry %d = %v, want %q at %d", i, e, ops[i].Key, rev-uint64(len(ops)-1-i))
		}
	}
}

// testBatchRace moves one unit between two of several accounts at a time. The
// sum must not change.
func testBatchRace(s *store) {
	const accounts, workers, each = 3, 4, 8
	key := func(i int) string { return "account." + strconv.Itoa(i) }
	for i := range accounts {
		s.must(op{Key: key(i), Value: []byte("100")})
	}
	s.race(workers, func(worker int) error {
		rng := rand.New(rand.NewPCG(1, uint64(worker)))
		for done := 0; done < each; {
			from := rng.IntN(accounts)
			to := (from + 1 + rng.IntN(accounts-1)) % accounts
			a, err1 := s.a.Get(s.ctx, key(from))
			b, err2 := s.a.Get(s.ctx, key(to))
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			x, err1 := strconv.Atoi(string(a.Value))
			y, err2 := strconv.Atoi(string(b.Value))
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			_, err := s.a.Batch(s.ctx, []op{
				{Key: a.Key, Expect: a.Revision, Value: []byte(strconv.Itoa(x - 1))},
				{Key: b.Key, Expect: b.Revision, Value: []byte(strconv.Itoa(y + 1))},
			})
			switch {
			case err == nil:
				done++
			case !errors.Is(err, authority.ErrConflict):
				return err
			}
		}
		return nil
	})
	sum := 0
	list, err := s.a.List(s.ctx, "account.")
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range list {
		n, _ := strconv.Atoi(string(e.Value))
		sum += n
	}
	if sum != accounts*100 {
		s.Errorf("the accounts hold %d, want %d: %v", sum, accounts*100, list)
	}
}

func testList(s *store) {
	want := map[string]uint64{}
	for _, key := range []string{"nodes.b", "nodes.a", "nodes.a.x", "nodesy", "jobs.1", "nodes", "a", "nodes.ab"} {
		want[key] = s.must(op{Key: key, Value: []byte(key)})
	}
	gone := s.must(op{Key: "nodes.gone"})
	s.must(op{Key: "nodes.gone", Expect: gone, Delete: true})
	for prefix, keys := range map[string][]string{
		"":         {"a", "jobs.1", "nodes", "nodes.a", "nodes.a.x", "nodes.ab", "nodes.b", "nodesy"},
		"nodes":    {"nodes", "nodes.a", "nodes.a.x", "nodes.ab", "nodes.b", "nodesy"},
		"nodes.":   {"nodes.a", "nodes.a.x", "nodes.ab", "nodes.b"},
		"nodes.a":  {"nodes.a", "nodes.a.x", "nodes.ab"},
		"nodes.a.": {"nodes.a.x"},
		"nodes.b":  {"nodes.b"},
		"none":     {},
		"none.":    {},
	} {
		list, err := s.a.List(s.ctx, prefix)
		if err != nil || len(list) != len(keys) {
			s.Errorf("List(%q) = %v, %v, want %q", prefix, list, err, keys)
			continue
		}
		for i, e := range list {
			if e.Key != keys[i] || string(e.Value) != e.Key || e.Revision != want[e.Key] || e.Deleted {
				s.Errorf("List(%q)[%d] = %v, want %q at %d", prefix, i, e, keys[i], want[keys[i]])
			}
		}
	}
}
