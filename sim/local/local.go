// Package local runs a whole cluster inside one process, over the in-process
// transport: for examples, tests and experiments. The servers are the real
// ones; only the network, the authority's store and the processes are not.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/client"
	"tributary/cluster"
	"tributary/cluster/authority"
	"tributary/comm"
	"tributary/job"
)

// Options configure a cluster.
type Options struct {
	Servers int          // default 1
	Dir     string       // where servers keep checkpoints; empty: a temporary folder that Close removes
	Logger  *slog.Logger // nil discards
}

// Cluster is running servers. Its methods may be called concurrently.
type Cluster struct {
	net    *comm.Memory
	auth   authority.Authority
	cancel context.CancelFunc
	group  *errgroup.Group
	link   comm.Conn // of Fetch
	remove string
}

// Start starts servers, which live until Close or the end of ctx.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{net: comm.NewMemory(), auth: authority.NewMemory(nil)}
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "tributary-local-")
		if err != nil {
			return nil, fmt.Errorf("local cluster: %w", err)
		}
		o.Dir, c.remove = dir, dir
	}
	ctx, c.cancel = context.WithCancel(ctx)
	c.group, ctx = errgroup.WithContext(ctx)
	c.link = c.net.Connect("reader")
	for i := range max(1, o.Servers) {
		name := fmt.Sprintf("ps-%d", i+1)
		data, control := c.net.Connect(name+" data"), c.net.Connect(name+" control")
		n, err := cluster.NewNode(cluster.Options{Name: name, Dir: filepath.Join(o.Dir, name), Data: data, Control: control, Auth: c.auth, Logger: o.Logger})
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		c.group.Go(func() error { return errors.Join(n.Run(ctx), data.Close(), control.Close()) })
	}
	return c, nil
}

// Connect returns a connection for a worker, which closes it.
func (c *Cluster) Connect(name string) comm.Conn { return c.net.Connect(name) }

// Submit hands a job to the servers, waiting until as many as it wants are up.
func (c *Cluster) Submit(ctx context.Context, r *job.Record) (*job.Record, error) {
	for {
		placed, err := cluster.Submit(ctx, c.auth, r)
		if !errors.Is(err, cluster.ErrTooFewNodes) {
			return placed, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Fetch reads the model of a job that has ended.
func (c *Cluster) Fetch(ctx context.Context, r *job.Record) (*client.Snapshot, error) {
	p, err := job.Compile(r)
	if err != nil {
		return nil, err
	}
	return client.Fetch(ctx, c.link, c.link, p)
}

// Close stops the servers and waits for them.
func (c *Cluster) Close() error {
	c.cancel()
	err := errors.Join(c.group.Wait(), c.link.Close())
	if c.remove != "" {
		err = errors.Join(err, os.RemoveAll(c.remove))
	}
	return err
}
