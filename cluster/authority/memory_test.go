package authority_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tributary/cluster/authority"
	"tributary/cluster/authority/authoritytest"
)

// The bubble's clock is the real one to Memory, so keys expire by themselves.
func TestMemory(t *testing.T) {
	authoritytest.Run(t, func(*testing.T) authority.Authority { return authority.NewMemory(nil) }, synctest.Test)
}

func TestMemoryClock(t *testing.T) {
	now := time.Unix(1000, 0)
	m := authority.NewMemory(func() time.Time { return now })
	watch, err := m.Watch(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	next := func() authority.Entry {
		t.Helper()
		select {
		case e := <-watch:
			return e
		case <-time.After(10 * time.Second):
			t.Fatal("the watch delivered nothing")
		}
		panic("unreachable")
	}
	if e := next(); !e.Marker() {
		t.Fatalf("watch delivered %v, want the marker", e)
	}
	late, err1 := m.CAS(t.Context(), authority.Op{Key: "late", TTL: 5 * time.Second})
	early, err2 := m.CAS(t.Context(), authority.Op{Key: "early", TTL: 2 * time.Second})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	next()
	next()
	now = now.Add(2*time.Second - 1)
	m.Expire()
	if e, err := m.Get(t.Context(), "early"); err != nil || e.Revision != early {
		t.Errorf("Get just before the end = %v, %v", e, err)
	}
	now = now.Add(10 * time.Second)
	if _, err := m.Get(t.Context(), "late"); !errors.Is(err, authority.ErrNotFound) {
		t.Errorf("Get after the end = %v, want %v", err, authority.ErrNotFound)
	}
	// In the order of expiry, not of writing.
	for i, key := range []string{"early", "late"} {
		if e := next(); e.Key != key || !e.Deleted || e.Revision != early+1+uint64(i) || late >= early {
			t.Errorf("watch delivered %v, want the end of %q", e, key)
		}
	}
}
