package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"tributary/cluster"
	"tributary/job"
)

const (
	lookEvery = 100 * time.Millisecond
	// silence is how long a job may say nothing before the command gives up.
	silence = 5 * time.Minute
	// grace is how long a job without workers has to say that it halted.
	grace = 3 * time.Second
)

// follow shows how the job goes until it has ended, then saves its model. When
// ctx ends it stops the job first.
func (u *up) follow(ctx context.Context, crew *crew) error {
	begin, heard := time.Now(), time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	lost := 0                 // workers that ended with an error
	var idle <-chan time.Time // from when all have
	var s job.Status          // the last one heard: a coordinator that is silent has begun all the same
	for {
		now, err := u.status()
		switch {
		case err == nil:
			s, heard = now, time.Now()
			u.show.status(&s)
		case time.Since(heard) > silence:
			return fmt.Errorf("gave up after %v: %w", silence, err)
		case time.Since(heard) > time.Second:
			u.show.wait(fmt.Sprintf("waiting for the job's coordinator on node %s", u.rec.Coordinator))
		}
		if err == nil && s.Ended() {
			return u.ended(&s, time.Since(begin))
		}
		select {
		case <-tick.C:
		case x := <-crew.failed:
			u.show.say("%v", x.err)
			if x.worker {
				lost++ // its ranks move to the others
			}
			if lost == u.spec.Workers && idle == nil {
				idle = time.After(grace)
			}
		case <-idle:
			return fmt.Errorf("all workers ended with an error; the newest checkpoint is at step %d: after mending the cause, go on with: ps up --resume %s", s.Checkpoint, u.dir)
		case <-ctx.Done():
			return u.stop(&s, begin)
		}
	}
}

// status asks within this run's own life: a signal must not end the question.
func (u *up) status() (job.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return cluster.StatusOf(ctx, u.link.NATS(), u.rec)
}

// stop stops the job with a checkpoint and saves its model.
func (u *up) stop(s *job.Status, begin time.Time) error {
	if s.Timeline == 0 {
		return context.Canceled
	}
	u.show.say("stopping at the next step; a second Ctrl-C aborts")
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	end, err := stopJob(ctx, u.link, u.rec)
	if err != nil {
		return fmt.Errorf("%w; the newest checkpoint is at step %d: go on from there with: ps up --resume %s", err, s.Checkpoint, u.dir)
	}
	return u.ended(&end, time.Since(begin))
}

// ended reports how the job ended, with the model saved.
func (u *up) ended(s *job.Status, took time.Duration) error {
	u.show.done(s)
	if s.State == "halted" {
		return fmt.Errorf("the job halted: %s; its newest checkpoint is at step %d: after mending the cause, go on with: ps up --resume %s", s.Reason, s.Checkpoint, u.dir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o, err := fetchModel(ctx, u.link, u.pipe, u.task)
	if err != nil {
		return err
	}
	metrics := filepath.Join(u.dir, cluster.MetricsFile)
	err = o.saveModel(filepath.Join(u.dir, "model.safetensors"))
	err = errors.Join(err, o.saveCurves(filepath.Join(u.dir, "curves.png"), metrics), o.saveSummary(filepath.Join(u.dir, "summary.json"), s, took))
	if err != nil {
		return err
	}
	u.log.Info("ended", "state", s.State, "step", o.Step, "accuracy", o.Accuracy, "took", took)
	u.show.say("%s after %d of %d updates in %.1f s", s.State, o.Step, s.Steps, took.Seconds())
	u.show.say("test accuracy  %.2f %% (loss %.4f, %d examples)", 100*o.Accuracy, o.TestLoss, u.task.Test.N)
	u.show.say("model          %s", filepath.Join(u.dir, "model.safetensors"))
	u.show.say("metrics        %s", metrics)
	u.show.say("curves         %s", filepath.Join(u.dir, "curves.png"))
	if s.State == "stopped" {
		u.show.say("go on with     ps up --resume %s", u.dir)
	}
	return nil
}
