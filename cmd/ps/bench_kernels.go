package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"tributary/internal/kernelbench"
	"tributary/internal/vec"
)

// benchKernelsCmd measures update rules, and the combination of contributions,
// against the bandwidth of memory.
type benchKernelsCmd struct {
	Params  float64  `help:"Parameters in units of 2^20; rounded up to matrices of 512 by 512." default:"16"`
	Threads []int    `help:"Numbers of threads." default:"1,2"`
	Rounds  int      `help:"Measurements of each; the medians are printed, and in brackets the least and the greatest." default:"7"`
	Rules   []string `help:"Only these rules; a name may be followed by hyper-parameters, as in 'sgd momentum=0.9'."`
	Pairs   int      `help:"Instead of the tables: so many pairs of processes, the loop in C and the one rule named by --rules, in turn." default:"0"`
	JSON    bool     `name:"json" help:"Print a JSON line for each figure instead of tables."`
	Alone   string   `hidden:"" help:"Print the bandwidth of this rule and nothing else."`
}

// fusedCounts are the numbers of contributions in the table of the fused pass.
var fusedCounts = []int{2, 4, 8}

// Run prints two tables: rules, and ways to combine contributions.
func (c *benchKernelsCmd) Run(ctx context.Context) error {
	matrices := int((c.Params*(1<<20) + kernelbench.Side*kernelbench.Side - 1) / (kernelbench.Side * kernelbench.Side))
	if c.Rounds < 1 || len(c.Threads) == 0 || slices.Min(c.Threads) < 1 || matrices < slices.Max(c.Threads) {
		return errors.New("--rounds and --threads must be above 0, and --params enough for a matrix of 512 by 512 in every thread")
	}
	if c.Alone != "" {
		b, err := kernelbench.Alone(c.Alone, matrices, c.Threads[0], 15)
		if err == nil {
			fmt.Println(b)
		}
		return err
	}
	dir, err := os.MkdirTemp("", "tributary-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program, how, err := kernelbench.CompileC(ctx, dir)
	if err != nil {
		return err
	}
	if c.Pairs > 0 {
		return c.pairs(ctx, program, matrices)
	}
	if program == "" {
		how = "no C compiler: the loop of this program, path " + vec.Active().String()
	}
	fmt.Fprintf(os.Stderr, "%d parameters, path %v; bandwidth: a[i] += s*b[i], %s\n", matrices*kernelbench.Side*kernelbench.Side, vec.Active(), how)
	rules := c.Rules
	if len(rules) == 0 {
		rules = kernelbench.Names()
	}
	t := kernelTable{json: c.JSON, w: tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)}
	for _, threads := range c.Threads {
		mem, err := kernelbench.NewBandwidth(ctx, program, matrices*kernelbench.Side*kernelbench.Side, threads)
		if err != nil {
			return err
		}
		t.head("rule", "threads", "bytes", "G elements/s", "GB/s", "of bandwidth")
		for _, name := range rules {
			fmt.Fprintf(os.Stderr, "%s, %d threads\n", name, threads)
			r, err := kernelbench.Rule(name, matrices, threads, c.Rounds, mem)
			if err != nil {
				return err
			}
			t.row(r, name, strconv.Itoa(threads), fmt.Sprintf("%.4g", r.Bytes), figure(r.Rate, 1e-9, 3), figure(r.Traffic, 1e-9, 1), figure(r.Fraction, 1, 2))
		}
		if err := t.end(); err != nil {
			return err
		}
		t.head("fused", "contributions", "threads", "fused ms", "separate ms", "fused/separate")
		for _, k := range fusedCounts {
			for _, half := range []bool{false, true} {
				r, err := kernelbench.Fused("adamw", matrices, k, half, threads, c.Rounds)
				if err != nil {
					return err
				}
				kind := " float32"
				if half {
					kind = " bf16"
				}
				t.row(r, "adamw", strconv.Itoa(k)+kind, strconv.Itoa(threads), figure(r.Fused, 1e3, 1), figure(r.Separate, 1e3, 1), figure(r.Ratio, 1, 2))
			}
		}
		if err := t.end(); err != nil {
			return err
		}
		if err := mem.Close(); err != nil {
			return err
		}
	}
	return nil
}

// figure is a range times unit with so many decimals.
func figure(r kernelbench.Range, unit float64, decimals int) string {
	return fmt.Sprintf("%.*f (%.*f to %.*f)", decimals, r.Median*unit, decimals, r.Min*unit, decimals, r.Max*unit)
}

// kernelTable prints tables, or lines of JSON.
type kernelTable struct {
	json bool
	w    *tabwriter.Writer
	err  error
}

func (t *kernelTable) head(columns ...string) {
	if !t.json {
		fmt.Fprintln(t.w, strings.Join(columns, "\t")+"\t")
	}
}

func (t *kernelTable) row(result any, columns ...string) {
	if !t.json {
		t.head(columns...)
	} else if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		t.err = err
	}
}

func (t *kernelTable) end() error {
	if !t.json {
		fmt.Fprintln(t.w)
	}
	return errors.Join(t.err, t.w.Flush())
}

// pairs runs the loop in C and a rule in turn, each in fresh processes, and
// prints the ratio of their bandwidths.
func (c *benchKernelsCmd) pairs(ctx context.Context, program string, matrices int) error {
	if program == "" {
		return errors.New("--pairs needs a C compiler")
	}
	if len(c.Rules) != 1 {
		return errors.New("--pairs needs one rule: --rules adamw")
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	for _, threads := range c.Threads {
		var loop, rule, ratio []float64
		for range c.Pairs {
			b, err := kernelbench.AloneC(ctx, program, matrices*kernelbench.Side*kernelbench.Side, threads, 15)
			if err != nil {
				return err
			}
			cmd := exec.CommandContext(ctx, self, "bench", "kernels", "--alone", c.Rules[0], "--params", fmt.Sprint(c.Params), "--threads", strconv.Itoa(threads))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return err
			}
			r, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
			if err != nil {
				return fmt.Errorf("the process of %s printed %q", c.Rules[0], out)
			}
			loop, rule, ratio = append(loop, b), append(rule, r), append(ratio, r/b)
		}
		fmt.Printf("%s, %d threads, %d pairs: %s GB/s, the loop in C %s GB/s, ratio %s\n", c.Rules[0], threads, c.Pairs,
			figure(kernelbench.RangeOf(rule), 1e-9, 1), figure(kernelbench.RangeOf(loop), 1e-9, 1), figure(kernelbench.RangeOf(ratio), 1, 3))
	}
	return nil
}
