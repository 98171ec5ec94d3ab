package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/cluster/authority"
	"tributary/comm"
	"tributary/comm/wire"
	"tributary/job"
	"tributary/ledger"
)

// coordDriver gives a job's coordinator a goroutine, the authority and the
// time.
type coordDriver struct {
	run   *jobRun
	c     *job.Coord
	start time.Time
	inbox chan *wire.Message
	calls chan func() []job.Out
	met   *metrics
}

func newCoordDriver(r *jobRun) *coordDriver {
	return &coordDriver{run: r, start: time.Now(), inbox: make(chan *wire.Message, 1024), calls: make(chan func() []job.Out, 64),
		met: newMetrics(r.pipe, r.report(), r.log)}
}

func (d *coordDriver) now() time.Duration { return time.Since(d.start) }

// begin reads the decisions so far and makes the coordinator that continues
// them.
func (d *coordDriver) begin(ctx context.Context) error {
	history, err := readLog(ctx, d.run.node.opts.Auth, d.run.rec.Name)
	for ; err != nil; history, err = readLog(ctx, d.run.node.opts.Auth, d.run.rec.Name) {
		if errors.Is(err, ledger.ErrDecision) || !pause(ctx, 500*time.Millisecond) {
			return err
		}
		d.run.log.Warn("the coordinator waits for the authority", "err", err)
	}
	cfg := d.run.pipe.CoordConfig()
	cfg.Nonce = rand.Uint64()
	if cfg.Spec, err = d.run.rec.Encode(); err != nil {
		return err
	}
	d.c = job.NewCoord(cfg, history, d.now())
	for _, dec := range history {
		d.met.decided(dec)
	}
	return nil
}

// readLog returns the decisions of a job in order.
func readLog(ctx context.Context, a authority.Authority, name string) ([]*ledger.Decision, error) {
	entries, err := a.List(ctx, "log."+name+".")
	if err != nil {
		return nil, fmt.Errorf("read decisions of %q: %w", name, err)
	}
	var ds []*ledger.Decision
	for _, e := range entries {
		d, err := ledger.Decode(e.Value)
		if err != nil {
			return nil, fmt.Errorf("decision %s: %w", e.Key, err)
		}
		if d.N != uint64(len(ds))+1 {
			return nil, fmt.Errorf("%w %s: number %d after %d", ledger.ErrDecision, e.Key, d.N, len(ds))
		}
		ds = append(ds, d)
	}
	return ds, nil
}

func (d *coordDriver) drive(ctx context.Context) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.met.close()
	g, ctx := errgroup.WithContext(ctx)
	sub, err := d.run.node.opts.Control.Subscribe(comm.CoordAll(d.run.rec.Name), func(subject string, m *wire.Message) {
		if !vouchedForCoord(comm.Sender(subject), m) {
			d.run.log.Warn("refused: the header names another sender than the subject", "subject", subject, "worker", m.Worker)
			m.Release()
			return
		}
		select {
		case d.inbox <- m:
		case <-ctx.Done():
			m.Release()
		}
	})
	if err != nil {
		return fmt.Errorf("coordinator: %w", err)
	}
	defer sub.Unsubscribe()
	g.Go(func() error {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case m := <-d.inbox:
				d.do(ctx, g, d.c.Handle(m, d.now()))
			case <-tick.C:
				d.do(ctx, g, d.c.Tick(d.now()))
				d.met.status(d.c.Status(d.now()))
			case f := <-d.calls:
				d.do(ctx, g, f())
				d.met.status(d.c.Status(d.now()))
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// vouchedForCoord says whether a message is by the worker or shard that its
// subject names.
func vouchedForCoord(from string, m *wire.Message) bool {
	switch m.Kind {
	case wire.Join, wire.Beat, wire.Leave, wire.Metric, wire.Bad:
		return from == m.Worker && !comm.ReservedWorker(from)
	case wire.AskNews:
		if m.Worker != "" {
			return from == m.Worker
		}
	}
	return from == comm.ShardSender(int(m.Shard))
}

func (d *coordDriver) do(ctx context.Context, g *errgroup.Group, outs []job.Out) {
	o, name := &d.run.node.opts, d.run.rec.Name
	for i := range outs {
		x := &outs[i]
		var err error
		switch x.Kind {
		case job.ToWorker:
			err = o.Control.Publish(comm.WorkerSubject(name, x.Worker), &x.H, x.Tail)
		case job.ToShard:
			err = o.Control.Publish(comm.ShardSubject(name, x.Shard, comm.Coordinator), &x.H, x.Tail)
		case job.ToAll:
			err = o.Control.Publish(comm.NewsSubject(name), &x.H, x.Tail)
		case job.Propose:
			dec := x.Decision
			g.Go(func() error { d.propose(ctx, dec); return nil })
		case job.Enlist:
			worker, nonce := x.Worker, x.Nonce
			g.Go(func() error { d.enlist(ctx, worker, nonce); return nil })
		case job.NoteLoss:
			d.met.losses(x.Step, x.Losses)
		case job.NoteStep:
			d.met.named(x.Step, x.Text, x.Losses[0])
		case job.Note:
			d.run.log.Info(x.Text)
		}
		if err != nil {
			d.run.log.Debug("not sent", "kind", x.H.Kind, "err", err)
		}
	}
}

// propose creates the decision under its number. If somebody else was first,
// or a time-out leaves it open, what stands there now is the decision.
func (d *coordDriver) propose(ctx context.Context, dec *ledger.Decision) {
	ctx2, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	key := logKey(d.run.rec.Name, dec.N)
	stands := dec
	if _, err := d.run.node.opts.Auth.CAS(ctx2, authority.Op{Key: key, Value: dec.Encode()}); err != nil {
		stands = nil
		if e, gerr := d.run.node.opts.Auth.Get(ctx2, key); gerr == nil {
			if stands, gerr = ledger.Decode(e.Value); gerr != nil {
				d.run.log.Error("decision cannot be read", "key", key, "err", gerr)
			}
		} else {
			d.run.log.Warn("decision not made; trying again", "kind", dec.Kind, "err", err)
			pause(ctx, 200*time.Millisecond)
		}
	}
	d.later(ctx, func() []job.Out {
		if stands != nil {
			d.met.decided(stands)
		}
		return d.c.Decided(stands, d.now())
	})
}

func (d *coordDriver) enlist(ctx context.Context, worker string, nonce uint64) {
	ctx2, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	inc, err := bump(ctx2, d.run.node.opts.Auth, workerKey(d.run.rec.Name, worker), fmt.Appendf(nil, `{"nonce":%d}`, nonce))
	if err != nil {
		d.run.log.Warn("worker not enlisted; it will ask again", "worker", worker, "err", err)
	}
	d.later(ctx, func() []job.Out { return d.c.Enlisted(worker, nonce, inc, d.now()) })
}

func (d *coordDriver) later(ctx context.Context, f func() []job.Out) {
	select {
	case d.calls <- f:
	case <-ctx.Done():
	}
}
