package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"tributary/client"
	"tributary/cluster"
	"tributary/cluster/authority"
	"tributary/comm"
	"tributary/comm/broker"
	"tributary/job"
	"tributary/ledger"
	"tributary/worker"
)

// lab is a cluster in this process: real nodes and real workers, with or
// without a real broker between them.
type lab struct {
	dir     string
	connect func(name string) (comm.Conn, error)
	auth    authority.Authority
	mu      sync.Mutex
	jobs    int // submitted; guarded by mu
}

// newLab starts nodes that exchange messages inside the process.
func newLab(t *testing.T, nodes int) *lab {
	hub := comm.NewMemory()
	l := &lab{dir: t.TempDir(), auth: authority.NewMemory(nil),
		connect: func(name string) (comm.Conn, error) { return hub.Connect(name), nil }}
	l.startNodes(t, nodes)
	return l
}

// newBrokerLab starts nodes around a broker in this process, with the
// authority in its store.
func newBrokerLab(t *testing.T, nodes int) *lab {
	b, err := broker.Start(broker.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, b.Close()) })
	l := &lab{dir: t.TempDir(), connect: func(name string) (comm.Conn, error) {
		nc, err := b.Connect(comm.ConnOptions(name)...)
		if err != nil {
			return nil, err
		}
		return comm.DialNATS(context.Background(), comm.Options{Conn: nc, Name: name})
	}}
	own := l.conn(t, "authority")
	auth, err := authority.OpenJetStream(t.Context(), comm.Raw(own), authority.JetStreamOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, auth.Close()) })
	l.auth = auth
	l.startNodes(t, nodes)
	return l
}

func closed(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// conn connects until the test ends.
func (l *lab) conn(t *testing.T, name string) comm.Conn {
	t.Helper()
	c, err := l.connect(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(t, c.Close()) })
	return c
}

func (l *lab) startNodes(t *testing.T, nodes int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i+1)
		n, err := cluster.NewNode(cluster.Options{Name: name, Dir: filepath.Join(l.dir, name), Data: l.conn(t, name+" data"), Control: l.conn(t, name+" control"), Auth: l.auth,
			LeaseTTL: patience}) // nobody dies here, however busy the machine
		if err != nil {
			t.Fatal(err)
		}
		g.Go(func() error { return n.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); closed(t, g.Wait()) })
	await(t, patience, say("the nodes do not come up"), func() bool {
		names, err := cluster.Nodes(ctx, l.auth)
		return err == nil && len(names) == nodes
	})
}

// submit places a job under a name of its own.
func (l *lab) submit(t *testing.T, s *job.Spec) *job.Record {
	t.Helper()
	l.mu.Lock()
	l.jobs++
	s.Name = fmt.Sprintf("%s-%d", s.Name, l.jobs)
	l.mu.Unlock()
	rec, err := worker.NewRecord(s)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err = cluster.Submit(t.Context(), l.auth, rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// run runs a job to its end. With a seed other than 0, what the workers push
// arrives late and in another order.
func (l *lab) run(t *testing.T, s *job.Spec, seed uint64) *final {
	t.Helper()
	rec := l.submit(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for i := range s.Workers {
		name := fmt.Sprintf("w%d", i+1)
		data, control := l.conn(t, name+" data"), l.conn(t, name+" control")
		if seed != 0 {
			d := newDisorder(data, seed+uint64(i))
			defer d.end()
			data = d
		}
		g.Go(func() error {
			res, err := worker.Run(ctx, worker.Options{Data: data, Control: control, Job: s.Name, Name: name, Logger: slog.New(slog.DiscardHandler)})
			if err == nil && res.Ended != "finished" {
				err = fmt.Errorf("%s ended: %s", name, res.Ended)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatalf("job %s: %v", s.Name, err)
	}
	return l.final(t, rec)
}

// final reads what a finished job ended with.
func (l *lab) final(t *testing.T, rec *job.Record) *final {
	t.Helper()
	pipe, err := job.Compile(rec)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	snap, err := client.Fetch(ctx, l.conn(t, "reader data"), l.conn(t, "reader control"), pipe)
	if err != nil {
		t.Fatal(err)
	}
	if snap.Step != rec.Spec.Steps {
		t.Fatalf("job %s ended at step %d of %d", rec.Name, snap.Step, rec.Spec.Steps)
	}
	f := &final{params: floatBytes(snap.Params)}
	id := ledger.CutID{Timeline: snap.Timeline, Step: snap.Step * pipe.Phases}
	if f.cut, err = readCut(rec, func(owner string) string { return filepath.Join(l.dir, owner, rec.Name) }, id); err != nil {
		t.Fatal(err)
	}
	return f
}

// references are undisturbed runs in this process, by job.
var references = struct {
	sync.Mutex
	by map[string]*final
}{by: map[string]*final{}}

// reference is the result of an undisturbed run of a job, whatever its name.
func reference(t *testing.T, s *job.Spec) *final {
	t.Helper()
	c := *s
	c.Name = "reference"
	key, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	references.Lock()
	defer references.Unlock()
	f := references.by[string(key)]
	if f == nil {
		f = newLab(t, c.Servers).run(t, &c, 0)
		references.by[string(key)] = f
	}
	return f
}
