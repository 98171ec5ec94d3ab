package authority

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// leaser is what leases need beyond the Authority: a nonce stored with the
// value, by which the holder recognizes its own key after a lost answer. Two
// processes of one name may well write the same value.
type leaser interface {
	casNonce(ctx context.Context, op Op, nonce string) (uint64, error)
	readNonce(ctx context.Context, key string) (Entry, string, error)
	// bound gives a context without a deadline the store's default one.
	bound(ctx context.Context) (context.Context, context.CancelFunc)
}

type lease struct {
	store leaser
	key   string
	value []byte
	ttl   time.Duration
	nonce string
	rev   atomic.Uint64

	// Used by Renew and Release only, which do not overlap.
	since time.Time // wall clock before the last successful change
	done  bool      // released or lost
}

// now is the wall clock: the monotonic one stands still while the machine is
// suspended.
func now() time.Time { return time.Now().Round(0) }

// newLease takes the lease. The compare-and-set is repeated only after an
// answer was lost and a read showed that it did not happen.
func newLease(ctx context.Context, s leaser, key string, value []byte, ttl time.Duration) (Lease, error) {
	if ttl < MinTTL {
		return nil, fmt.Errorf("lease %q: %w: time to live %v is under %v", key, ErrBadOp, ttl, MinTTL)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	l := &lease{store: s, key: key, value: bytes.Clone(value), ttl: ttl, nonce: rand.Text(), since: now()}
	for {
		rev, err := s.casNonce(ctx, Op{Key: key, Value: l.value, TTL: ttl}, l.nonce)
		if err == nil {
			l.rev.Store(rev)
			return l, nil
		}
		// A conflict may be with our own write, repeated after a lost answer.
		if !errors.Is(err, ErrAmbiguous) && !errors.Is(err, ErrConflict) {
			return nil, fmt.Errorf("lease %q: %w", key, err)
		}
		e, nonce, rerr := s.readNonce(ctx, key)
		switch {
		case rerr == nil && nonce == l.nonce:
			l.rev.Store(e.Revision)
			return l, nil
		case rerr == nil:
			return nil, fmt.Errorf("lease %q: %w", key, ErrConflict)
		case errors.Is(rerr, ErrNotFound) && errors.Is(err, ErrAmbiguous) && ctx.Err() == nil:
			continue
		}
		return nil, fmt.Errorf("lease %q: %w", key, err)
	}
}

// Revision implements [Lease].
func (l *lease) Revision() uint64 { return l.rev.Load() }

// Renew implements [Lease].
func (l *lease) Renew(ctx context.Context) error {
	ctx, cancel := l.store.bound(ctx)
	defer cancel()
	start := now()
	for {
		if l.done {
			return fmt.Errorf("renew %q: %w", l.key, ErrLeaseLost)
		}
		old := l.rev.Load()
		rev, err := l.store.casNonce(ctx, Op{Key: l.key, Value: l.value, Expect: old, TTL: l.ttl}, l.nonce)
		again := false
		if err == nil {
			l.rev.Store(rev)
		} else {
			again, err = l.settle(ctx, err)
		}
		if err == nil && !again {
			err = l.confirm(ctx, start)
		}
		if err != nil {
			return fmt.Errorf("renew %q: %w", l.key, err)
		}
		if !again {
			return nil
		}
	}
}

// confirm ends a renewal that began at start. One that came when the time to
// live was over is read back: a store may have decided already that the key
// has expired (a NATS server does that without a compare-and-set) and remove
// the renewed one a moment later.
func (l *lease) confirm(ctx context.Context, start time.Time) error {
	if now().Sub(l.since) >= l.ttl {
		_, nonce, err := l.store.readNonce(ctx, l.key)
		if errors.Is(err, ErrNotFound) || err == nil && nonce != l.nonce {
			l.done = true
			return ErrLeaseLost
		}
		if err != nil {
			return err
		}
	}
	l.since = start
	return nil
}

// settle finds out what became of a change that failed with err. It reports
// whether to try again; otherwise the change has happened after all.
func (l *lease) settle(ctx context.Context, err error) (again bool, _ error) {
	if !errors.Is(err, ErrAmbiguous) && !errors.Is(err, ErrConflict) {
		return false, err
	}
	e, nonce, rerr := l.store.readNonce(ctx, l.key)
	switch {
	case rerr == nil && nonce == l.nonce && e.Revision != l.rev.Load():
		l.rev.Store(e.Revision)
		return false, nil
	case rerr == nil && nonce == l.nonce:
		if ctx.Err() != nil {
			return false, err
		}
		return true, nil
	case rerr == nil || errors.Is(rerr, ErrNotFound):
		l.done = true
		return false, ErrLeaseLost
	}
	return false, err // cannot tell; the next call asks again
}

// Release implements [Lease].
func (l *lease) Release(ctx context.Context) error {
	ctx, cancel := l.store.bound(ctx)
	defer cancel()
	for !l.done {
		_, err := l.store.casNonce(ctx, Op{Key: l.key, Expect: l.rev.Load(), Delete: true}, "")
		if err == nil {
			l.done = true
			break
		}
		if !errors.Is(err, ErrAmbiguous) && !errors.Is(err, ErrConflict) {
			return fmt.Errorf("release %q: %w", l.key, err)
		}
		e, nonce, rerr := l.store.readNonce(ctx, l.key)
		switch {
		case errors.Is(rerr, ErrNotFound):
			l.done = true
		case rerr != nil || ctx.Err() != nil:
			return fmt.Errorf("release %q: %w", l.key, err)
		case nonce != l.nonce:
			l.done = true
			return fmt.Errorf("release %q: %w", l.key, ErrLeaseLost)
		default: // ours, at a revision whose answer was lost
			l.rev.Store(e.Revision)
		}
	}
	return nil
}
