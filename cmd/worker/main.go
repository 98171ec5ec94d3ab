// Command worker computes gradients for jobs: `worker run --job NAME`.
package main

import (
	"os"

	"tributary/internal/cli"
)

type grammar struct {
	Run   cli.WorkerRun   `cmd:"" help:"Work for a job with a built-in model until it ends."`
	Bench cli.WorkerBench `cmd:"" help:"Push synthetic gradients to a job and say where the time went." hidden:""`
}

func main() {
	os.Exit(cli.Main("worker", "Tributary worker: computes gradients for a job and pushes them to its parameter servers.", &grammar{}, os.Args[1:]))
}
