package authority

import (
	"container/list"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Watch implements [Authority]. It fails with ErrUnavailable when the server
// does not answer within the limit, and with ErrStoreLost. Afterwards the
// channel is closed early only when the store is lost, the connection is
// closed for good, or Close is called.
//
// After a reconnection it may take seconds until changes arrive again.
func (j *JetStream) Watch(ctx context.Context, prefix string) (<-chan Entry, error) {
	if err := checkPrefix(prefix); err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	var r *reader
	err := j.retry(ctx, func(ctx context.Context) (err error) {
		r, err = j.openReader(ctx, prefix)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("watch %q: %w", prefix, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.life.Err() != nil {
		r.close()
		return nil, fmt.Errorf("watch %q: %w: %w", prefix, ErrUnavailable, errClosed)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(j.life, cancel)
	f := &follower{j: j, prefix: prefix, live: map[string]struct{}{}, queue: newEntryQueue()}
	out := make(chan Entry)
	j.watches.Go(func() { // ends with ctx, with Close, or when the store is lost
		defer f.queue.finish()
		f.run(ctx, r)
	})
	j.watches.Go(func() { // ends with ctx, with Close, or when the queue is finished and empty
		defer stop()
		defer cancel()
		defer close(out)
		f.queue.feed(ctx, out)
	})
	return out, nil
}

// follower turns the records of one reader after the other into the entries of
// one watch. Used by one goroutine.
type follower struct {
	j      *JetStream
	prefix string
	queue  *entryQueue

	high   uint64              // highest revision seen
	live   map[string]struct{} // keys that exist, as far as the receiver will know
	marked bool                // the Marker is queued
}

// run reads until ctx ends or the store is lost.
func (f *follower) run(ctx context.Context, r *reader) {
	for {
		f.read(ctx, r)
		r.close()
		for {
			if pause(ctx) != nil {
				return
			}
			var err error
			if r, err = f.j.openReader(ctx, f.prefix); err == nil {
				break
			}
			if isPermanent(err) {
				return
			}
		}
	}
}

// read takes records until the reader ends. Each reader begins with all keys,
// so a key that is missing among them was deleted so long ago that even the
// deletion has expired.
func (f *follower) read(ctx context.Context, r *reader) {
	present := map[string]bool{} // nil once the reader has caught up
	for {
		if r.caughtUp && present != nil {
			f.catchUp(present)
			present = nil
		}
		rec, err := r.next(ctx)
		if err != nil {
			return
		}
		if rec.Key == "" || !strings.HasPrefix(rec.Key, f.prefix) {
			continue
		}
		if present != nil {
			present[rec.Key] = !rec.Deleted
		}
		f.apply(rec.Entry)
	}
}

// apply queues e if it is news. Readers deliver in the order of revisions and
// without gaps, so what is not above the highest one was queued before.
func (f *follower) apply(e Entry) {
	if e.Revision <= f.high {
		return
	}
	f.high = e.Revision
	if _, known := f.live[e.Key]; e.Deleted && !known && !f.marked {
		return // deleted before the watch began
	}
	if e.Deleted {
		delete(f.live, e.Key)
	} else {
		f.live[e.Key] = struct{}{}
	}
	f.queue.push(e)
}

func (f *follower) catchUp(present map[string]bool) {
	for _, key := range slices.Sorted(maps.Keys(f.live)) {
		if !present[key] {
			delete(f.live, key)
			f.queue.push(Entry{Key: key, Revision: f.high, Deleted: true})
		}
	}
	if !f.marked {
		f.marked = true
		f.queue.push(Entry{})
	}
}

// entryQueue holds what the receiver of a watch has not taken yet: at most one
// entry per key on each side of the Marker, so a slow receiver costs no more
// memory than the store itself.
//
// mu guards the fields below it.
type entryQueue struct {
	wake chan struct{} // room for one

	mu       sync.Mutex
	entries  *list.List               // of Entry
	at       map[string]*list.Element // entries that a newer one of the key replaces
	finished bool
}

func newEntryQueue() *entryQueue {
	return &entryQueue{wake: make(chan struct{}, 1), entries: list.New(), at: map[string]*list.Element{}}
}

// push appends e in place of an older one of its key. One before the Marker
// stays: it stood at the start, and the receiver must know by then.
func (q *entryQueue) push(e Entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e.Marker() {
		clear(q.at)
		q.entries.PushBack(e)
	} else {
		if old, ok := q.at[e.Key]; ok {
			q.entries.Remove(old)
		}
		q.at[e.Key] = q.entries.PushBack(e)
	}
	q.wakeUp()
}

// finish lets feed return once the queue is empty.
func (q *entryQueue) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.finished = true
	q.wakeUp()
}

func (q *entryQueue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pop takes the first entry, if there is one (ok). Otherwise more says whether
// there may be another.
func (q *entryQueue) pop() (e Entry, ok, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	first := q.entries.Front()
	if first == nil {
		return Entry{}, false, !q.finished
	}
	e = q.entries.Remove(first).(Entry)
	if q.at[e.Key] == first {
		delete(q.at, e.Key)
	}
	return e, true, true
}

// feed hands the entries to out until ctx ends, or the queue is finished and
// empty.
func (q *entryQueue) feed(ctx context.Context, out chan<- Entry) {
	for {
		e, ok, more := q.pop()
		if !ok && !more {
			return
		}
		to, wake := out, (<-chan struct{})(nil)
		if !ok {
			to, wake = nil, q.wake
		}
		select {
		case to <- e:
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}
