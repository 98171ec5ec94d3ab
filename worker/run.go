package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"tributary/client"
	"tributary/comm"
	"tributary/job"
	"tributary/train"
)

// Options say which job to work for.
type Options struct {
	Data, Control comm.Conn // as in client.Options
	Job           string
	Name          string // unique among the job's workers
	Replace       bool   // take the name over from a live process
	Logger        *slog.Logger
	OnWait        func(text string) // told what is being waited for; nil logs it
	JoinTimeout   time.Duration     // longest wait for the job's coordinator; 0: one minute
	// Patience is the longest wait for anything after that, such as a server
	// that is away; 0: ten minutes.
	Patience time.Duration
}

const defaultPatience = 10 * time.Minute

// Result says what a worker did.
type Result struct {
	Pushed uint64 // contributions handed over
	Ended  string // why it stopped: "finished", "stopped", "cancelled"
	Wire   client.SessionStats
}

// Run joins the job and computes the ranks it is given until the job finishes
// or stops, or ctx ends: all three are no error. A job that halts is one.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Patience == 0 {
		o.Patience = defaultPatience
	}
	var rec *job.Record
	w, err := client.Join(ctx, client.Options{Conn: o.Data, Control: o.Control, Job: o.Job, Worker: o.Name, Replace: o.Replace,
		Logger: o.Logger, OnWait: o.OnWait, JoinTimeout: o.JoinTimeout, Open: func(b []byte) (*client.Plan, error) {
			var err error
			if rec, err = job.DecodeRecord(b); err != nil {
				return nil, err
			}
			return client.OpenPlan(b)
		}})
	if err != nil {
		return ended(ctx, Result{}, err)
	}
	t, err := newTrainer(w, rec, o)
	if err == nil {
		err = t.loop(ctx)
	}
	res := Result{}
	if t != nil {
		res = t.res
	}
	res.Wire = w.Stats()
	return ended(ctx, res, errors.Join(err, w.Close()))
}

// ended sorts the good ends from the bad ones.
func ended(ctx context.Context, r Result, err error) (Result, error) {
	switch {
	case errors.Is(err, client.ErrDone):
		r.Ended = "finished"
	case errors.Is(err, client.ErrStopped):
		r.Ended = "stopped"
	case ctx.Err() != nil:
		r.Ended = "cancelled"
	default:
		return r, err
	}
	return r, nil
}

// trainer computes gradients. It is used by one goroutine.
type trainer struct {
	opts    Options
	w       *client.Worker
	task    *Task
	model   train.Model
	sampler *train.Sampler
	x       []float32
	y       []int32
	indices []int
	grads   map[slotKey][]float32
	depth   uint64
	res     Result
}

// A gradient belongs to the session until its step is applied, which is at the
// latest when step + staleness + 1 is handed out.
type slotKey struct {
	rank int
	slot uint64
}

func newTrainer(w *client.Worker, rec *job.Record, o Options) (*trainer, error) {
	task, err := NewTask(rec.Spec)
	if err != nil {
		return nil, fmt.Errorf("job %q: %w", o.Job, err)
	}
	plan := w.Plan()
	if err := task.matches(plan.Layout); err != nil {
		return nil, fmt.Errorf("job %q: %w", o.Job, err)
	}
	m, err := task.NewModel()
	if err != nil {
		return nil, err
	}
	n := rec.Spec.Batch
	return &trainer{opts: o, w: w, task: task, model: m, sampler: train.NewSampler(task.Train.N, plan.Ranks, rec.Spec.Seed),
		x: make([]float32, n*task.Train.Dim), y: make([]int32, n), grads: map[slotKey][]float32{},
		depth: uint64(max(plan.Staleness, 0) + 2)}, nil
}

func (t *trainer) loop(ctx context.Context) error {
	for {
		work, err := t.pull(ctx)
		if rw := (*client.Rewound)(nil); errors.As(err, &rw) {
			t.opts.Logger.Warn("the job was rewound; computing on from there", "step", rw.Step)
			continue
		}
		if err != nil {
			return err
		}
		t.evaluate(ctx, &work)
		for _, rank := range work.Ranks {
			err := t.w.Push(ctx, t.gradient(&work, rank))
			if err != nil && !errors.Is(err, client.ErrNotMine) {
				return err
			}
			if err == nil {
				t.res.Pushed++
			}
		}
	}
}

// pull waits for work, but not for ever.
func (t *trainer) pull(ctx context.Context) (client.Work, error) {
	limited, cancel := context.WithTimeout(ctx, t.opts.Patience)
	defer cancel()
	work, err := t.w.Pull(limited)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return work, fmt.Errorf("gave up after %v: %s", t.opts.Patience, t.w.Waiting())
	}
	return work, err
}

// gradient is what a rank pushes at a step: a function of the parameters, the
// seed, the rank and the step alone.
func (t *trainer) gradient(work *client.Work, rank int) client.Contribution {
	n := t.task.Spec.Batch
	t.indices, _ = t.sampler.Batch(t.indices[:0], rank, work.Step, n)
	t.task.Train.Gather(t.indices, t.x, t.y)
	key := slotKey{rank, work.Step % t.depth}
	g := t.grads[key]
	if g == nil {
		g = make([]float32, len(work.Params))
		t.grads[key] = g
	}
	loss, _ := t.model.Grad(work.Params, t.x, t.y, n, g)
	return client.Contribution{Rank: rank, Step: work.Step, Version: work.Version, Grad: g, Loss: loss, Examples: float64(n)}
}

// evaluate measures the model on the test part where the job asks for it. The
// worker that serves rank 0 does it for all.
func (t *trainer) evaluate(ctx context.Context, work *client.Work) {
	every := t.task.Spec.Eval.Every
	if every == 0 || work.Ranks[0] != 0 || work.Step == 0 || work.Step%every != 0 {
		return
	}
	loss, correct := t.model.Eval(work.Params, t.task.Test.X, t.task.Test.Y, t.task.Test.N)
	accuracy := float64(correct) / float64(t.task.Test.N)
	err := errors.Join(t.w.Report(ctx, work.Step, "accuracy", accuracy), t.w.Report(ctx, work.Step, "test_loss", loss))
	if err != nil {
		t.opts.Logger.Debug("accuracy not sent", "err", err)
	}
}
