package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/checkpoint"
	"tributary/cluster/authority"
	"tributary/comm/wire"
	"tributary/job"
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
	mu   sync.Mutex
	held []*shardDriver // of mine, those that run; guarded by mu
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

// report is where this job's coordinator writes what it measures.
func (r *jobRun) report() string {
	if r.node.opts.Report != "" {
		return r.node.opts.Report
	}
	return r.dir
}

func (r *jobRun) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range r.mine {
		g.Go(func() error { return r.runShard(ctx, k) })
	}
	if r.cd != nil {
		g.Go(func() error { return r.cd.drive(ctx) })
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
	r.mu.Lock()
	r.held = append(r.held, d)
	r.mu.Unlock()
	return d.drive(ctx)
}

// stats collects the totals of the shards here, each on its own goroutine.
func (r *jobRun) stats(ctx context.Context) ([]ShardStats, error) {
	r.mu.Lock()
	held := slices.Clone(r.held)
	r.mu.Unlock()
	out := make([]ShardStats, 0, len(held))
	for _, d := range held {
		answer := make(chan shard.Stats, 1)
		d.later(ctx, func() []shard.Out { answer <- d.sh.Stats(); return nil })
		select {
		case s := <-answer:
			out = append(out, ShardStats{d.id, r.node.opts.Name, s})
		case <-ctx.Done():
			return nil, fmt.Errorf("shard %d is busy: %w", d.id, ctx.Err())
		}
	}
	return out, nil
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
