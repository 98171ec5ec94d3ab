package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"tributary/checkpoint"
	"tributary/client"
	"tributary/cluster"
	"tributary/cluster/authority"
	"tributary/internal/cli"
	"tributary/job"
	"tributary/train"
	"tributary/worker"
)

// outcome is the model that a job ended with.
type outcome struct {
	pipe     *job.Pipeline
	params   []float32
	Step     uint64
	Timeline uint64
	Accuracy float64
	TestLoss float64
	measured bool // Accuracy and TestLoss are set
}

// fetchModel reads the model over the wire and measures it on the test part of
// task, if there is one.
func fetchModel(ctx context.Context, link *cli.Link, p *job.Pipeline, task *worker.Task) (*outcome, error) {
	snap, err := client.Fetch(ctx, link.Data, link.Control, p)
	if err != nil {
		return nil, err
	}
	o := &outcome{pipe: p, params: snap.Params, Step: snap.Step, Timeline: snap.Timeline}
	if task != nil {
		o.measured = true
		o.TestLoss, o.Accuracy, err = task.Evaluate(snap.Params)
	}
	return o, err
}

func (o *outcome) saveModel(path string) error {
	meta := map[string]string{"format": "pt", "job": o.pipe.Spec.Name, "step": strconv.FormatUint(o.Step, 10), "timeline": strconv.FormatUint(o.Timeline, 10),
		"numerics": strconv.Itoa(job.Numerics)}
	b, err := checkpoint.Safetensors(o.pipe.Layout, o.params, meta)
	if err != nil {
		return err
	}
	if err := checkpoint.WriteFile(path, b); err != nil {
		return fmt.Errorf("save the model: %w", err)
	}
	return nil
}

// saveCurves draws what metrics.jsonl holds.
func (o *outcome) saveCurves(path, metrics string) error {
	loss, acc, err := readMetrics(metrics)
	if err != nil {
		return err
	}
	if o.measured {
		acc[o.Step] = o.Accuracy
	}
	steps, losses := o.series(loss)
	accSteps, accs := o.series(acc)
	return train.Curves(path, steps, losses, accSteps, accs)
}

// series sorts values by step and leaves out those of a past that was rolled
// back.
func (o *outcome) series(m map[uint64]float64) (x, y []float64) {
	keys := make([]uint64, 0, len(m))
	for k := range m {
		if k <= o.Step || o.pipe.Spec.Staleness < 0 {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		x, y = append(x, float64(k)), append(y, m[k])
	}
	return x, y
}

// readMetrics returns losses and accuracies by step. Steps that were computed
// again after a rollback count once, as computed last.
func readMetrics(path string) (loss, accuracy map[uint64]float64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("metrics: %w", err)
	}
	defer f.Close() // only read
	loss, accuracy = map[uint64]float64{}, map[uint64]float64{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var line struct {
			Step     uint64
			Loss     *float64
			Accuracy *float64
		}
		if json.Unmarshal(sc.Bytes(), &line) != nil {
			continue // the last line of a process that was killed
		}
		if line.Loss != nil {
			loss[line.Step] = *line.Loss
		}
		if line.Accuracy != nil {
			accuracy[line.Step] = *line.Accuracy
		}
	}
	return loss, accuracy, nil
}

func (o *outcome) saveSummary(path string, s *job.Status, took time.Duration) error {
	b, err := json.MarshalIndent(map[string]any{"job": s.Job, "state": s.State, "step": o.Step, "steps": s.Steps, "timeline": o.Timeline,
		"accuracy": o.Accuracy, "test_loss": o.TestLoss, "seconds": took.Seconds(), "parameters": o.pipe.Layout.P, "seed": o.pipe.Spec.Seed}, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	return err
}

// modelCmd saves the model of a job in a cluster.
type modelCmd struct {
	Job    string `arg:"" help:"Name of the job, which has finished or is stopped."`
	Out    string `short:"o" help:"File to write, in the safetensors format (default: JOB.safetensors)." type:"path"`
	NoEval bool   `help:"Don't measure the model on the test part of the job's data, which must be here."`
	clusterFlags
}

// Run reads, measures and saves the model.
func (c *modelCmd) Run(ctx context.Context) error {
	if c.Out == "" {
		c.Out = c.Job + ".safetensors"
	}
	c.Timeout = max(c.Timeout, 30*time.Second)
	return c.ask(ctx, func(ctx context.Context, link *cli.Link, a authority.Authority) error {
		rec, err := cluster.Job(ctx, a, c.Job)
		if err != nil {
			return err
		}
		p, err := job.Compile(rec)
		if err != nil {
			return err
		}
		var task *worker.Task
		if !c.NoEval {
			if task, err = worker.NewTask(rec.Spec); err != nil && !errors.Is(err, worker.ErrOwnModel) {
				return fmt.Errorf("%w; --no-eval saves the model without measuring it", err)
			}
		}
		o, err := fetchModel(ctx, link, p, task)
		if err != nil {
			return err
		}
		if err := o.saveModel(c.Out); err != nil {
			return err
		}
		fmt.Printf("model of job %q at step %d saved in %s\n", c.Job, o.Step, c.Out)
		if o.measured {
			fmt.Printf("test accuracy %.2f %% (loss %.4f)\n", 100*o.Accuracy, o.TestLoss)
		}
		return nil
	})
}
