package cluster

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/checkpoint"
	"tributary/comm"
	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/shard"
)

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
	take := func(subject string, m *wire.Message) {
		if !d.vouched(subject, m) {
			m.Release()
			return
		}
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

// vouched says whether a message from a worker is by the one its subject names
// (C8): a broker binds subjects to keys, headers are just bytes. Any other is
// answered, to whom the subject names, and dropped.
func (d *shardDriver) vouched(subject string, m *wire.Message) bool {
	name := d.run.rec.Name
	if subject == comm.PeerSubject(name) || subject == comm.NewsSubject(name) {
		return true
	}
	from := comm.Sender(subject)
	switch m.Kind {
	case wire.Push, wire.Pull, wire.Where, wire.State, wire.AskState:
		if from == m.Worker && !comm.ReservedWorker(from) {
			return true
		}
	default:
		if from == comm.Coordinator {
			return true
		}
	}
	h := wire.Header{Kind: wire.Ack, Job: name, Shard: uint32(d.id), Rank: m.Rank, Step: m.Step, Chunk: m.Chunk, Code: wire.ErrForbidden,
		Text: fmt.Sprintf("%s may not send this as %q", from, m.Worker)}
	if err := d.run.node.opts.Data.Publish(comm.WorkerSubject(name, from), &h, nil); err != nil {
		d.run.log.Debug("not sent", "kind", h.Kind, "err", err)
	}
	d.run.log.Warn("refused: the header names another sender than the subject", "shard", d.id, "from", from, "worker", m.Worker)
	return false
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
			err = o.Control.Publish(comm.CoordSubject(name, comm.ShardSender(d.id)), &x.H, x.Tail)
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

// retain removes files of cuts that newer recorded ones have replaced. A newer
// cut that waits to be recorded stays, and so does what a restarted node has
// not yet learnt the decision of.
func (d *shardDriver) retain() {
	led := d.sh.Ledger()
	if len(led.Cuts) == d.cuts {
		return
	}
	d.cuts = len(led.Cuts)
	if err := d.store.Retain(d.id, func(id ledger.CutID) bool { return led.Obsolete(id, d.run.pipe.Keep) }); err != nil {
		d.run.log.Warn("old cuts not removed", "shard", d.id, "err", err)
	}
}
