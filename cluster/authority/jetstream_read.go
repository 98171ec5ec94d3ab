package authority

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of a stored record.
const (
	headerOp    = "KV-Operation"    // opDelete on a deletion; the name is KV's
	headerNonce = "Tributary-Nonce" // of the lease, see leaser
	headerWrite = "Tributary-Write" // of one call, by which it finds out what became of it

	// Of KV's two deletions the server takes only this one for a deletion: the
	// other, when its time to live ends, is followed by a marker of its own.
	opDelete = "PURGE"
)

// record is a stored revision, deletions included.
type record struct {
	Entry
	nonce, write string
}

func (j *JetStream) newRecord(subject string, seq uint64, h nats.Header, data []byte) record {
	j.saw(seq)
	r := record{Entry{Key: strings.TrimPrefix(subject, j.root), Revision: seq}, h.Get(headerNonce), h.Get(headerWrite)}
	r.Deleted = h.Get(headerOp) != "" || h.Get(jetstream.MarkerReasonHeader) != ""
	if !r.Deleted {
		r.Value = data
		if data == nil {
			r.Value = []byte{}
		}
	}
	return r
}

// last returns the newest record of key, once. Revision 0 says that there is
// none, or that the store is not ours.
func (j *JetStream) last(ctx context.Context, key string) (record, error) {
	ctx, cancel := j.attempt(ctx)
	defer cancel()
	if err := j.ready(ctx); err != nil {
		return record{}, err
	}
	m, err := j.stream.GetLastMsgForSubject(ctx, j.root+key)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return record{}, nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return record{}, fmt.Errorf("%w: bucket %q is gone", ErrStoreLost, j.o.Bucket)
	case err != nil:
		return record{}, err
	}
	return j.newRecord(m.Subject, m.Sequence, m.Header, m.Data), nil
}

// Get implements [Authority].
func (j *JetStream) Get(ctx context.Context, key string) (Entry, error) {
	e, _, err := j.readNonce(ctx, key)
	return e, err
}

func (j *JetStream) readNonce(ctx context.Context, key string) (Entry, string, error) {
	if err := CheckKey(key); err != nil {
		return Entry{}, "", fmt.Errorf("get: %w", err)
	}
	var r record
	err := j.retry(ctx, func(ctx context.Context) (err error) {
		r, err = j.last(ctx, key)
		if err == nil && r.Revision == 0 {
			err = j.verify(ctx) // another store has no such key either
		}
		return err
	})
	if err == nil && (r.Revision == 0 || r.Deleted) {
		err = ErrNotFound
	}
	if err != nil {
		return Entry{}, "", fmt.Errorf("get %q: %w", key, err)
	}
	return r.Entry, r.nonce, nil
}

// List implements [Authority].
func (j *JetStream) List(ctx context.Context, prefix string) ([]Entry, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var found map[string]Entry
	err := j.retry(ctx, func(ctx context.Context) (err error) {
		found, err = j.listOnce(ctx, prefix)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	return slices.SortedFunc(maps.Values(found), byKey), nil
}

func (j *JetStream) listOnce(ctx context.Context, prefix string) (map[string]Entry, error) {
	r, err := j.openReader(ctx, prefix)
	if err != nil {
		return nil, err
	}
	defer r.close()
	found := map[string]Entry{}
	for !r.caughtUp {
		rec, err := r.next(ctx)
		switch {
		case err != nil:
			return nil, err
		case rec.Deleted:
			delete(found, rec.Key)
		case rec.Key != "" && strings.HasPrefix(rec.Key, prefix):
			found[rec.Key] = rec.Entry
		}
	}
	return found, nil
}
