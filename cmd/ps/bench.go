package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"tributary/cluster"
	"tributary/internal/cli"
	"tributary/job"
	"tributary/layout"
	"tributary/worker"
)

// benchCmd groups the benchmarks.
type benchCmd struct {
	Step    benchStepCmd    `cmd:"" help:"Time a synchronous AdamW step, server and workers being processes of their own."`
	Kernels benchKernelsCmd `cmd:"" help:"Measure update rules and the combination of contributions against the bandwidth of memory."`
}

// benchStepCmd measures whole steps with synthetic gradients: every worker
// pushes all parameters' gradients over a broker and gets all parameters back.
type benchStepCmd struct {
	Workers []int     `help:"Numbers of workers." default:"2,4"`
	Params  []float64 `help:"Sizes of the model in millions of parameters." default:"0.1,1,10,25,50"`
	Servers int       `help:"Parameter servers." default:"1"`
	Shards  int       `help:"Shards (0: 8 per server)." default:"0"`
	Runs    int       `help:"Runs of each; the one with the median step time counts." default:"3"`
	Seconds float64   `help:"About how long a run measures." default:"4"`
	JSON    bool      `name:"json" help:"Print a JSON line for each instead of a table."`
}

// stepResult is one line of the benchmark. Times are milliseconds per step.
type stepResult struct {
	Params      int     `json:"parameters"`
	Workers     int     `json:"workers"`
	Servers     int     `json:"servers"`
	Steps       uint64  `json:"steps"`
	StepsPerSec float64 `json:"steps_per_second"`
	MBPerSec    float64 `json:"mb_per_second"` // tensors, both directions, all workers
	Step        float64 `json:"step_ms"`
	Encode      float64 `json:"encode_ms"` // a worker making and handing over its frames
	Wire        float64 `json:"wire_ms"`   // what is left: sockets, broker, queues
	Wait        float64 `json:"wait_ms"`   // from the first rank's chunk to the last one's, mean over chunks
	Update      float64 `json:"update_ms"` // combining and updating, all shards of a server added up
	Decode      float64 `json:"decode_ms"` // a worker checking and copying what it received
	Fastest     float64 `json:"fastest_step_ms"`
	Slowest     float64 `json:"slowest_step_ms"`
}

// Run prints one line for each size and number of workers.
func (c *benchStepCmd) Run(ctx context.Context) error {
	if c.Runs < 1 || c.Servers < 1 || c.Seconds <= 0 {
		return errors.New("--runs, --servers and --seconds must be above 0")
	}
	var all []stepResult
	for _, millions := range c.Params {
		for _, workers := range c.Workers {
			params := int(math.Round(millions * 1e6))
			if params < 1 || workers < 1 {
				return fmt.Errorf("%v million parameters and %d workers: want more than 0 of both", millions, workers)
			}
			r, err := c.median(ctx, params, workers)
			if err != nil {
				return fmt.Errorf("%d parameters, %d workers: %w", params, workers, err)
			}
			all = append(all, r)
			if c.JSON {
				if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
					return err
				}
			}
		}
	}
	if c.JSON {
		return nil
	}
	return printSteps(all)
}

func printSteps(all []stepResult) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "parameters\tworkers\tsteps/s\tMB/s\tstep ms\tencode\twire\twait\tupdate\tdecode\t")
	for _, r := range all {
		fmt.Fprintf(w, "%.1f M\t%d\t%.2f\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", float64(r.Params)/1e6, r.Workers, r.StepsPerSec, r.MBPerSec, r.Step, r.Encode, r.Wire, r.Wait, r.Update, r.Decode)
	}
	return w.Flush()
}

func (c *benchStepCmd) median(ctx context.Context, params, workers int) (stepResult, error) {
	var rs []stepResult
	for run := range c.Runs {
		fmt.Fprintf(os.Stderr, "%.1f M parameters, %d workers, run %d of %d\n", float64(params)/1e6, workers, run+1, c.Runs)
		r, err := c.once(ctx, params, workers)
		if err != nil {
			return r, err
		}
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b stepResult) int { return int(math.Copysign(1, a.Step-b.Step)) })
	r := rs[len(rs)/2]
	r.Fastest, r.Slowest = rs[0].Step, rs[len(rs)-1].Step
	return r, nil
}

// assumedBytesPerSec only serves to choose how many steps fill the time.
const assumedBytesPerSec = 7e8

func (c *benchStepCmd) spec(params, workers int) *job.Spec {
	s := job.Default()
	s.Name = "bench"
	s.Model = job.Model{Kind: "tensors", Tensors: []layout.Tensor{{Name: "w", Shape: []int{params}}}}
	s.Data = job.Data{Name: "none"}
	s.Workers, s.Servers, s.Shards = workers, c.Servers, c.Shards
	s.Checkpoint.Every, s.Eval.Every = 0, 0
	s.Timeouts.Worker = job.Duration(time.Minute)
	s.MemoryBudget = 16 << 30
	perStep := 8 * float64(params) * float64(workers)
	s.Steps = max(8, uint64(c.Seconds*assumedBytesPerSec/perStep))
	return s
}

// once runs broker, servers and workers as processes and measures one job.
func (c *benchStepCmd) once(ctx context.Context, params, workers int) (r stepResult, err error) {
	dir, err := os.MkdirTemp("", "tributary-bench-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	p := &procs{ctx: ctx}
	defer p.end()
	url, err := p.broker(filepath.Join(dir, "broker"))
	if err != nil {
		return r, err
	}
	for i := range c.Servers {
		name := fmt.Sprintf("ps-%d", i+1)
		if err := p.start(nil, "serve", "--nats", url, "--name", name, "--dir", filepath.Join(dir, name), "--log-level", "warn"); err != nil {
			return r, err
		}
	}
	link, err := (cli.Broker{NATS: url, Wait: 10 * time.Second}).Connect(ctx, "bench", cli.Log{Level: "warn"}.New())
	if err != nil {
		return r, err
	}
	defer link.Close()
	auth, err := link.Authority(ctx)
	if err != nil {
		return r, err
	}
	spec := c.spec(params, workers)
	rec, err := worker.NewRecord(spec)
	if err != nil {
		return r, err
	}
	if rec, err = submit(ctx, auth, rec, 20*time.Second, cli.Waiting); err != nil {
		return r, err
	}
	warmup := max(2, spec.Steps/10)
	results := make([]worker.Measured, workers)
	outs := make([]io.ReadCloser, workers)
	for i := range workers {
		if err := p.start(&outs[i], "worker", "bench", "--nats", url, "--job", spec.Name, "--name", fmt.Sprintf("worker-%d", i+1), "--warmup", fmt.Sprint(warmup), "--log-level", "warn"); err != nil {
			return r, err
		}
	}
	for i := range workers {
		if err := json.NewDecoder(outs[i]).Decode(&results[i]); err != nil {
			return r, fmt.Errorf("worker %d: %w", i+1, err)
		}
	}
	totals, err := cluster.StatsOf(ctx, link.NATS(), rec)
	if err != nil {
		return r, err
	}
	return summarize(params, workers, c.Servers, spec.Steps, results, totals), nil
}

// summarize makes means per step.
func summarize(params, workers, servers int, steps uint64, ms []worker.Measured, totals []cluster.ShardStats) stepResult {
	r := stepResult{Params: params, Workers: workers, Servers: servers, Steps: ms[0].Steps}
	n := float64(len(ms))
	for _, m := range ms {
		per := 1e-6 / float64(m.Steps)
		r.Step += float64(m.Wall) * per / n
		r.Encode += float64(m.Encode) * per / n
		r.Decode += float64(m.Decode) * per / n
		r.MBPerSec += float64(m.Bytes) / 1e6 / m.Wall.Seconds()
	}
	var skew, applied float64
	for _, t := range totals {
		r.Update += float64(t.UpdateNanos) * 1e-6 / float64(steps) / float64(servers)
		skew += float64(t.SkewNanos) * 1e-6
		applied += float64(t.Applied)
	}
	r.Wait = skew / applied
	r.StepsPerSec = 1e3 / r.Step
	r.Wire = max(0, r.Step-r.Encode-r.Decode-r.Update-r.Wait)
	return r
}

// procs are processes of this same program, ended together.
type procs struct {
	ctx  context.Context
	cmds []*exec.Cmd
}

// broker starts one on a free port and returns its address.
func (p *procs) broker(dir string) (string, error) {
	var errs io.ReadCloser
	cmd, err := p.command("broker", "--port=-1", "--dir", dir, "--log-level", "warn")
	if err != nil {
		return "", err
	}
	if errs, err = cmd.StderrPipe(); err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	p.cmds = append(p.cmds, cmd)
	lines := bufio.NewScanner(errs)
	for lines.Scan() {
		if url, ok := strings.CutPrefix(lines.Text(), "broker at "); ok {
			go io.Copy(os.Stderr, errs) // until the broker ends
			return url, nil
		}
		fmt.Fprintln(os.Stderr, lines.Text())
	}
	return "", errors.New("the broker did not start")
}

func (p *procs) command(args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(p.ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = ownGroup()
	return cmd, nil
}

// start starts one; its standard output is handed out unless out is nil.
func (p *procs) start(out *io.ReadCloser, args ...string) error {
	cmd, err := p.command(args...)
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if out != nil {
		if *out, err = cmd.StdoutPipe(); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmds = append(p.cmds, cmd)
	return nil
}

// end interrupts all, the last one first, and waits.
func (p *procs) end() {
	for _, cmd := range slices.Backward(p.cmds) {
		cmd.Process.Kill() // nothing of a benchmark is worth a good end
		cmd.Wait()         // it was killed: the error says just that
	}
}
