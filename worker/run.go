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

// trainer pulls, computes and pushes. It is used by one goroutine.
type trainer struct {
	opts Options
	w    *client.Worker
	calc *calculator
	res  Result
	// evaluated is the newest update after which the model was evaluated: several
	// steps may be computed on one version.
	evaluated uint64
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
	calc, err := newCalculator(task, plan)
	if err != nil {
		return nil, fmt.Errorf("job %q: %w", o.Job, err)
	}
	return &trainer{opts: o, w: w, calc: calc}, nil
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
			err := t.w.Push(ctx, t.calc.contribution(&work, rank))
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

// evaluate measures the model on the test part where the job asks for it.
func (t *trainer) evaluate(ctx context.Context, work *client.Work) {
	task := t.calc.task
	made, due := t.due(work)
	if !due {
		return
	}
	params, err := t.w.EvalParams(ctx, work)
	if err != nil {
		t.opts.Logger.Warn("not evaluated", "step", made, "err", err)
		return
	}
	t.evaluated = made
	loss, correct := t.calc.model.Eval(params, task.Test.X, task.Test.Y, task.Test.N)
	accuracy := float64(correct) / float64(task.Test.N)
	err = errors.Join(t.w.Report(ctx, made, "accuracy", accuracy), t.w.Report(ctx, made, "test_loss", loss))
	if err != nil {
		t.opts.Logger.Debug("accuracy not sent", "err", err)
	}
}

// due says whether the model is evaluated before work is computed, and how many
// updates its parameters have. The worker that serves rank 0 does it for all.
func (t *trainer) due(work *client.Work) (made uint64, due bool) {
	every := t.calc.task.Spec.Eval.Every
	if made = work.Update - 1; t.calc.plan.Staleness > 0 { // work is computed on older ones
		made = work.Version
	}
	return made, every > 0 && made > 0 && made%every == 0 && made != t.evaluated && work.Phase == 0 && work.Ranks[0] == 0
}
