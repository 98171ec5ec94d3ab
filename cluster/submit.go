package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"tributary/cluster/authority"
	"tributary/cluster/place"
	"tributary/job"
)

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

// Errors of jobs in the authority.
var (
	// ErrExists: another job of the name was submitted before.
	ErrExists = errors.New("another job of this name exists")
	// ErrNoJob: no job of the name was submitted.
	ErrNoJob = errors.New("no such job")
	// ErrTooFewNodes: fewer parameter servers are alive than the job wants.
	ErrTooFewNodes = errors.New("too few parameter servers")
)

// Submit places a job's shards on the live nodes and creates its record, which
// starts it. Submitting the same job again changes nothing and returns the
// record that stands.
func Submit(ctx context.Context, a authority.Authority, rec *job.Record) (*job.Record, error) {
	pipe, err := job.Compile(rec)
	if err != nil {
		return nil, err
	}
	if old, err := Job(ctx, a, rec.Name); err == nil {
		return sameJob(old, rec)
	} else if !errors.Is(err, ErrNoJob) {
		return nil, err
	}
	nodes, err := Nodes(ctx, a)
	if err != nil {
		return nil, err
	}
	if need := rec.Spec.Servers; len(nodes) < need {
		return nil, fmt.Errorf("submit %q: %w: it wants %d, %d are alive (%s); start more with `ps serve`, or set `servers`", rec.Name, ErrTooFewNodes, need, len(nodes), strings.Join(nodes, ", "))
	}
	nodes = place.Ranked(rec.Name, coordinatorItem, nodes)[:rec.Spec.Servers]
	placed := *rec
	placed.Owners = place.Shards(rec.Name, pipe.Shards, nodes, nil)
	placed.Coordinator = nodes[0]
	b, err := placed.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := a.CAS(ctx, authority.Op{Key: jobKey(rec.Name), Value: b}); err != nil {
		// Somebody was faster, or the answer was lost: what stands now counts.
		old, gerr := Job(ctx, a, rec.Name)
		if gerr != nil {
			return nil, fmt.Errorf("submit %q: %w", rec.Name, err)
		}
		return sameJob(old, rec)
	}
	return &placed, nil
}

// coordinatorItem names the coordinator in the placement hash, where shards
// are numbered from 0.
const coordinatorItem = 1 << 32

// sameJob returns old if rec describes the same job, placement apart.
func sameJob(old, rec *job.Record) (*job.Record, error) {
	x, y := *old, *rec
	x.Owners, x.Coordinator, y.Owners, y.Coordinator = nil, "", nil, ""
	bx, err := x.Encode()
	if err != nil {
		return nil, err
	}
	by, err := y.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(bx, by) {
		return nil, fmt.Errorf("submit %q: %w: choose another with --set name=…", rec.Name, ErrExists)
	}
	return old, nil
}

// Job returns the record of one job, or ErrNoJob.
func Job(ctx context.Context, a authority.Authority, name string) (*job.Record, error) {
	e, err := a.Get(ctx, jobKey(name))
	if errors.Is(err, authority.ErrNotFound) || errors.Is(err, authority.ErrBadKey) {
		return nil, fmt.Errorf("%w: %q", ErrNoJob, name)
	}
	if err != nil {
		return nil, fmt.Errorf("job %q: %w", name, err)
	}
	return job.DecodeRecord(e.Value)
}

// Jobs returns the records of all jobs, sorted by name. A record that cannot be
// read is left out and reported in the error, beside the others.
func Jobs(ctx context.Context, a authority.Authority) ([]*job.Record, error) {
	entries, err := a.List(ctx, jobPrefix)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	var recs []*job.Record
	var errs []error
	for _, e := range entries {
		r, err := job.DecodeRecord(e.Value)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.Key, err))
			continue
		}
		recs = append(recs, r)
	}
	return recs, errors.Join(errs...)
}
