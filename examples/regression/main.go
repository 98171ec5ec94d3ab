// Command regression is a worker of one's own: two workers fit a line to
// numbers of their own with a model that the server knows only as tensors.
//
//	go run ./examples/regression
//
// The interesting part is work: join, pull, compute, push.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"tributary/client"
	"tributary/comm"
	"tributary/job"
	"tributary/layout"
	"tributary/sim/local"
)

// The numbers follow y = 3·x₀ − 2·x₁ + 0.5, without noise.
var truth = []float32{3, -2, 0.5}

const batch = 8

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "regression:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	spec := job.Default()
	spec.Name = "regression"
	spec.Model = job.Model{Kind: "tensors", Tensors: []layout.Tensor{
		{Name: "weight", Shape: []int{2}},
		{Name: "bias", Shape: []int{1}, NoDecay: true},
	}}
	spec.Data.Name = "none"
	spec.Workers, spec.Steps, spec.RankState = 2, 200, true
	spec.Optimizer = job.Optimizer{Rule: "sgd", Hyper: map[string]any{"lr": 0.3, "momentum": 0.5}}

	// A real cluster would be found over NATS; here it lives in this process.
	servers, err := local.Start(ctx, local.Options{})
	if err != nil {
		return err
	}
	rec, err := servers.Submit(ctx, job.NewRecord(spec, nil))
	if err == nil {
		g, ctx := errgroup.WithContext(ctx)
		for i := range spec.Workers {
			name := fmt.Sprintf("worker-%d", i+1)
			g.Go(func() error {
				conn := servers.Connect(name)
				return errors.Join(work(ctx, conn, spec.Name, name), conn.Close())
			})
		}
		err = g.Wait()
	}
	if err == nil {
		err = show(ctx, servers, rec)
	}
	return errors.Join(err, servers.Close())
}

// work serves whatever ranks the job gives this worker until it has ended.
func work(ctx context.Context, conn comm.Conn, jobName, name string) error {
	w, err := client.Join(ctx, client.Options{Conn: conn, Job: jobName, Worker: name})
	if err != nil {
		return err
	}
	seen := map[int]uint64{} // examples of each rank so far: this worker's own state
	err = func() error {
		for {
			work, err := w.Pull(ctx)
			if rewound := (*client.Rewound)(nil); errors.As(err, &rewound) {
				continue // work.Gained of the next Pull names every rank again
			}
			if errors.Is(err, client.ErrDone) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := takeOver(ctx, w, &work, seen); err != nil {
				return err
			}
			for _, rank := range work.Ranks {
				grad, loss := gradient(work.Params, rank, seen[rank])
				seen[rank] += batch
				w.SaveState(rank, binary.LittleEndian.AppendUint64(nil, seen[rank]))
				err := w.Push(ctx, client.Contribution{Rank: rank, Step: work.Step, Version: work.Version, Grad: grad, Loss: loss, Examples: batch})
				if err != nil && !errors.Is(err, client.ErrNotMine) { // ErrNotMine: the rank has moved on
					return err
				}
			}
		}
	}()
	return errors.Join(err, w.Close())
}

// takeOver loads the state of ranks that somebody else served before.
func takeOver(ctx context.Context, w *client.Worker, work *client.Work, seen map[int]uint64) error {
	for _, rank := range work.Gained {
		seen[rank] = 0
		if work.Step == 0 {
			continue
		}
		state, err := w.LoadState(ctx, rank, work.Step)
		if err != nil {
			return err
		}
		seen[rank] = binary.LittleEndian.Uint64(state)
	}
	return nil
}

// gradient is that of half the mean squared error over the rank's next batch.
// Its numbers are a function of the rank and of how many it saw, so whoever
// serves the rank computes the same bits.
func gradient(p []float32, rank int, from uint64) (grad []float32, loss float64) {
	grad = make([]float32, len(p))
	for i := from; i < from+batch; i++ {
		point := rand.New(rand.NewPCG(uint64(rank), i))
		x := []float32{point.Float32(), point.Float32(), 1}
		var off float32
		for j := range x {
			off += x[j] * (p[j] - truth[j])
		}
		for j := range x {
			grad[j] += off * x[j] / batch
		}
		loss += float64(off*off) / 2 / batch
	}
	return grad, loss
}

func show(ctx context.Context, servers *local.Cluster, rec *job.Record) error {
	m, err := servers.Fetch(ctx, rec)
	if err != nil {
		return err
	}
	fmt.Printf("after %d steps: y = %.3f·x₀ + %.3f·x₁ + %.3f\n", m.Step, m.Params[0], m.Params[1], m.Params[2])
	return nil
}
