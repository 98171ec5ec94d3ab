package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"tributary/cluster/authority"
	"tributary/cluster/place"
	"tributary/job"
)

// ctlSubject is where a node answers control requests.
func ctlSubject(node string) string { return "tb.ctl." + node }

// Serve answers control requests (status, submit, stop, explain, health) as a
// NATS micro service, which the `nats` command line lists. Queue groups are
// disabled: every node answers for itself.
func (n *Node) Serve(nc *nats.Conn) (micro.Service, error) {
	svc, err := micro.AddService(nc, micro.Config{Name: "tributary", Version: "0.1.0", Description: "parameter server node " + n.opts.Name,
		Metadata: map[string]string{"node": n.opts.Name}, QueueGroupDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("control service: %w", err)
	}
	g := svc.AddGroup(ctlSubject(n.opts.Name))
	for name, f := range map[string]func([]byte) (any, error){"status": n.status, "submit": n.submit, "stop": n.stop, "health": n.health, "explain": n.explain} {
		if err := g.AddEndpoint(name, micro.HandlerFunc(func(r micro.Request) { answer(r, f) }), micro.WithEndpointQueueGroupDisabled()); err != nil {
			return nil, fmt.Errorf("control endpoint %s: %w", name, err)
		}
	}
	return svc, nil
}

func answer(r micro.Request, f func([]byte) (any, error)) {
	v, err := f(r.Data())
	if err == nil {
		err = r.RespondJSON(v)
	} else {
		err = r.Error("400", strings.ReplaceAll(err.Error(), "\n", "; "), nil)
	}
	if err != nil {
		return // the asker is gone; it times out and says so
	}
}

func (n *Node) status(req []byte) (any, error) {
	run := n.job(string(req))
	if run == nil || run.cd == nil {
		return nil, fmt.Errorf("node %s does not coordinate a job %q", n.opts.Name, req)
	}
	return run.cd.met.snapshot(), nil
}

func (n *Node) explain(req []byte) (any, error) {
	run := n.job(string(req))
	if run == nil {
		return nil, fmt.Errorf("node %s has no part of a job %q", n.opts.Name, req)
	}
	return map[string]string{"text": run.pipe.Explain()}, nil
}

func (n *Node) stop(req []byte) (any, error) {
	run := n.job(string(req))
	if run == nil || run.cd == nil {
		return nil, fmt.Errorf("node %s does not coordinate a job %q", n.opts.Name, req)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	run.cd.later(ctx, func() []job.Out { return run.cd.c.RequestStop("asked to stop", run.cd.now()) })
	return map[string]bool{"ok": true}, ctx.Err()
}

func (n *Node) health([]byte) (any, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	names := []string{}
	for name := range n.jobs {
		names = append(names, name)
	}
	return map[string]any{"node": n.opts.Name, "ok": n.opts.Data.Connected() && n.opts.Control.Connected(), "jobs": names,
		"data": n.opts.Data.Stats(), "control": n.opts.Control.Stats()}, nil
}

func (n *Node) submit(req []byte) (any, error) {
	var rec job.Record
	if err := json.Unmarshal(req, &rec); err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := Submit(ctx, n.opts.Auth, &rec)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Nodes returns the names of the nodes whose lease is alive, sorted.
func Nodes(ctx context.Context, a authority.Authority) ([]string, error) {
	entries, err := a.List(ctx, nodePrefix)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimPrefix(e.Key, nodePrefix))
	}
	return names, nil
}

// ErrExists is wrapped by Submit when another job of the name exists.
var ErrExists = errors.New("a job of this name exists")

// Submit checks a job, places its shards on the live nodes and creates its
// record. Submitting the same job again changes nothing.
func Submit(ctx context.Context, a authority.Authority, rec *job.Record) (*job.Record, error) {
	if _, err := job.Compile(rec); err != nil {
		return nil, err
	}
	nodes, err := Nodes(ctx, a)
	if err != nil {
		return nil, err
	}
	if need := max(1, rec.Spec.Servers); len(nodes) < need {
		return nil, fmt.Errorf("submit %q: it wants %d servers, %d are alive (%s); start more with `ps serve`, or lower `servers`", rec.Name, need, len(nodes), strings.Join(nodes, ", "))
	}
	nodes = place.Ranked(rec.Name, 1<<32, nodes)[:max(1, rec.Spec.Servers)]
	pipe, err := job.Compile(rec)
	if err != nil {
		return nil, err
	}
	rec.Owners = place.Shards(rec.Name, pipe.Shards, nodes, nil)
	rec.Coordinator = nodes[0]
	b, err := json.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("submit: %w", err)
	}
	if _, err := a.CAS(ctx, authority.Op{Key: jobKey(rec.Name), Value: b}); err != nil {
		e, gerr := a.Get(ctx, jobKey(rec.Name))
		if gerr == nil && string(e.Value) == string(b) {
			return rec, nil
		}
		if gerr == nil {
			return nil, fmt.Errorf("submit %q: %w; choose another name", rec.Name, ErrExists)
		}
		return nil, fmt.Errorf("submit %q: %w", rec.Name, err)
	}
	return rec, nil
}

// Jobs returns the records of all jobs, sorted by name.
func Jobs(ctx context.Context, a authority.Authority) ([]*job.Record, error) {
	entries, err := a.List(ctx, jobPrefix)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	var recs []*job.Record
	for _, e := range entries {
		var r job.Record
		if err := json.Unmarshal(e.Value, &r); err != nil {
			return nil, fmt.Errorf("job record %s: %w", e.Key, err)
		}
		recs = append(recs, &r)
	}
	return recs, nil
}

// Ask sends one control request to a node and decodes the answer into out.
func Ask(ctx context.Context, nc *nats.Conn, node, what string, req []byte, out any) error {
	msg, err := nc.RequestWithContext(ctx, ctlSubject(node)+"."+what, req)
	if err != nil {
		return fmt.Errorf("%s: node %s does not answer: %w", what, node, err)
	}
	if e := msg.Header.Get(micro.ErrorHeader); e != "" {
		return errors.New(e)
	}
	return json.Unmarshal(msg.Data, out)
}
