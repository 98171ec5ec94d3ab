// Package client is the Go API that workers are written with: [Join] a job,
// [Worker.Pull] parameters and ranks to compute, [Worker.Push] gradients.
// Which process computes a rank changes no bit of the result, so a worker may
// be killed, restarted or replaced at any time.
//
// [Session] (session.go) is the protocol as a pure state machine; this file is
// the thin driver around it: one goroutine, a connection and a clock.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"tributary/comm"
	"tributary/comm/wire"
)

// Options say which job to join and how.
type Options struct {
	// Conn is a connection to the job's broker that carries tensors, Control one
	// for everything small, so that a heartbeat never queues behind a gradient;
	// nil means Conn. The caller closes them.
	Conn, Control comm.Conn

	Job     string
	Worker  string // unique name; letters, digits, - and _
	Replace bool   // take the name over from a live process
	Logger  *slog.Logger
	// Open makes the plan from the job's record; nil means OpenPlan. It is
	// called once, before Join returns.
	Open func(record []byte) (*Plan, error)
	// OnWait is told what the worker waits for when it has waited for about a
	// second, and then every few seconds; nil logs it.
	OnWait func(text string)
	// JoinTimeout bounds the wait for the job to exist and to give this worker
	// a first answer; 0 means one minute.
	JoinTimeout time.Duration
}

// Worker is a member of a job. Its methods are safe for one goroutine at a
// time; Close may be called from any.
type Worker struct {
	opts   Options
	ses    *Session
	start  time.Time
	inbox  chan *wire.Message
	calls  chan func()
	quit   chan struct{}
	ended  chan struct{}
	once   sync.Once
	subs   []comm.Subscription
	poke   chan struct{} // one slot: something may have become ready
	states map[int][]byte
	times  times
}

// Times is where a worker's time went, for benchmarks.
type Times struct {
	Encode  time.Duration // making and handing over frames that carry tensors
	Decode  time.Duration // checking and copying received parameters
	Waiting time.Duration // inside Pull
}

type times struct{ encode, decode, waiting atomic.Int64 }

// Rewound is the error Pull returns, once, when the job went back to the cut
// at Step: whatever was computed after it is void. Load your own state for
// that step and call Pull again.
type Rewound struct{ Step uint64 }

// Error says what happened.
func (r *Rewound) Error() string { return fmt.Sprintf("the job was rewound to step %d", r.Step) }

// Join becomes a member of a job. It returns when the coordinator has answered;
// ranks may come later. The error says what was waited for when time ran out.
func Join(ctx context.Context, o Options) (*Worker, error) {
	if err := comm.ValidToken(o.Worker); err != nil {
		return nil, fmt.Errorf("join: worker name: %w", err)
	}
	if comm.ReservedWorker(o.Worker) {
		return nil, fmt.Errorf("join: worker name %q is reserved for servers; choose another", o.Worker)
	}
	if err := comm.ValidToken(o.Job); err != nil {
		return nil, fmt.Errorf("join: job name: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnWait == nil {
		o.OnWait = func(t string) { o.Logger.Info("waiting", "for", t) }
	}
	if o.JoinTimeout == 0 {
		o.JoinTimeout = time.Minute
	}
	if o.Open == nil {
		o.Open = OpenPlan
	}
	if o.Control == nil {
		o.Control = o.Conn
	}
	w := &Worker{opts: o, start: time.Now(), inbox: make(chan *wire.Message, 1024), calls: make(chan func()),
		quit: make(chan struct{}), ended: make(chan struct{}), poke: make(chan struct{}, 1), states: map[int][]byte{}}
	w.ses = NewSession(SessionConfig{Job: o.Job, Worker: o.Worker, Nonce: rand.Uint64() | 1, Replace: o.Replace, Open: o.Open})
	for _, x := range []struct {
		conn    comm.Conn
		subject string
	}{{o.Conn, comm.WorkerSubject(o.Job, o.Worker)}, {o.Conn, comm.ParamsSubject(o.Job)}, {o.Control, comm.NewsSubject(o.Job)}} {
		sub, err := x.conn.Subscribe(x.subject, w.receive)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("join: %w", err), w.unsubscribe())
		}
		w.subs = append(w.subs, sub)
	}
	go w.run()
	if err := w.untilMember(ctx); err != nil {
		w.Close()
		return nil, fmt.Errorf("join %q: %w", o.Job, err)
	}
	return w, nil
}

func (w *Worker) receive(_ string, m *wire.Message) {
	select {
	case w.inbox <- m:
	case <-w.quit:
		m.Release()
	}
}

// run owns the session: everything that touches it happens here.
func (w *Worker) run() {
	defer close(w.ended)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case m := <-w.inbox:
			kind, t0 := m.Kind, time.Now()
			outs := w.ses.Handle(m, w.now())
			if kind == wire.Params {
				w.times.decode.Add(int64(time.Since(t0)))
			}
			w.send(outs)
		case <-tick.C:
			w.send(w.ses.Tick(w.now()))
		case f := <-w.calls:
			f()
			continue // what the caller changed is no news to it
		case <-w.quit:
			w.send(w.ses.Leave())
			return
		}
		select {
		case w.poke <- struct{}{}:
		default:
		}
	}
}

func (w *Worker) now() time.Duration { return time.Since(w.start) }

func (w *Worker) send(outs []Out) {
	t0, bulk := time.Now(), false
	for i := range outs {
		o := &outs[i]
		conn, subject := w.opts.Control, comm.CoordSubject(w.opts.Job, w.opts.Worker)
		if o.Shard >= 0 {
			conn = w.opts.Conn
			subject = comm.ShardSubject(w.opts.Job, o.Shard, w.opts.Worker)
		}
		bulk = bulk || len(o.Tail) > 0
		// A message that cannot be sent is a lost message: the session asks again.
		if err := conn.Publish(subject, &o.H, o.Tail); err != nil {
			w.opts.Logger.Debug("not sent", "subject", subject, "err", err)
		}
	}
	if bulk {
		w.times.encode.Add(int64(time.Since(t0)))
	}
}

// call runs f on the goroutine that owns the session.
func (w *Worker) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case w.calls <- func() { f(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-w.ended:
		return errLeft
	}
}

// wait calls try on the owning goroutine until it says true, telling what is
// being waited for.
func (w *Worker) wait(ctx context.Context, try func() bool) error {
	t0, tellAt := time.Now(), time.Second
	every := time.NewTicker(250 * time.Millisecond)
	defer every.Stop()
	for {
		ok := false
		if err := w.call(ctx, func() { ok = try() }); err != nil || ok {
			return err
		}
		if waited := time.Since(t0); waited >= tellAt {
			if text := w.Waiting(); text != "" {
				tellAt = waited + max(time.Second, min(waited, 10*time.Second))
				w.opts.OnWait(text)
			}
		}
		select {
		case <-w.poke:
		case <-every.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ended:
			return errLeft
		}
	}
}

func (w *Worker) untilMember(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.opts.JoinTimeout)
	defer cancel()
	var err error
	werr := w.wait(ctx, func() bool {
		err = w.ses.Err()
		return err != nil || w.ses.inc != 0
	})
	if errors.Is(werr, context.DeadlineExceeded) {
		return fmt.Errorf("gave up after %v: %s", w.opts.JoinTimeout, w.Waiting())
	}
	return errors.Join(err, werr)
}

// Plan returns the job's plan: its layout, ranks and steps.
func (w *Worker) Plan() *Plan { return w.ses.plan }

// Pull waits for the next work: parameters of one version and the ranks to
// compute on it. Params is valid until the next Pull. It returns ErrDone or
// ErrStopped when the job has ended, *Rewound once after a rollback, and
// ErrHalted (wrapped) when an error ended the job.
func (w *Worker) Pull(ctx context.Context) (Work, error) {
	t0 := time.Now()
	defer func() { w.times.waiting.Add(int64(time.Since(t0))) }()
	var work Work
	var err error
	first := true
	werr := w.wait(ctx, func() bool {
		if err = w.ses.Err(); err != nil {
			return true
		}
		if to, ok := w.ses.Rewound(); ok {
			err = &Rewound{to}
			return true
		}
		var ok bool
		if work, ok = w.ses.Take(w.now()); !ok && first {
			first = false
			w.send(w.ses.Advance(w.now())) // the parameters lent before are free
		}
		return ok
	})
	return work, errors.Join(werr, err)
}

// Push hands over a rank's gradient. It returns at once; the slices belong to
// the worker until a later version is pulled. ErrNotMine means that the rank
// was moved or the job rewound meanwhile: drop the work and call Pull.
func (w *Worker) Push(ctx context.Context, c Contribution) error {
	if c.State == nil {
		c.State = w.states[c.Rank]
	}
	var err error
	if cerr := w.call(ctx, func() {
		var outs []Out
		outs, err = w.ses.Push(c, w.now())
		w.send(outs)
	}); cerr != nil {
		return cerr
	}
	return err
}

// PushPull pushes contributions and waits for the next work. Contributions of
// ranks that were moved meanwhile are dropped.
func (w *Worker) PushPull(ctx context.Context, cs ...Contribution) (Work, error) {
	for _, c := range cs {
		if err := w.Push(ctx, c); err != nil && !errors.Is(err, ErrNotMine) {
			return Work{}, err
		}
	}
	return w.Pull(ctx)
}

// SaveState sets the opaque state of a rank that travels with its next push:
// what whoever computes the following step needs (a data cursor, say). It
// counts only in jobs with `rank_state: true`.
func (w *Worker) SaveState(rank int, state []byte) { w.states[rank] = state }

// LoadState fetches the state that rank had before step: for the ranks in
// Work.Gained, with Work.Step. There is none at step 0: the error is then
// wire.ErrGone.
func (w *Worker) LoadState(ctx context.Context, rank int, step uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var state []byte
	var err error
	asked := time.Duration(-1)
	werr := w.wait(ctx, func() bool {
		var ok bool
		if state, ok, err = w.ses.Loaded(rank, step); ok {
			return true
		}
		if now := w.now(); asked < 0 || now-asked > 200*time.Millisecond {
			asked = now
			w.send(w.ses.LoadState(rank, step, now))
		}
		return false
	})
	return state, errors.Join(werr, err)
}

// Report sends one named number of a step to the job's metrics. It may get
// lost.
func (w *Worker) Report(ctx context.Context, step uint64, name string, x float64) error {
	return w.call(ctx, func() { w.send(w.ses.Metric(step, name, x, w.now())) })
}

// Flush waits until everything pushed is acknowledged at the job's level:
// applied, or in a recorded checkpoint (`level: durable`).
func (w *Worker) Flush(ctx context.Context) error {
	var err error
	werr := w.wait(ctx, func() bool {
		err = w.ses.Err()
		return w.ses.Acknowledged() || err != nil
	})
	if errors.Is(err, ErrDone) {
		err = nil
	}
	return errors.Join(werr, err)
}

// Waiting says what the worker waits for, or "" when for nothing.
func (w *Worker) Waiting() string {
	var text string
	if err := w.call(context.Background(), func() { text = w.ses.Waiting(w.now()) }); err != nil {
		return "nothing: " + err.Error()
	}
	return text
}

// Times returns where the time went so far.
func (w *Worker) Times() Times {
	return Times{time.Duration(w.times.encode.Load()), time.Duration(w.times.decode.Load()), time.Duration(w.times.waiting.Load())}
}

// Stats returns the session's totals.
func (w *Worker) Stats() SessionStats {
	var s SessionStats
	if err := w.call(context.Background(), func() { s = w.ses.Stats() }); err != nil {
		return w.ses.Stats() // the owning goroutine has ended
	}
	return s
}

// Close leaves the job and waits until nothing of the worker runs any more.
// The connection stays open.
func (w *Worker) Close() error {
	w.once.Do(func() { close(w.quit) })
	<-w.ended
	return w.unsubscribe()
}

func (w *Worker) unsubscribe() error {
	var errs []error
	for _, s := range w.subs {
		errs = append(errs, s.Unsubscribe())
	}
	w.subs = nil
	return errors.Join(errs...)
}
