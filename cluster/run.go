package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/checkpoint"
	"tributary/cluster/authority"
	"tributary/comm"
	"tributary/comm/wire"
	"tributary/job"
	"tributary/ledger"
	"tributary/shard"
)

// jobRun is this node's part of one job.
type jobRun struct {
	node *Node
	rec  *job.Record
	pipe *job.Pipeline
	dir  string
	log  *slog.Logger
	mine []int // shards placed here
	cd   *coordDriver
}

func newJobRun(n *Node, rec *job.Record) (*jobRun, error) {
	pipe, err := job.Compile(rec)
	if err != nil {
		return nil, err
	}
	r := &jobRun{node: n, rec: rec, pipe: pipe, dir: filepath.Join(n.opts.Dir, rec.Name), log: n.opts.Logger.With("job", rec.Name)}
	for k, owner := range rec.Owners {
		if owner == n.opts.Name {
			r.mine = append(r.mine, k)
		}
	}
	if rec.Coordinator == n.opts.Name {
		r.cd = newCoordDriver(r)
	}
	if len(r.mine) == 0 && r.cd == nil {
		return nil, nil
	}
	return r, nil
}

func (r *jobRun) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range r.mine {
		g.Go(func() error { return r.runShard(ctx, k) })
	}
	if r.cd != nil {
		g.Go(func() error { return r.cd.run(ctx) })
	}
	return g.Wait()
}

// runShard takes a new epoch for the shard, then drives it.
func (r *jobRun) runShard(ctx context.Context, k int) error {
	epoch, err := bump(ctx, r.node.opts.Auth, shardKey(r.rec.Name, k), []byte(`{"owner":"`+r.node.opts.Name+`"}`))
	if err != nil {
		return fmt.Errorf("shard %d: epoch: %w", k, err)
	}
	cfg := r.pipe.ShardConfig(k)
	cfg.Epoch = epoch
	start := time.Now()
	cfg.Clock = func() time.Duration { return time.Since(start) }
	d := &shardDriver{run: r, id: k, sh: shard.New(cfg), start: start, store: checkpoint.Dir{Path: r.dir},
		inbox: make(chan *wire.Message, 256), calls: make(chan func() []shard.Out, 16)}
	return d.drive(ctx)
}

// bump writes value under key whatever is there and returns the new revision:
// an ever larger number, which is what epochs and incarnations are.
func bump(ctx context.Context, a authority.Authority, key string, value []byte) (uint64, error) {
	for {
		var expect uint64
		switch e, err := a.Get(ctx, key); {
		case err == nil:
			expect = e.Revision
		case !errors.Is(err, authority.ErrNotFound):
			if ctx.Err() != nil {
				return 0, err
			}
			if !pause(ctx, 200*time.Millisecond) {
				return 0, ctx.Err()
			}
			continue
		}
		rev, err := a.CAS(ctx, authority.Op{Key: key, Value: value, Expect: expect})
		if err == nil {
			return rev, nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return 0, ctx.Err()
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// shardDriver gives one shard a goroutine, its subscriptions, its files and
// the time.
type shardDriver struct {
	run   *jobRun
	id    int
	sh    *shard.Shard
	start time.Time
	store checkpoint.Dir
	inbox chan *wire.Message
	calls chan func() []shard.Out // results of file work
	cuts  int
}

func (d *shardDriver) drive(ctx context.Context) error {
	o := d.run.node.opts
	name := d.run.rec.Name
	g, ctx := errgroup.WithContext(ctx)
	take := func(_ string, m *wire.Message) {
		select {
		case d.inbox <- m:
		case <-ctx.Done():
			m.Release()
		}
	}
	for _, s := range []struct {
		conn    comm.Conn
		subject string
	}{{o.Data, comm.ShardAll(name, d.id)}, {o.Control, comm.PeerSubject(name)}, {o.Control, comm.NewsSubject(name)}} {
		sub, err := s.conn.Subscribe(s.subject, take)
		if err != nil {
			return fmt.Errorf("shard %d: %w", d.id, err)
		}
		defer sub.Unsubscribe()
	}
	g.Go(func() error {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case m := <-d.inbox:
				d.do(ctx, g, d.sh.Handle(m, d.now()))
			case <-tick.C:
				d.do(ctx, g, d.sh.Tick(d.now()))
			case f := <-d.calls:
				d.do(ctx, g, f())
			case <-ctx.Done():
				return nil
			}
			d.retain()
		}
	})
	return g.Wait()
}

func (d *shardDriver) now() time.Duration { return time.Since(d.start) }

// do performs the shard's outputs. A message that cannot be sent is a lost
// message; whoever misses it asks again.
func (d *shardDriver) do(ctx context.Context, g *errgroup.Group, outs []shard.Out) {
	o, name := &d.run.node.opts, d.run.rec.Name
	for i := range outs {
		x := &outs[i]
		var err error
		switch x.Kind {
		case shard.ToWorker:
			err = o.Data.Publish(comm.WorkerSubject(name, x.Worker), &x.H, x.Tail)
		case shard.ToWorkers:
			err = o.Data.Publish(comm.ParamsSubject(name), &x.H, x.Tail)
		case shard.ToCoord:
			err = o.Control.Publish(comm.CoordSubject(name, fmt.Sprintf("shard-%d", d.id)), &x.H, x.Tail)
		case shard.ToPeers:
			err = o.Control.Publish(comm.PeerSubject(name), &x.H, x.Tail)
		case shard.SaveCut:
			d.save(ctx, g, x.Cut, x)
		case shard.LoadCut:
			d.load(ctx, g, x.Cut)
		}
		if err != nil {
			d.run.log.Debug("not sent", "shard", d.id, "kind", x.H.Kind, "err", err)
		}
	}
}

// save writes a cut beside the running shard; training does not stop for it.
func (d *shardDriver) save(ctx context.Context, g *errgroup.Group, id ledger.CutID, x *shard.Out) {
	sections := x.Sections
	g.Go(func() error {
		err := d.store.Save(d.id, id, sections)
		if err != nil {
			d.run.log.Error("cut not saved", "shard", d.id, "step", id.Step, "err", err)
		}
		d.later(ctx, func() []shard.Out {
			if err != nil {
				return d.sh.CutFailed(id, false, err)
			}
			return d.sh.CutSaved(id, d.now())
		})
		return nil
	})
}

func (d *shardDriver) load(ctx context.Context, g *errgroup.Group, id ledger.CutID) {
	g.Go(func() error {
		sections, err := d.store.Load(d.id, id)
		if err != nil {
			d.run.log.Error("cut not loaded", "shard", d.id, "step", id.Step, "err", err)
		}
		d.later(ctx, func() []shard.Out {
			if err != nil {
				return d.sh.CutFailed(id, true, err)
			}
			return d.sh.CutLoaded(id, sections, d.now())
		})
		return nil
	})
}

func (d *shardDriver) later(ctx context.Context, f func() []shard.Out) {
	select {
	case d.calls <- f:
	case <-ctx.Done():
	}
}

// retain removes files of cuts that newer recorded ones have replaced.
func (d *shardDriver) retain() {
	cuts := d.sh.Ledger().Cuts
	if len(cuts) == d.cuts {
		return
	}
	d.cuts = len(cuts)
	keep := cuts[max(0, len(cuts)-max(1, d.run.pipe.Keep)):]
	if err := d.store.Retain(d.id, keep); err != nil {
		d.run.log.Warn("old cuts not removed", "shard", d.id, "err", err)
	}
}

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
		met: newMetrics(r.rec, r.pipe, r.dir)}
}

func (d *coordDriver) now() time.Duration { return time.Since(d.start) }

func (d *coordDriver) run0(ctx context.Context) error {
	history, err := readLog(ctx, d.run.node.opts.Auth, d.run.rec.Name)
	if err != nil {
		return err
	}
	cfg := d.run.pipe.CoordConfig()
	cfg.Nonce = rand.Uint64()
	if cfg.Spec, err = json.Marshal(d.run.rec); err != nil {
		return fmt.Errorf("encode job: %w", err)
	}
	d.c = job.NewCoord(cfg, history, d.now())
	d.met.history(history)
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
			return nil, fmt.Errorf("decision %s: number %d after %d", e.Key, d.N, len(ds))
		}
		ds = append(ds, d)
	}
	return ds, nil
}

func (d *coordDriver) run(ctx context.Context) error { return d.drive(ctx) }

func (d *coordDriver) drive(ctx context.Context) error {
	if err := d.run0(ctx); err != nil {
		return err
	}
	defer d.met.close()
	g, ctx := errgroup.WithContext(ctx)
	sub, err := d.run.node.opts.Control.Subscribe(comm.CoordAll(d.run.rec.Name), func(_ string, m *wire.Message) {
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

func (d *coordDriver) do(ctx context.Context, g *errgroup.Group, outs []job.Out) {
	o, name := &d.run.node.opts, d.run.rec.Name
	for i := range outs {
		x := &outs[i]
		var err error
		switch x.Kind {
		case job.ToWorker:
			err = o.Control.Publish(comm.WorkerSubject(name, x.Worker), &x.H, x.Tail)
		case job.ToShard:
			err = o.Control.Publish(comm.ShardSubject(name, x.Shard, "coordinator"), &x.H, x.Tail)
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
