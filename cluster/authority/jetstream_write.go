package authority

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Headers of an atomic batch. All its messages carry the first two, the last
// one the third.
const (
	headerBatchID     = "Nats-Batch-Id"
	headerBatchSeq    = "Nats-Batch-Sequence"
	headerBatchCommit = "Nats-Batch-Commit"
)

// codeHeadersTooLarge is the server's for a record whose headers are too long.
const codeHeadersTooLarge jetstream.ErrorCode = 10097

// errNoAnswer: the request was sent, or may have been, and no answer came.
var errNoAnswer = errors.New("no answer")

// write is one call that changes something, over all its attempts.
type write struct {
	ops    []Op
	nonce  string
	id     string   // stored with every record
	begin  uint64   // highest revision seen before
	expect []uint64 // last sequences of the subjects: those of ops, or of the deletion that precedes a creation
	maybe  bool     // some attempt had no answer, so the change may have happened
}

// CAS implements [Authority].
func (j *JetStream) CAS(ctx context.Context, op Op) (uint64, error) { return j.casNonce(ctx, op, "") }

func (j *JetStream) casNonce(ctx context.Context, op Op, nonce string) (uint64, error) {
	if err := op.check(); err != nil {
		return 0, fmt.Errorf("compare-and-set: %w", err)
	}
	rev, err := j.commit(ctx, []Op{op}, nonce)
	if err != nil {
		return 0, fmt.Errorf("compare-and-set %q: %w", op.Key, err)
	}
	return rev, nil
}

// Batch implements [Authority]. It is an atomic batch of JetStream.
func (j *JetStream) Batch(ctx context.Context, ops []Op) (uint64, error) {
	if err := checkBatch(ops); err != nil {
		return 0, fmt.Errorf("batch: %w", err)
	}
	rev, err := j.commit(ctx, ops, "")
	if err != nil {
		return 0, fmt.Errorf("batch of %d, %q first: %w", len(ops), ops[0].Key, err)
	}
	return rev, nil
}

// commit publishes until the server has decided, or until the limit.
//
// To repeat an attempt that had no answer is harmless: expected revisions let
// at most one of them through, and the records tell whether it was ours.
func (j *JetStream) commit(ctx context.Context, ops []Op, nonce string) (uint64, error) {
	if err := ended(ctx); err != nil {
		return 0, err
	}
	ctx, cancel := j.bound(ctx)
	defer cancel()
	w := &write{ops: ops, nonce: nonce, id: rand.Text(), begin: j.seen.Load()}
	for _, op := range ops {
		w.expect = append(w.expect, op.Expect)
	}
	for {
		rev, err := j.try(ctx, w)
		switch {
		case err == nil:
			j.saw(rev)
			return rev, nil
		case errors.Is(err, ErrConflict), errors.Is(err, ErrAmbiguous), errors.Is(err, ErrStoreLost):
			return 0, err
		case isPermanent(err) && !w.maybe:
			return 0, err
		}
		end := pause(ctx)
		switch {
		case w.maybe && (end != nil || isPermanent(err)):
			return 0, fmt.Errorf("%w: %w", ErrAmbiguous, err)
		case end != nil:
			return 0, unavailable(err, end)
		}
	}
}

// try publishes once, and looks at the records after a conflict.
func (j *JetStream) try(ctx context.Context, w *write) (uint64, error) {
	rev, err := j.publish(ctx, w)
	switch {
	case errors.Is(err, errNoAnswer):
		w.maybe = true
	case errors.Is(err, ErrConflict):
		return j.settle(ctx, w)
	case errors.Is(err, nats.ErrNoResponders):
		// Nobody listens: the store is another one, or not up yet.
		if lost := j.verify(ctx); lost != nil {
			return 0, lost
		}
	}
	return rev, err
}

// publish sends the records and returns the revision of the last one. It fails
// with errNoAnswer, or else nothing was changed.
func (j *JetStream) publish(ctx context.Context, w *write) (uint64, error) {
	ctx, cancel := j.attempt(ctx)
	defer cancel()
	if err := cmp.Or(ctx.Err(), j.ready(ctx)); err != nil {
		return 0, err
	}
	batch := rand.Text() // a batch is never resumed
	last := len(w.ops) - 1
	for i := range w.ops {
		m := j.message(w, i)
		if last > 0 {
			m.Header.Set(headerBatchID, batch)
			m.Header.Set(headerBatchSeq, strconv.Itoa(i+1))
		}
		if i < last {
			// Without a reply subject: what is wrong with it the answer to the
			// commit tells, and nothing is stored before that.
			if err := j.nc.PublishMsg(m); err != nil {
				return 0, notSent(err)
			}
			continue
		}
		if last > 0 {
			m.Header.Set(headerBatchCommit, "1")
		}
		return j.request(ctx, m)
	}
	panic("unreachable: no operations")
}

func (j *JetStream) message(w *write, i int) *nats.Msg {
	op := w.ops[i]
	m := nats.NewMsg(j.root + op.Key)
	m.Data = op.Value
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(w.expect[i], 10))
	m.Header.Set(headerWrite, w.id)
	if w.nonce != "" {
		m.Header.Set(headerNonce, w.nonce)
	}
	switch {
	case op.Delete:
		m.Header.Set(headerOp, opDelete)
		m.Header.Set(jetstream.MsgTTLHeader, j.o.markerTTL.String())
	case op.TTL > 0:
		m.Header.Set(jetstream.MsgTTLHeader, roundTTL(op.TTL).String())
	}
	return m
}

// request sends m and reads the server's answer.
func (j *JetStream) request(ctx context.Context, m *nats.Msg) (uint64, error) {
	reply, err := j.nc.RequestMsgWithContext(ctx, m)
	switch {
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrMaxPayload):
		return 0, notSent(err)
	case err != nil:
		return 0, fmt.Errorf("%w: %w", errNoAnswer, cmp.Or(context.Cause(ctx), err))
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return 0, fmt.Errorf("%w: malformed answer: %w", errNoAnswer, err)
	}
	if ack.Error == nil && ack.Seq == 0 {
		return 0, fmt.Errorf("%w: an answer without a sequence", errNoAnswer)
	}
	if ack.Error == nil {
		return ack.Seq, nil
	}
	switch ack.Error.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return 0, fmt.Errorf("%w: %w", ErrConflict, ack.Error)
	case jetstream.JSErrCodeStreamMessageExceedsMaximum, codeHeadersTooLarge:
		return 0, fmt.Errorf("%w: %w", ErrBadOp, ack.Error)
	}
	return 0, ack.Error // busy, out of space, an incomplete batch, ...
}

func notSent(err error) error {
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %w", ErrBadOp, err)
	}
	return err
}

// settle reads the records after a conflict. It returns ErrConflict if one of
// them is not as expected, success if an earlier attempt without an answer has
// happened after all, ErrAmbiguous if that cannot be told, and another error
// if the write is to be tried again. That is so when
//
//   - a key to be created was deleted before: the server then expects the
//     revision of the deletion;
//   - the conflict has gone meanwhile, or was with a write in flight.
func (j *JetStream) settle(ctx context.Context, w *write) (uint64, error) {
	found := make([]record, len(w.ops))
	maybe := w.maybe
	for i, op := range w.ops {
		r, err := j.last(ctx, op.Key)
		if err != nil {
			return 0, err
		}
		if r.write == w.id {
			return r.Revision + uint64(len(w.ops)-1-i), nil
		}
		// A record that is as old as the call says that no attempt got through.
		if r.Revision == w.expect[i] || r.Revision != 0 && r.Revision <= w.begin {
			maybe = false
		}
		found[i] = r
	}
	for i, op := range w.ops {
		r := found[i]
		switch gone := r.Revision == 0 || r.Deleted; {
		case op.Expect != 0 && r.Revision == op.Expect, op.Expect == 0 && gone && !maybe:
			w.expect[i] = r.Revision
		case maybe: // a deletion too: it may be that of what we created
			return 0, fmt.Errorf("%q: an attempt had no answer, and now revision %d stands: %w", op.Key, r.Revision, ErrAmbiguous)
		default:
			return 0, fmt.Errorf("%q: expected revision %d, found %d: %w", op.Key, op.Expect, r.Revision, ErrConflict)
		}
	}
	return 0, errSettled
}

var errSettled = errors.New("the conflict has gone")
