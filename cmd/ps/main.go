// Command ps runs a parameter server: everything in one process (`ps up`), or
// one role of a cluster (`ps broker`, `ps serve`), and talks to one.
package main

import (
	"os"

	"tributary/internal/cli"
)

type grammar struct {
	Up      upCmd      `cmd:"" help:"Run a whole job here: broker, parameter servers and workers."`
	Serve   serveCmd   `cmd:"" help:"Run a parameter server of a cluster."`
	Broker  brokerCmd  `cmd:"" help:"Run a NATS broker for a cluster."`
	Submit  submitCmd  `cmd:"" help:"Hand a job to a cluster."`
	Jobs    jobsCmd    `cmd:"" help:"List the cluster's jobs."`
	Status  statusCmd  `cmd:"" help:"Say how a job stands and whom it waits for."`
	Explain explainCmd `cmd:"" help:"Say how a job runs: pipeline, closing, memory, reproducibility."`
	Rules   rulesCmd   `cmd:"" help:"List the update rules, or explain one."`
	Stop    stopCmd    `cmd:"" help:"Stop a job at a step, with a checkpoint."`
	Resume  resumeCmd  `cmd:"" help:"Let a stopped or halted job go on from its newest checkpoint."`
	Model   modelCmd   `cmd:"" help:"Read the model of an ended job and save it."`
	Faults  faultsCmd  `cmd:"" help:"Simulate a whole cluster under faults, by seed."`
	Bench   benchCmd   `cmd:"" help:"Measure."`
	// Worker lets `ps up --processes` start workers from this one binary.
	Worker struct {
		Run   cli.WorkerRun   `cmd:"" help:"Work for a job with a built-in model until it ends."`
		Bench cli.WorkerBench `cmd:"" help:"Push synthetic gradients." hidden:""`
	} `cmd:"" help:"The worker command, as in the binary of that name."`
}

func main() {
	os.Exit(cli.Main("ps", "Tributary: a parameter server for multi-node optimization.", &grammar{}, os.Args[1:]))
}
