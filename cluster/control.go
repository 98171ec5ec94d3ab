package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"tributary/comm"
	"tributary/job"
	"tributary/shard"
)

// ctlSubject is where a node answers control requests.
func ctlSubject(node string) string { return "tb.ctl." + node }

// controlVersion is the version of the control service that NATS shows.
const controlVersion = "0.1.0"

// Serve answers control requests (status, stop, resume, health) as a NATS micro
// service, which the `nats` command line lists. Queue groups are disabled:
// every node answers for itself. The service lives as long as nc.
func (n *Node) Serve(nc *nats.Conn) (micro.Service, error) {
	svc, err := micro.AddService(nc, micro.Config{Name: "tributary", Version: controlVersion, Description: "parameter server node " + n.opts.Name,
		Metadata: map[string]string{"node": n.opts.Name}, QueueGroupDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("control service: %w", err)
	}
	g := svc.AddGroup(ctlSubject(n.opts.Name))
	for _, e := range []struct {
		name string
		f    func([]byte) (any, error)
	}{{"status", n.status}, {"stop", n.stop}, {"resume", n.resume}, {"stats", n.stats}, {"health", n.health}} {
		if err := g.AddEndpoint(e.name, micro.HandlerFunc(func(r micro.Request) { answer(r, e.f) }), micro.WithEndpointQueueGroupDisabled()); err != nil {
			return nil, fmt.Errorf("control endpoint %s: %w", e.name, err)
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

// coordinated returns this node's coordinator of the job named in a request.
func (n *Node) coordinated(req []byte) (*coordDriver, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	run := n.jobs[string(req)]
	if run == nil || run.cd == nil {
		return nil, fmt.Errorf("node %s does not (yet) coordinate a job %.64q", n.opts.Name, req)
	}
	return run.cd, nil
}

func (n *Node) status(req []byte) (any, error) {
	cd, err := n.coordinated(req)
	if err != nil {
		return nil, err
	}
	return cd.met.snapshot(), nil
}

func (n *Node) stop(req []byte) (any, error) {
	return n.request(req, func(cd *coordDriver) ([]job.Out, error) {
		outs, ok := cd.c.RequestStop("asked to stop", cd.now())
		if !ok {
			return nil, errors.New("the job is not running: it has not begun or has ended")
		}
		return outs, nil
	})
}

func (n *Node) resume(req []byte) (any, error) {
	return n.request(req, func(cd *coordDriver) ([]job.Out, error) {
		outs, ok := cd.c.RequestResume(cd.now())
		if !ok {
			return nil, errors.New("the job is neither stopped nor halted")
		}
		return outs, nil
	})
}

// request runs f on the goroutine that owns the coordinator.
func (n *Node) request(req []byte, f func(*coordDriver) ([]job.Out, error)) (any, error) {
	cd, err := n.coordinated(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	done := make(chan error, 1)
	cd.later(ctx, func() []job.Out {
		outs, err := f(cd)
		done <- err
		return outs
	})
	select {
	case err := <-done:
		return map[string]bool{"ok": err == nil}, err
	case <-ctx.Done():
		return nil, errors.New("the coordinator is busy; try again")
	}
}

// ShardStats are the running totals of one shard.
type ShardStats struct {
	Shard int    `json:"shard"`
	Node  string `json:"node"`
	shard.Stats
}

// stats answers with the totals of this node's shards of a job.
func (n *Node) stats(req []byte) (any, error) {
	n.mu.Lock()
	run := n.jobs[string(req)]
	n.mu.Unlock()
	if run == nil {
		return nil, fmt.Errorf("node %s has no part of a job %.64q", n.opts.Name, req)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return run.stats(ctx)
}

// Health is what a node says of itself.
type Health struct {
	Node      string   `json:"node"`
	OK        bool     `json:"ok"` // both connections to the broker are up
	Jobs      []string `json:"jobs"`
	BytesIn   uint64   `json:"bytes_in"`
	BytesOut  uint64   `json:"bytes_out"`
	Dropped   uint64   `json:"dropped"`   // messages lost because this node was too slow
	Malformed uint64   `json:"malformed"` // frames that did not decode
}

func (n *Node) health([]byte) (any, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := Health{Node: n.opts.Name, OK: n.opts.Data.Connected() && n.opts.Control.Connected(), Jobs: []string{}}
	for name := range n.jobs {
		h.Jobs = append(h.Jobs, name)
	}
	for _, c := range []comm.Conn{n.opts.Data, n.opts.Control} {
		s := c.Stats()
		h.BytesIn += s.BytesIn
		h.BytesOut += s.BytesOut
		h.Dropped += s.Dropped
		h.Malformed += s.Malformed
	}
	slices.Sort(h.Jobs)
	return h, nil
}

// Ask sends one control request to a node and decodes the answer into out,
// which may be nil.
func Ask(ctx context.Context, nc *nats.Conn, node, what string, req []byte, out any) error {
	msg, err := nc.RequestWithContext(ctx, ctlSubject(node)+"."+what, req)
	if err != nil {
		return fmt.Errorf("%s: node %s does not answer: %w", what, node, err)
	}
	if msg.Header.Get(micro.ErrorCodeHeader) != "" {
		return errors.New(msg.Header.Get(micro.ErrorHeader))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(msg.Data, out); err != nil {
		return fmt.Errorf("%s: answer of node %s: %w", what, node, err)
	}
	return nil
}

// StatsOf asks every node that holds shards of a job for their totals.
func StatsOf(ctx context.Context, nc *nats.Conn, rec *job.Record) ([]ShardStats, error) {
	var all []ShardStats
	for _, node := range slices.Compact(slices.Sorted(slices.Values(rec.Owners))) {
		var part []ShardStats
		if err := Ask(ctx, nc, node, "stats", []byte(rec.Name), &part); err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return all, nil
}

// StatusOf asks the coordinator of a job how it stands.
func StatusOf(ctx context.Context, nc *nats.Conn, rec *job.Record) (job.Status, error) {
	var s job.Status
	err := Ask(ctx, nc, rec.Coordinator, "status", []byte(rec.Name), &s)
	return s, err
}
