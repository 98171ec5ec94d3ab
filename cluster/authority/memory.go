package authority

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Memory is an Authority inside this process, for tests and simulation. It
// fails only with ErrConflict, ErrNotFound and the errors of wrong arguments,
// and its watches leave out nothing.
//
// mu guards all fields but clock.
type Memory struct {
	clock func() time.Time // nil: the real clock

	mu      sync.Mutex
	rev     uint64
	items   map[string]memItem
	expires map[string]time.Time // keys with a time to live
	watches map[*memWatch]struct{}
	timer   *time.Timer // the next expiry; only with the real clock
}

// memItem is the newest revision of a key, kept after a deletion too.
type memItem struct {
	Entry
	nonce string
}

// NewMemory returns an empty store. With a clock, time passes as it says, and
// what has expired is removed at the next call of any method, or of Expire.
// Without one (nil) the real time counts and keys expire by themselves.
func NewMemory(clock func() time.Time) *Memory {
	return &Memory{clock: clock, items: map[string]memItem{}, expires: map[string]time.Time{}, watches: map[*memWatch]struct{}{}}
}

func (m *Memory) now() time.Time {
	if m.clock != nil {
		return m.clock()
	}
	return time.Now()
}

// Expire removes the keys whose time is over and tells the watches. Only
// needed after advancing the clock given to NewMemory.
func (m *Memory) Expire() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked()
}

// expireLocked removes in the order of expiry, so that a run can be repeated.
func (m *Memory) expireLocked() {
	now := m.now()
	var over []string
	var next time.Time
	for key, at := range m.expires {
		switch {
		case !at.After(now):
			over = append(over, key)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	slices.SortFunc(over, func(a, b string) int {
		return cmp.Or(m.expires[a].Compare(m.expires[b]), strings.Compare(a, b))
	})
	for _, key := range over {
		m.applyLocked(Op{Key: key, Delete: true}, "")
	}
	if m.clock != nil || next.IsZero() {
		return
	}
	if m.timer == nil {
		m.timer = time.AfterFunc(next.Sub(now), m.Expire)
	} else {
		m.timer.Reset(next.Sub(now))
	}
}

func (m *Memory) applyLocked(op Op, nonce string) {
	m.rev++
	it := memItem{Entry{Key: op.Key, Revision: m.rev, Deleted: op.Delete}, nonce}
	delete(m.expires, op.Key)
	if !op.Delete {
		it.Value = clone(op.Value)
		if op.TTL > 0 {
			m.expires[op.Key] = m.now().Add(roundTTL(op.TTL))
		}
	}
	m.items[op.Key] = it
	for w := range m.watches {
		if strings.HasPrefix(op.Key, w.prefix) {
			w.queue = append(w.queue, it.Entry)
			w.wakeUp()
		}
	}
}

// clone copies b, and never returns nil: a key with an empty value is not a
// deleted one.
func clone(b []byte) []byte { return append([]byte{}, b...) }

// ended is ErrUnavailable once ctx has ended.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}

// Get implements [Authority].
func (m *Memory) Get(ctx context.Context, key string) (Entry, error) {
	e, _, err := m.readNonce(ctx, key)
	return e, err
}

func (m *Memory) readNonce(ctx context.Context, key string) (Entry, string, error) {
	if err := cmp.Or(CheckKey(key), ended(ctx)); err != nil {
		return Entry{}, "", fmt.Errorf("get: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked()
	it, ok := m.items[key]
	if !ok || it.Deleted {
		return Entry{}, "", fmt.Errorf("get %q: %w", key, ErrNotFound)
	}
	it.Value = clone(it.Value)
	return it.Entry, it.nonce, nil
}

// CAS implements [Authority].
func (m *Memory) CAS(ctx context.Context, op Op) (uint64, error) { return m.casNonce(ctx, op, "") }

func (m *Memory) casNonce(ctx context.Context, op Op, nonce string) (uint64, error) {
	if err := op.check(); err != nil {
		return 0, fmt.Errorf("compare-and-set: %w", err)
	}
	return m.commit(ctx, []Op{op}, nonce)
}

// Batch implements [Authority].
func (m *Memory) Batch(ctx context.Context, ops []Op) (uint64, error) {
	if err := checkBatch(ops); err != nil {
		return 0, fmt.Errorf("batch: %w", err)
	}
	return m.commit(ctx, ops, "")
}

// commit checks all, then changes all.
func (m *Memory) commit(ctx context.Context, ops []Op, nonce string) (uint64, error) {
	if err := ended(ctx); err != nil {
		return 0, fmt.Errorf("compare-and-set: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expireLocked()
	for _, op := range ops {
		it, ok := m.items[op.Key]
		exists := ok && !it.Deleted
		if op.Expect == 0 && exists || op.Expect != 0 && (!ok || it.Revision != op.Expect) {
			return 0, fmt.Errorf("compare-and-set %q: expected revision %d, found %d: %w", op.Key, op.Expect, it.Revision, ErrConflict)
		}
	}
	for _, op := range ops {
		m.applyLocked(op, nonce)
	}
	rev := m.rev
	m.expireLocked() // sets the timer for a new time to live
	return rev, nil
}

// listLocked returns what exists under prefix, in no order.
func (m *Memory) listLocked(prefix string) []Entry {
	var out []Entry
	for it := range maps.Values(m.items) {
		if !it.Deleted && strings.HasPrefix(it.Key, prefix) {
			it.Value = clone(it.Value)
			out = append(out, it.Entry)
		}
	}
	return out
}

// List implements [Authority]. Here it is a snapshot.
func (m *Memory) List(ctx context.Context, prefix string) ([]Entry, error) {
	if err := cmp.Or(checkPrefix(prefix), ended(ctx)); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	m.mu.Lock()
	out := func() []Entry { defer m.mu.Unlock(); m.expireLocked(); return m.listLocked(prefix) }()
	slices.SortFunc(out, byKey)
	return out, nil
}

func byKey(a, b Entry) int { return strings.Compare(a.Key, b.Key) }

// memWatch is one watch: a queue without bound, filled under Memory.mu and
// emptied by the watch's goroutine.
type memWatch struct {
	prefix string
	queue  []Entry
	wake   chan struct{} // room for one
}

func (w *memWatch) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Watch implements [Authority].
func (m *Memory) Watch(ctx context.Context, prefix string) (<-chan Entry, error) {
	if err := cmp.Or(checkPrefix(prefix), ended(ctx)); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	w := &memWatch{prefix: prefix, wake: make(chan struct{}, 1)}
	m.mu.Lock()
	m.expireLocked()
	w.queue = m.listLocked(prefix)
	slices.SortFunc(w.queue, func(a, b Entry) int { return cmp.Compare(a.Revision, b.Revision) })
	w.queue = append(w.queue, Entry{})
	w.wakeUp()
	m.watches[w] = struct{}{}
	m.mu.Unlock()

	out := make(chan Entry)
	go m.feed(ctx, w, out) // ends with ctx; the receiver sees it by the closed channel
	return out, nil
}

func (m *Memory) feed(ctx context.Context, w *memWatch, out chan<- Entry) {
	defer close(out)
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watches, w)
	}()
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		m.mu.Lock()
		batch := w.queue
		w.queue = nil
		m.mu.Unlock()
		for _, e := range batch {
			e.Value = bytes.Clone(e.Value) // the queues share the stored value
			select {
			case out <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Lease implements [Authority].
func (m *Memory) Lease(ctx context.Context, key string, value []byte, ttl time.Duration) (Lease, error) {
	return newLease(ctx, m, key, value, ttl)
}

// bound does nothing: no call waits.
func (m *Memory) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return ctx, func() {}
}
