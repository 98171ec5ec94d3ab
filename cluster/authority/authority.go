// Package authority is the compare-and-set store behind every decision: node
// leases, shard records, job records, decisions.
//
// It holds small records that can be derived again, never weights. A change
// exists only once its compare-and-set succeeded; a value that was read
// permits nothing (docs/consistency.md, C4 and C7).
//
// Revisions are numbers of one global order over all keys: each change gets a
// higher one than every change before, so a key that is deleted and created
// again never repeats a revision, and the revision of an acquisition can serve
// as an epoch.
//
// There are two implementations with one conformance suite (authoritytest):
// [Memory], for tests and simulation, and [JetStream], a KV bucket.
package authority

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	// ErrNotFound: the key does not exist, or it was deleted or has expired.
	// Asking again is safe.
	ErrNotFound = errors.New("key not found")
	// ErrConflict: another revision stands than the one expected, and nothing
	// was changed. Read again and decide anew; repeating the same call is
	// pointless.
	ErrConflict = errors.New("conflict: another revision stands")
	// ErrAmbiguous: the answer was lost, so the change may have happened or
	// may still happen. Do not repeat it blindly: read the key and compare
	// owner and nonce. A repetition with the same Expect is harmless in itself,
	// but then ErrConflict may be caused by one's own first attempt.
	ErrAmbiguous = errors.New("ambiguous: no answer, the change may have happened")
	// ErrUnavailable: the store could not be asked, and nothing was changed.
	// A retry is safe. Implementations retry by themselves until the context
	// or their time limit ends.
	ErrUnavailable = errors.New("the authority does not answer")
	// ErrStoreLost: the store came back empty or is not the one that was
	// opened. Nothing was changed; a retry does not help. What it held must be
	// derived again, with epochs above those found in checkpoints.
	ErrStoreLost = errors.New("the authority has lost its store")
	// ErrLeaseLost: the lease expired, was released, or was overwritten.
	// Nothing that it guards may be done any more; take a new one.
	ErrLeaseLost = errors.New("lease lost")
	// ErrBadKey: a key that is not made of dotted tokens, see [CheckKey].
	ErrBadKey = errors.New("bad key")
	// ErrBadOp: an operation that can never succeed, such as a TTL under a
	// second or a batch with one key twice. Nothing was changed.
	ErrBadOp = errors.New("bad operation")
)

const (
	// MinTTL is the shortest time to live.
	MinTTL = time.Second
	// MaxBatch is the largest number of operations in a batch.
	MaxBatch = 1000
	// MaxKey is the longest key in bytes.
	MaxKey = 255
)

// Entry is one revision of a key. The receiver owns Value.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
	Deleted  bool // deleted or expired; Value is nil
}

// Marker reports whether e is the mark in a watch after which all entries that
// stood at its start have been delivered. It has no key.
func (e Entry) Marker() bool { return e.Key == "" }

// Op is one compare-and-set.
type Op struct {
	Key    string
	Value  []byte // not kept or changed
	Expect uint64 // last revision of the key; 0: it must not exist
	Delete bool   // delete the key; Expect is its revision, Value and TTL are empty
	// TTL deletes the key when it has passed without another change of the
	// key; 0 never does. At least MinTTL; stores round it up to whole seconds
	// and may keep the key up to about a second longer, never shorter.
	TTL time.Duration
}

// Authority is the store. All methods may be called concurrently and wait at
// most until ctx ends.
type Authority interface {
	// Get returns the newest revision of key, or ErrNotFound. A retry is safe.
	Get(ctx context.Context, key string) (Entry, error)

	// CAS makes one change and returns its revision. It fails with
	// ErrConflict, ErrAmbiguous (the only case in which the change may have
	// happened), ErrUnavailable, ErrStoreLost, ErrBadKey or ErrBadOp.
	CAS(ctx context.Context, op Op) (rev uint64, err error)

	// Batch makes all the changes or none, with the errors of CAS. Keys must
	// differ. The changes get consecutive revisions in the order of ops; the
	// last one is returned. An empty batch is ErrBadOp.
	Batch(ctx context.Context, ops []Op) (rev uint64, err error)

	// List returns the entries whose key begins with prefix, sorted by key; ""
	// lists all. Each was current at some moment during the call; it is not a
	// snapshot across keys. A retry is safe.
	List(ctx context.Context, prefix string) ([]Entry, error)

	// Watch delivers the entries whose key begins with prefix that exist now,
	// in the order of their revisions, then one Marker, then each change as it
	// happens, in the order of revisions. Deleted entries come as changes only.
	//
	// The last revision of every key is always delivered; a key written once is
	// therefore never missed. Of a key that is overwritten faster than the
	// receiver or the connection keeps up, older revisions may be left out.
	// Lost connections are repaired behind the channel, without a second
	// Marker. A deletion found out that way carries the highest revision seen.
	//
	// The channel is closed when ctx ends, and before that only when the store
	// is lost for good: the receiver must treat that as an error.
	Watch(ctx context.Context, prefix string) (<-chan Entry, error)

	// Lease creates key with a time to live, or fails with ErrConflict while
	// somebody, or an earlier process of the same name, holds it. After
	// ErrAmbiguous the lease may have been created unseen; it then expires.
	Lease(ctx context.Context, key string, value []byte, ttl time.Duration) (Lease, error)
}

// Lease is a key that lives as long as it is renewed. Renew and Release must
// not overlap; Revision may be called at any time.
//
// The holder must count the time itself, from before the call of the last
// successful Renew: that the key still exists says nothing (C7, C17).
type Lease interface {
	// Renew starts the time to live anew. ErrLeaseLost is final. After
	// ErrAmbiguous or ErrUnavailable a retry is safe and finds out what
	// happened: a renewal whose answer was lost does not lose the lease.
	Renew(ctx context.Context) error
	// Release deletes the key if it is still this lease's. A lease that had
	// already expired counts as released; ErrLeaseLost says that somebody else
	// has the key. A retry is safe.
	Release(ctx context.Context) error
	// Revision is the newest revision of the key known to the holder. Right
	// after Lease it is the acquisition's, which serves as an epoch.
	Revision() uint64
}

// CheckKey returns ErrBadKey unless key is dotted tokens: 1 to MaxKey bytes of
// letters, digits, '-', '_', '=' and '/', with single dots between them.
func CheckKey(key string) error {
	if len(key) == 0 || len(key) > MaxKey {
		return fmt.Errorf("%w %q: it has %d bytes, not 1 to %d", ErrBadKey, key, len(key), MaxKey)
	}
	for token := range strings.SplitSeq(key, ".") {
		if token == "" {
			return fmt.Errorf("%w %q: empty token", ErrBadKey, key)
		}
		if i := strings.IndexFunc(token, notInKey); i >= 0 {
			return fmt.Errorf("%w %q: %q is not a letter, a digit or one of -_=/", ErrBadKey, key, token[i])
		}
	}
	return nil
}

func notInKey(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=/", r))
}

// checkPrefix accepts what some key can begin with, and "".
func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if err := CheckKey(strings.TrimSuffix(prefix, ".")); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	return nil
}

func (op Op) check() error {
	if err := CheckKey(op.Key); err != nil {
		return err
	}
	switch {
	case op.Delete && op.Expect == 0:
		return fmt.Errorf("%w: delete %q without the revision to delete", ErrBadOp, op.Key)
	case op.Delete && (len(op.Value) > 0 || op.TTL != 0):
		return fmt.Errorf("%w: delete %q with a value or a time to live", ErrBadOp, op.Key)
	case op.TTL != 0 && op.TTL < MinTTL:
		return fmt.Errorf("%w: time to live %v of %q is under %v", ErrBadOp, op.TTL, op.Key, MinTTL)
	}
	return nil
}

func checkBatch(ops []Op) error {
	if len(ops) == 0 || len(ops) > MaxBatch {
		return fmt.Errorf("%w: a batch of %d, not 1 to %d", ErrBadOp, len(ops), MaxBatch)
	}
	seen := make(map[string]bool, len(ops))
	for _, op := range ops {
		if err := op.check(); err != nil {
			return err
		}
		if seen[op.Key] {
			return fmt.Errorf("%w: %q twice in one batch", ErrBadOp, op.Key)
		}
		seen[op.Key] = true
	}
	return nil
}

// roundTTL rounds up to what JetStream can express, so that a key never
// expires before its holder expects it.
func roundTTL(d time.Duration) time.Duration {
	return (d + time.Second - 1) / time.Second * time.Second
}
