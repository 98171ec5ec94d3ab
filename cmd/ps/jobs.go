package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"tributary/cluster"
	"tributary/cluster/authority"
	"tributary/internal/cli"
	"tributary/job"
	"tributary/worker"
)

// clusterFlags find a cluster for a short question.
type clusterFlags struct {
	cli.Broker
	Timeout time.Duration `help:"Longest wait for an answer." default:"5s"`
}

// ask connects, calls f and closes.
func (c *clusterFlags) ask(ctx context.Context, f func(context.Context, *cli.Link, authority.Authority) error) error {
	log := cli.Log{Level: "error"}.New()
	link, err := c.Connect(ctx, "ps command", log)
	if err != nil {
		return err
	}
	err = func() error {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		a, err := link.Authority(ctx)
		if err != nil {
			return err
		}
		return f(ctx, link, a)
	}()
	return errors.Join(err, link.Close())
}

// submitCmd hands a job to a cluster.
type submitCmd struct {
	jobFlags
	clusterFlags
	ForServers time.Duration `help:"How long to wait for as many parameter servers as the job wants." default:"30s"`
}

// Run submits the job.
func (c *submitCmd) Run(ctx context.Context) error {
	spec, err := c.load()
	if err != nil {
		return err
	}
	if c.Print {
		return printJob(spec)
	}
	rec, err := worker.NewRecord(spec)
	if err != nil {
		return err
	}
	c.Timeout += c.ForServers
	return c.ask(ctx, func(ctx context.Context, _ *cli.Link, a authority.Authority) error {
		placed, err := submit(ctx, a, rec, c.ForServers, cli.Waiting)
		if err != nil {
			return err
		}
		fmt.Printf("job %q submitted: %d shards on %s; start workers with: worker run --job %s --nats %s\n",
			placed.Name, len(placed.Owners), strings.Join(distinct(placed.Owners), ", "), placed.Name, c.NATS)
		return nil
	})
}

func distinct(names []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// submit waits until enough servers are there, and says so.
func submit(ctx context.Context, a authority.Authority, rec *job.Record, patience time.Duration, onWait func(string)) (*job.Record, error) {
	start, told := time.Now(), time.Duration(0)
	for {
		placed, err := cluster.Submit(ctx, a, rec)
		waited := time.Since(start)
		if !errors.Is(err, cluster.ErrTooFewNodes) || waited >= patience {
			return placed, err
		}
		if waited >= told+time.Second {
			told = waited + 4*time.Second
			onWait(fmt.Sprintf("waiting: %v", err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// jobsCmd lists jobs.
type jobsCmd struct {
	clusterFlags
	JSON bool `name:"json" help:"Print JSON."`
}

// Run lists the jobs with how they stand.
func (c *jobsCmd) Run(ctx context.Context) error {
	return c.ask(ctx, func(ctx context.Context, link *cli.Link, a authority.Authority) error {
		recs, err := cluster.Jobs(ctx, a)
		if recs == nil && err != nil {
			return err
		}
		all := make([]job.Status, len(recs))
		for i, r := range recs {
			all[i] = statusOrUnknown(ctx, link, r)
		}
		if c.JSON {
			return errors.Join(err, json.NewEncoder(os.Stdout).Encode(all))
		}
		if len(all) == 0 {
			fmt.Println("no jobs; submit one with: ps submit JOB.yaml")
			return err
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "JOB\tSTATE\tSTEP\tWORKERS\tCOORDINATOR\tWAITING FOR")
		for i := range all {
			s := &all[i]
			fmt.Fprintf(w, "%s\t%s\t%d/%d\t%d\t%s\t%s\n", s.Job, s.State, s.Step, s.Steps, s.Live(), recs[i].Coordinator, s.WaitingFor)
		}
		return errors.Join(err, w.Flush())
	})
}

// unknown is the state of a job whose coordinator does not answer.
const unknown = "unknown"

// statusOrUnknown is the job's status, or what is known without its
// coordinator.
func statusOrUnknown(ctx context.Context, link *cli.Link, r *job.Record) job.Status {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := cluster.StatusOf(ctx, link.NATS(), r)
	if err != nil {
		return job.Status{Job: r.Name, State: unknown, Steps: r.Spec.Steps, WaitingFor: fmt.Sprintf("coordinator on node %s (%v)", r.Coordinator, err)}
	}
	return s
}

// statusCmd shows one job.
type statusCmd struct {
	Job  string `arg:"" help:"Name of the job."`
	JSON bool   `name:"json" help:"Print JSON."`
	clusterFlags
}

// Run prints the status.
func (c *statusCmd) Run(ctx context.Context) error {
	return c.ask(ctx, func(ctx context.Context, link *cli.Link, a authority.Authority) error {
		rec, err := cluster.Job(ctx, a, c.Job)
		if err != nil {
			return err
		}
		s := statusOrUnknown(ctx, link, rec)
		if c.JSON {
			return json.NewEncoder(os.Stdout).Encode(s)
		}
		return printStatus(&s, rec)
	})
}

func printStatus(s *job.Status, rec *job.Record) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	if s.State == unknown {
		fmt.Fprintf(w, "job\t%s: unknown, %d steps in all\n", s.Job, s.Steps)
		fmt.Fprintf(w, "waiting for\t%s\n", s.WaitingFor)
		return w.Flush()
	}
	fmt.Fprintf(w, "job\t%s: %s, step %d of %d\n", s.Job, s.State, s.Step, s.Steps)
	if s.Reason != "" {
		fmt.Fprintf(w, "reason\t%s\n", s.Reason)
	}
	if s.WaitingFor != "" {
		fmt.Fprintf(w, "waiting for\t%s, for %.1f s\n", s.WaitingFor, s.Since)
	}
	fmt.Fprintf(w, "progress\t%s, %.1f steps/s, %.1f MB/s\n", measured(s, ", "), s.StepsPerSec, s.MBPerSec)
	fmt.Fprintf(w, "timeline\t%d (view %d, %d decisions); newest checkpoint at step %d\n", s.Timeline, s.View, s.Decisions, s.Checkpoint)
	fmt.Fprintf(w, "coordinator\t%s; metrics in %s\n", rec.Coordinator, s.Dir)
	for _, x := range s.Workers {
		state := "alive"
		switch {
		case s.Ended() && s.State != "halted":
			state = "ended with the job"
		case !x.Alive:
			state = fmt.Sprintf("lost, silent for %.1f s", x.Silent)
		}
		fmt.Fprintf(w, "worker %s\t%s, incarnation %d, ranks %v\n", x.Name, state, x.Incarnation, x.Ranks)
	}
	for _, x := range s.Shards {
		owner := ""
		if x.ID < len(rec.Owners) {
			owner = rec.Owners[x.ID]
		}
		missing := ""
		if len(x.Missing) > 0 {
			missing = fmt.Sprintf(", lacks ranks %v", x.Missing)
		}
		if !x.Present {
			missing = ", not heard of"
		}
		fmt.Fprintf(w, "shard %d\t%s, epoch %d, versions %d to %d%s\n", x.ID, owner, x.Epoch, x.Lo, x.Hi, missing)
	}
	return w.Flush()
}

// explainCmd explains a job file or a job of a cluster.
type explainCmd struct {
	Of      string   `arg:"" name:"job" help:"Name of a job in the cluster, or a job file."`
	Set     []string `help:"Change a field of the file." sep:"none" placeholder:"KEY=VALUE"`
	Tensors bool     `help:"List the tensors, too."`
	clusterFlags
}

// Run prints the compiled pipeline.
func (c *explainCmd) Run(ctx context.Context) error {
	if strings.ContainsAny(c.Of, "./") {
		spec, err := (&jobFlags{File: c.Of, Set: c.Set}).load()
		if err != nil {
			return err
		}
		rec, err := worker.NewRecord(spec)
		if err != nil {
			return err
		}
		return c.explain(rec)
	}
	return c.ask(ctx, func(ctx context.Context, _ *cli.Link, a authority.Authority) error {
		rec, err := cluster.Job(ctx, a, c.Of)
		if err != nil {
			return err
		}
		return c.explain(rec)
	})
}

func (c *explainCmd) explain(rec *job.Record) error {
	p, err := job.Compile(rec)
	if err != nil {
		return err
	}
	fmt.Print(p.Explain())
	if len(rec.Owners) > 0 {
		fmt.Printf("%-14s coordinator on %s; shards on %s\n", "placement", rec.Coordinator, strings.Join(rec.Owners, ", "))
	}
	if c.Tensors {
		fmt.Print("\n", p.Tensors())
	}
	return nil
}

// stopCmd stops a job.
type stopCmd struct {
	Job string `arg:"" help:"Name of the job."`
	clusterFlags
}

// Run asks the coordinator to stop and waits until the checkpoint is recorded.
func (c *stopCmd) Run(ctx context.Context) error {
	c.Timeout = max(c.Timeout, 30*time.Second)
	return c.ask(ctx, func(ctx context.Context, link *cli.Link, a authority.Authority) error {
		rec, err := cluster.Job(ctx, a, c.Job)
		if err != nil {
			return err
		}
		s, err := stopJob(ctx, link, rec)
		if err != nil {
			return err
		}
		fmt.Printf("job %q is %s at step %d of %d; go on with: ps resume %s\n", c.Job, s.State, s.Step, s.Steps, c.Job)
		return nil
	})
}

// stopJob asks for a stop and waits until the job has ended in some way.
func stopJob(ctx context.Context, link *cli.Link, rec *job.Record) (job.Status, error) {
	if err := cluster.Ask(ctx, link.NATS(), rec.Coordinator, "stop", []byte(rec.Name), nil); err != nil {
		return job.Status{}, err
	}
	for {
		s, err := cluster.StatusOf(ctx, link.NATS(), rec)
		if err != nil {
			return s, err
		}
		if s.Ended() {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("job %q does not stop: it is %s at step %d, waiting for %s", rec.Name, s.State, s.Step, orNothing(s.WaitingFor))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func orNothing(s string) string {
	if s == "" {
		return "nothing that it knows of"
	}
	return s
}

// resumeCmd lets a job go on.
type resumeCmd struct {
	Job string `arg:"" help:"Name of the job."`
	clusterFlags
}

// Run asks the coordinator to resume.
func (c *resumeCmd) Run(ctx context.Context) error {
	return c.ask(ctx, func(ctx context.Context, link *cli.Link, a authority.Authority) error {
		rec, err := cluster.Job(ctx, a, c.Job)
		if err != nil {
			return err
		}
		if err := cluster.Ask(ctx, link.NATS(), rec.Coordinator, "resume", []byte(rec.Name), nil); err != nil {
			return err
		}
		fmt.Printf("job %q goes on from its newest checkpoint; start workers with: worker run --job %s --nats %s\n", c.Job, c.Job, c.NATS)
		return nil
	})
}
