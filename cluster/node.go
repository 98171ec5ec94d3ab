// Package cluster runs shards and coordinators on parameter-server nodes: thin
// drivers that own goroutines, connections, files and clocks around the pure
// state machines of shard and job. Follow a push through [shardDriver.drive].
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/cluster/authority"
	"tributary/comm"
	"tributary/job"
)

// Options configure a node.
type Options struct {
	Name string // unique among the nodes; letters, digits, - and _
	Dir  string // where this node keeps cuts and metrics
	// Data carries tensors, Control everything small, so that a heartbeat never
	// queues behind a gradient.
	Data, Control comm.Conn
	Auth          authority.Authority
	Logger        *slog.Logger
	LeaseTTL      time.Duration // default 3 s
	// Report is where the coordinators on this node write what they measure:
	// metrics.jsonl and decisions.jsonl. Default: Dir/<job>.
	Report string
}

// Node is one parameter-server process.
type Node struct {
	opts Options
	mu   sync.Mutex
	jobs map[string]*jobRun // guarded by mu
}

// NewNode returns a node that Run will start.
func NewNode(o Options) (*Node, error) {
	if err := comm.ValidToken(o.Name); err != nil {
		return nil, fmt.Errorf("node name: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.LeaseTTL == 0 {
		o.LeaseTTL = 3 * time.Second
	}
	return &Node{opts: o, jobs: map[string]*jobRun{}}, nil
}

// Keys of the authority.
const (
	nodePrefix = "node."
	jobPrefix  = "job."
)

func logKey(job string, n uint64) string  { return fmt.Sprintf("log.%s.%010d", job, n) }
func shardKey(job string, k int) string   { return fmt.Sprintf("shard.%s.%d", job, k) }
func workerKey(job, worker string) string { return fmt.Sprintf("worker.%s.%s", job, worker) }
func jobKey(name string) string           { return jobPrefix + name }

// Run takes the node's lease, then runs every job that placement gives it a
// part of, until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	lease, err := n.takeLease(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.keepLease(ctx, lease) })
	g.Go(func() error { return n.watchJobs(ctx, g) })
	err = g.Wait()
	release, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if rerr := lease.Release(release); rerr != nil {
		n.opts.Logger.Debug("lease not released; it expires by itself", "err", rerr)
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// takeLease waits for the lease of an earlier process of this name to expire.
func (n *Node) takeLease(ctx context.Context) (authority.Lease, error) {
	told := false
	for deadline := time.Now().Add(4 * n.opts.LeaseTTL); ; {
		lease, err := n.opts.Auth.Lease(ctx, nodePrefix+n.opts.Name, []byte("{}"), n.opts.LeaseTTL)
		if err == nil {
			return lease, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, fmt.Errorf("node %s: its name is in use by another live process, or the authority does not answer: %w", n.opts.Name, err)
		}
		if !told {
			told = true
			n.opts.Logger.Info("waiting for the lease of an earlier process of this name to expire", "node", n.opts.Name, "ttl", n.opts.LeaseTTL)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keepLease renews the lease. When it is lost (the broker was away for longer
// than its time) a new one is taken; what the node owns is guarded by epochs.
func (n *Node) keepLease(ctx context.Context, lease authority.Lease) error {
	t := time.NewTicker(n.opts.LeaseTTL / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		err := lease.Renew(ctx)
		if errors.Is(err, authority.ErrLeaseLost) {
			if l, lerr := n.opts.Auth.Lease(ctx, nodePrefix+n.opts.Name, []byte("{}"), n.opts.LeaseTTL); lerr == nil {
				lease = l
			}
		}
		if err != nil && ctx.Err() == nil {
			n.opts.Logger.Warn("lease not renewed", "err", err)
		}
	}
}

// watchJobs starts this node's part of every job in the authority.
func (n *Node) watchJobs(ctx context.Context, g *errgroup.Group) error {
	entries, err := n.opts.Auth.Watch(ctx, jobPrefix)
	if err != nil {
		return fmt.Errorf("watch jobs: %w", err)
	}
	for e := range entries {
		if e.Deleted || !strings.HasPrefix(e.Key, jobPrefix) {
			continue
		}
		rec, err := job.DecodeRecord(e.Value)
		if err != nil {
			n.opts.Logger.Error("job cannot run here", "key", e.Key, "err", err)
			continue
		}
		n.mu.Lock()
		_, have := n.jobs[rec.Name]
		n.mu.Unlock()
		if have {
			continue
		}
		run, err := newJobRun(n, rec)
		if err != nil {
			n.opts.Logger.Error("job cannot run here", "job", rec.Name, "err", err)
			continue
		}
		if run == nil {
			continue // no part of it is placed here
		}
		n.mu.Lock()
		n.jobs[rec.Name] = run
		n.mu.Unlock()
		g.Go(func() error {
			if err := run.run(ctx); err != nil && ctx.Err() == nil {
				n.opts.Logger.Error("job ended with an error", "job", rec.Name, "err", err)
			}
			return nil
		})
	}
	if ctx.Err() == nil {
		return errors.New("the watch for jobs ended; is the broker gone for good?")
	}
	return nil
}
