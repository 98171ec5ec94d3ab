package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"tributary/cluster"
	"tributary/worker"
)

// crew is the servers and workers of a run: goroutines or processes. They end
// when life does; failed is told of those that end with an error before.
type crew struct {
	life   context.Context
	log    *slog.Logger
	wg     sync.WaitGroup
	failed chan failure // room for all
}

// failure is the end of a server or worker with an error.
type failure struct {
	worker bool
	err    error
}

func newCrew(life context.Context, log *slog.Logger, size int) *crew {
	return &crew{life: life, log: log, failed: make(chan failure, size)}
}

// run runs f until it returns.
func (c *crew) run(name string, worker bool, f func(context.Context) error) {
	c.wg.Go(func() {
		err := f(c.life)
		if err == nil || c.life.Err() != nil {
			return
		}
		c.log.Error("ended with an error", "who", name, "err", err)
		c.failed <- failure{worker, fmt.Errorf("%s: %w", name, err)}
	})
}

// wait waits until all have ended.
func (c *crew) wait() error {
	ended := make(chan struct{})
	go func() { c.wg.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("some servers or workers did not end within 20 s")
	}
}

func (c *crew) server(u *up, h host, name string) {
	dir := filepath.Join(u.dir, name)
	if u.cmd.Processes {
		c.run(name, false, func(ctx context.Context) error {
			return child(ctx, u.dir, name, "serve", "--nats", h.url, "--name", name, "--dir", dir, "--report", u.dir, "--until-eof", "--log-format", "json")
		})
		return
	}
	c.run(name, false, func(ctx context.Context) error {
		link, err := h.link(ctx, name)
		if err != nil {
			return err
		}
		err = serveNode(ctx, link, cluster.Options{Name: name, Dir: dir, Report: u.dir, Logger: c.log.With("node", name)}, func() {})
		return errors.Join(err, link.Close())
	})
}

func (c *crew) worker(u *up, h host, name string) {
	if u.cmd.Processes {
		c.run(name, true, func(ctx context.Context) error {
			return child(ctx, u.dir, name, "worker", "run", "--nats", h.url, "--name", name, "--job", u.spec.Name, "--replace", "--until-eof", "--log-format", "json")
		})
		return
	}
	c.run(name, true, func(ctx context.Context) error {
		link, err := h.link(ctx, name)
		if err != nil {
			return err
		}
		log := c.log.With("worker", name)
		res, err := worker.Run(ctx, worker.Options{Data: link.Data, Control: link.Control, Job: u.spec.Name, Name: name, Replace: true, Logger: log})
		log.Info("worker ended", "how", res.Ended, "pushed", res.Pushed, "wire", res.Wire)
		return errors.Join(err, link.Close())
	})
}

// child runs this program again with other arguments. Its output goes to a
// file of its name. It ends when its standard input does, which is when ctx
// ends, or when this process dies in whatever way.
func child(ctx context.Context, dir, name string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close() // written by the child
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = ownGroup() // a terminal's Ctrl-C is for this process alone
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		stdin.Close()
		time.AfterFunc(15*time.Second, func() { cmd.Process.Kill() }) // if it does not end by itself; fails harmlessly when it has
	})
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w; see %s", err, out.Name())
	}
	return nil
}
