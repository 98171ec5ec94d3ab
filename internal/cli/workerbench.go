package cli

import (
	"context"
	"encoding/json"
	"os"

	"tributary/worker"
)

// WorkerBench is `worker bench`: a part of `ps bench step`.
type WorkerBench struct {
	Job    string `help:"Name of the job." required:"" placeholder:"NAME"`
	Name   string `help:"Name of this worker." required:"" placeholder:"NAME"`
	Warmup uint64 `help:"Steps that are not measured." default:"5"`
	Broker
	Log
}

// Run prints what was measured as one JSON line.
func (c *WorkerBench) Run(ctx context.Context) error {
	log := c.New()
	link, err := c.Connect(ctx, c.Name, log)
	if err != nil {
		return err
	}
	m, err := worker.Synthetic(ctx, worker.Options{Data: link.Data, Control: link.Control, Job: c.Job, Name: c.Name, Logger: log, OnWait: Waiting, JoinTimeout: c.Wait}, c.Warmup)
	if cerr := link.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(m)
}
