package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/optim"
)

// evaluation is the fetching of one version of the point of evaluation, for
// rules whose parameters are another one.
type evaluation struct {
	used  bool
	v     uint64
	data  []float32
	got   []bool
	asked []bool
	left  int
	since time.Duration
	wait  time.Duration
	err   error
}

// Evaluate asks for the point of evaluation at a version: the one that work was
// handed out for, or shard.Latest in an asynchronous job. Evaluated hands it out
// when it has come; the caller repeats the question until then.
func (s *Session) Evaluate(v uint64, now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	if s.plan == nil {
		return nil
	}
	if e := &s.eval; !e.used || e.v != v {
		n := s.plan.Layout.Chunks()
		*e = evaluation{used: true, v: v, data: make([]float32, s.plan.Layout.P), got: make([]bool, n), asked: make([]bool, n), left: n,
			since: now, wait: s.cfg.Retry}
	}
	s.pullEval()
	return s.outs
}

// Evaluated hands out what Evaluate asked for, once. The error is wire.ErrGone
// when training has gone on too far for the version to be still held, or the job
// was rewound and the application has not heard of it yet: the version that work
// was handed out for may never come again.
func (s *Session) Evaluated(v uint64) (params []float32, ok bool, err error) {
	if s.rewound {
		return nil, true, wire.ErrGone
	}
	e := &s.eval
	if !e.used || e.v != v || e.left > 0 && e.err == nil {
		return nil, false, nil
	}
	params, err = e.data, e.err
	*e = evaluation{}
	return params, true, err
}

// pullEval asks for missing chunks, first chunk first.
func (s *Session) pullEval() {
	e := &s.eval
	if !e.used || e.left == 0 || e.err != nil {
		return
	}
	if s.now-e.since >= e.wait { // what was asked for is overdue
		e.since, e.wait = s.now, min(2*e.wait, 16*s.cfg.Retry)
		clear(e.asked)
	}
	for k, rg := range s.ranges {
		out := 0
		for ci := rg.Lo; ci < rg.Hi && out < s.plan.Window; ci++ {
			if e.got[ci] {
				continue
			}
			out++
			if !e.asked[ci] {
				e.asked[ci] = true
				h := s.header(wire.Pull)
				h.Chunk, h.Step, h.Point = uint32(ci), e.v, optim.Eval
				s.stats.Pulls++
				s.toShard(k, h, nil)
			}
		}
	}
}

// evalChunk takes one chunk of the point of evaluation.
func (s *Session) evalChunk(m *wire.Message, ci int, r layout.Range) {
	e := &s.eval
	if !e.used || e.left == 0 || e.got[ci] || m.Step != e.v && e.v != math.MaxUint64 {
		return
	}
	wire.CopyFloat32s(e.data[r.Lo:r.Hi], m.Tail)
	e.got[ci] = true
	e.left--
	e.since, e.wait = s.now, s.cfg.Retry
	s.stats.BytesIn += uint64(len(m.Tail))
}

// evalRefused learns that a shard does not hold the version (any more).
func (s *Session) evalRefused(m *wire.Message) {
	if e := &s.eval; e.used && m.Step == e.v && m.Code == wire.ErrGone {
		e.err = m.Code
	}
}

// EvalParams fetches the parameters to evaluate and to serve at the version that
// work was handed out for. Most rules train them: then they are work.Params.
// For the others it asks the shards; the error is wire.ErrGone when training has
// gone on too far, or the job was rewound, which Pull is about to say. The former
// cannot happen while the caller owes a contribution to work.Step, the job
// evaluates at work.Version (`eval.every`) and that is not older than the cut that
// the job went on from.
func (w *Worker) EvalParams(ctx context.Context, work *Work) ([]float32, error) {
	plan := w.Plan()
	if plan.Rule.Eval == "" {
		return work.Params, nil
	}
	v := work.Version
	if plan.Staleness < 0 {
		v = math.MaxUint64
	}
	ctx, cancel := context.WithTimeout(ctx, evalPatience)
	defer cancel()
	var x []float32
	var err error
	asked := time.Duration(-1)
	werr := w.wait(ctx, func() bool {
		var ok bool
		if x, ok, err = w.ses.Evaluated(v); ok {
			return true
		}
		if err = w.ses.Err(); err != nil {
			return true
		}
		if now := w.now(); asked < 0 || now-asked > 50*time.Millisecond {
			asked = now
			w.send(w.ses.Evaluate(v, now))
		}
		return false
	})
	if err := errors.Join(werr, err); err != nil {
		return nil, fmt.Errorf("point of evaluation at version %d: %w", v, err)
	}
	return x, nil
}

// evalPatience bounds the wait for the point of evaluation.
const evalPatience = 30 * time.Second
