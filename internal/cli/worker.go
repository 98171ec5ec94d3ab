package cli

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"tributary/worker"
)

// WorkerRun is `worker run`.
type WorkerRun struct {
	Job      string        `help:"Name of the job to work for." required:"" placeholder:"NAME"`
	Name     string        `help:"Name of this worker, unique in the job (default: the host's name and a number)." placeholder:"NAME"`
	Replace  bool          `help:"Take the name over from a process that still lives."`
	Patience time.Duration `help:"Give up when nothing has come for so long." default:"10m"`
	EOF      bool          `name:"until-eof" help:"Leave when standard input ends." hidden:""`
	Broker
	Log
}

// Run works for the job until it ends or ctx does.
func (c *WorkerRun) Run(ctx context.Context) error {
	ctx, cancel := UntilEOF(ctx, c.EOF)
	defer cancel()
	log := c.New()
	name := c.Name
	if name == "" {
		name = DefaultName("worker")
	}
	link, err := c.Connect(ctx, name, log)
	if err != nil {
		return err
	}
	res, err := worker.Run(ctx, worker.Options{Data: link.Data, Control: link.Control, Job: c.Job, Name: name, Replace: c.Replace,
		Logger: log, OnWait: Waiting, JoinTimeout: c.Wait, Patience: c.Patience})
	if cerr := link.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s: job %q %s; %d contributions pushed\n", name, c.Job, res.Ended, res.Pushed)
	return nil
}

// DefaultName makes a name from the host's that is hardly taken.
func DefaultName(kind string) string {
	host, err := os.Hostname()
	if err != nil {
		host = kind
	}
	clean := []byte(host)
	for i, c := range clean {
		if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			clean[i] = '-'
		}
	}
	return fmt.Sprintf("%.40s-%s-%04x", clean, kind, rand.Uint32()&0xffff)
}
