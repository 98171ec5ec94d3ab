package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tributary/cluster"
	"tributary/comm"
	"tributary/comm/broker"
	"tributary/internal/cli"
	"tributary/job"
	"tributary/worker"
)

// upCmd runs a whole job on this machine.
type upCmd struct {
	jobFlags
	Dir       string `help:"Folder for everything the run writes (default: runs/NAME-TIME)." type:"path"`
	Resume    string `help:"Go on with the run in this folder." type:"existingdir" placeholder:"DIR"`
	Processes bool   `help:"Run every node and worker as a process of its own."`
	NATS      string `name:"nats" help:"Use this NATS broker instead of an embedded one; it must have JetStream." placeholder:"URL"`
	Plain     bool   `help:"Plain lines instead of a progress bar, also on a terminal."`
}

// Run trains until the job has ended; a signal stops it with a checkpoint.
func (c *upCmd) Run(ctx context.Context) error {
	if c.Print {
		spec, err := c.load()
		if err != nil {
			return err
		}
		return printJob(spec)
	}
	spec, err := c.prepareDir()
	if err != nil {
		return err
	}
	task, err := worker.NewTask(spec)
	if err != nil {
		return err
	}
	if err := task.CheckTeacher(); err != nil {
		return err
	}
	rec, err := task.Record()
	if err != nil {
		return err
	}
	pipe, err := job.Compile(rec)
	if err != nil {
		return named("job", err)
	}
	log, closeLog, err := c.makeDir(spec)
	if err != nil {
		return err
	}
	u := &up{cmd: c, spec: spec, task: task, rec: rec, pipe: pipe, dir: c.Dir, log: log, show: newProgress(c.Plain)}
	u.announce()
	err = u.run(ctx)
	return errors.Join(err, closeLog())
}

const jobFile = "job.yaml"

// prepareDir settles the job and the run's folder.
func (c *upCmd) prepareDir() (*job.Spec, error) {
	if c.Resume != "" {
		if c.File != "" || len(c.Set) > 0 || c.Data != "" || c.Dir != "" {
			return nil, errors.New("--resume takes the job from its folder: leave out the job file, --set, --data and --dir")
		}
		c.Dir = c.Resume
		return (&jobFlags{File: filepath.Join(c.Resume, jobFile)}).load()
	}
	spec, err := c.load()
	if err != nil {
		return nil, err
	}
	if c.Dir == "" {
		c.Dir = filepath.Join("runs", spec.Name+"-"+time.Now().Format("20060102-150405"))
	}
	if _, err := os.Stat(filepath.Join(c.Dir, jobFile)); err == nil {
		return nil, fmt.Errorf("%s holds an earlier run: go on with --resume %s, or choose another --dir", c.Dir, c.Dir)
	}
	return spec, nil
}

// makeDir makes the run's folder with the job in it, and its log.
func (c *upCmd) makeDir(spec *job.Spec) (*slog.Logger, func() error, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("run folder: %w", err)
	}
	log, closeLog, err := cli.LogFile(filepath.Join(c.Dir, "log.jsonl"))
	if err != nil || c.Resume != "" {
		return log, closeLog, err
	}
	b, err := spec.Marshal()
	if err == nil {
		err = os.WriteFile(filepath.Join(c.Dir, jobFile), b, 0o644)
	}
	return log, closeLog, err
}

// up is one run.
type up struct {
	cmd    *upCmd
	spec   *job.Spec
	task   *worker.Task
	rec    *job.Record
	pipe   *job.Pipeline
	dir    string
	log    *slog.Logger
	show   *progress
	broker *broker.Broker // nil with --nats
	link   *cli.Link      // of this command itself
}

// announce says what is about to happen, and logs which examples are for
// testing.
func (u *up) announce() {
	s := u.spec
	how := "in one process"
	if u.cmd.Processes {
		how = "as processes"
	}
	u.show.say("job %s: %s on %s (%d training, %d test examples), %s, %d updates", s.Name, u.modelName(), s.Data.Name, u.task.Train.N, u.task.Test.N, s.Optimizer.Rule, s.Steps)
	u.show.say("%d parameters in %d shards; %d parameter servers, %d workers for %d ranks, %s", u.pipe.Layout.P, u.pipe.Shards, s.Servers, s.Workers, u.pipe.Ranks, how)
	u.log.Info("run", "job", s.Name, "seed", s.Seed, "parameters", u.pipe.Layout.P, "shards", u.pipe.Shards)
	if sp := u.task.Split; sp != nil {
		u.log.Info("split", "seed", s.Seed, "test", sp.Test, "train", sp.Train)
	}
}

func (u *up) modelName() string {
	m, err := u.task.NewModel()
	if err != nil {
		return u.spec.Model.Kind
	}
	return m.Name()
}

// run starts everything, follows the job and saves its model. What it started
// outlives ctx: a signal first stops the job in good order.
func (u *up) run(ctx context.Context) error {
	life, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer kill()
	crew := newCrew(life, u.log, u.spec.Servers+u.spec.Workers)
	err := u.start(ctx, crew)
	if err == nil {
		err = u.follow(ctx, crew)
	}
	kill()
	err = errors.Join(err, crew.wait())
	if u.link != nil {
		err = errors.Join(err, u.link.Close())
	}
	if u.broker != nil {
		err = errors.Join(err, u.broker.Close())
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		u.show.say("stopped before the job began; nothing to save")
		return nil
	}
	return err
}

// start brings up broker, servers, the job and its workers.
func (u *up) start(ctx context.Context, crew *crew) error {
	url := u.cmd.NATS
	if url == "" {
		var err error
		if u.broker, err = broker.Start(broker.Options{StoreDir: filepath.Join(u.dir, "broker"), Logger: u.log}); err != nil {
			return err
		}
		url = u.broker.URL()
	}
	h := host{url: url, broker: u.broker, log: u.log}
	var err error
	if u.link, err = h.link(ctx, "up"); err != nil {
		return err
	}
	auth, err := u.link.Authority(ctx)
	if err != nil {
		return err
	}
	if u.cmd.NATS != "" && u.cmd.Resume == "" {
		// The job could land on servers that are not this run's.
		if nodes, err := cluster.Nodes(ctx, auth); err != nil || len(nodes) > 0 {
			return errors.Join(err, fmt.Errorf("the broker at %s has servers already (%s), and ps up brings its own: submit the job to them with ps submit, or leave out --nats and PS_NATS",
				url, strings.Join(nodes, ", ")))
		}
	}
	for i := range u.spec.Servers {
		crew.server(u, h, fmt.Sprintf("ps-%d", i+1))
	}
	placed, err := submit(ctx, auth, u.rec, time.Minute, u.show.wait)
	if err != nil {
		return err
	}
	u.rec = placed
	if u.cmd.Resume != "" {
		if err := u.goOn(ctx); err != nil {
			return err
		}
	}
	for i := range u.spec.Workers {
		crew.worker(u, h, fmt.Sprintf("worker-%d", i+1))
	}
	return nil
}

// goOn resumes a job that was stopped. One that was killed goes on by itself.
func (u *up) goOn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for asked, since := false, uint64(0); ; { // since: how many decisions there were when it was asked
		s, err := cluster.StatusOf(ctx, u.link.NATS(), u.rec)
		switch {
		case err == nil && (s.State == "running" || s.State == "finished"):
			return nil
		case err == nil && asked && s.State == "halted" && s.Decisions > since:
			return fmt.Errorf("resume: the job halted: %s", s.Reason)
		case err == nil && s.Ended() && !asked:
			if err := cluster.Ask(ctx, u.link.NATS(), u.rec.Coordinator, "resume", []byte(u.rec.Name), nil); err != nil {
				return err
			}
			asked, since = true, s.Decisions
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("resume: the job does not go on: %s", orNothing(s.WaitingFor))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// host is where processes of this run find the broker.
type host struct {
	url    string
	broker *broker.Broker
	log    *slog.Logger
}

// link connects within this process where the broker is here, else over TCP.
func (h host) link(ctx context.Context, name string) (*cli.Link, error) {
	if h.broker == nil {
		return cli.Broker{NATS: h.url, Wait: 30 * time.Second}.Connect(ctx, name, h.log)
	}
	l := &cli.Link{}
	for _, x := range []struct {
		conn *comm.Conn
		name string
	}{{&l.Data, name + " data"}, {&l.Control, name + " control"}} {
		nc, err := h.broker.Connect(comm.ConnOptions(x.name)...)
		if err != nil {
			return nil, err
		}
		if *x.conn, err = comm.DialNATS(ctx, comm.Options{Conn: nc, Name: x.name, Logger: h.log}); err != nil {
			return nil, err
		}
	}
	return l, nil
}
