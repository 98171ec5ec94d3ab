package kernelbench

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"tributary/internal/vec"
)

//go:embed c/update.c
var updateC []byte

// Bandwidth makes passes of the loop a[i] += s·b[i].
type Bandwidth struct {
	// Loop says whose loop it is.
	Loop    string
	n       int
	threads int
	a, b    []float32 // of the loop in Go
	in      io.WriteCloser
	out     *bufio.Scanner
	cmd     *exec.Cmd
}

// NewBandwidth returns the loop over n elements, in C if program, from
// [CompileC], is not empty.
func NewBandwidth(ctx context.Context, program string, n, threads int) (*Bandwidth, error) {
	w := &Bandwidth{Loop: "Go, " + vec.Active().String(), n: n, threads: threads}
	if program == "" {
		w.a, w.b = filled(n, 1), filled(n, 1)
		return w, nil
	}
	w.Loop = "C"
	w.cmd = exec.CommandContext(ctx, program, strconv.Itoa(n), strconv.Itoa(threads))
	w.cmd.Stderr = os.Stderr
	var err error
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewScanner(out)
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	return w, nil
}

// Pass is the bandwidth of one pass in bytes per second.
func (w *Bandwidth) Pass() (float64, error) {
	if w.cmd == nil {
		return float64(updateBytes*w.n) / parallel(w.threads, func(i int) {
			lo, hi := share(w.n, w.threads, i)
			vec.AddScaled(w.a[lo:hi], w.a[lo:hi], 1e-9, w.b[lo:hi])
		}).Seconds(), nil
	}
	if _, err := io.WriteString(w.in, "\n"); err != nil {
		return 0, err
	}
	if !w.out.Scan() {
		return 0, fmt.Errorf("the loop in C has ended: %v", w.out.Err())
	}
	s, err := strconv.ParseFloat(strings.TrimSpace(w.out.Text()), 64)
	if err != nil {
		return 0, fmt.Errorf("the loop in C says %q", w.out.Text())
	}
	return float64(updateBytes*w.n) / s, nil
}

// passes makes n passes.
func (w *Bandwidth) passes(n int) (all []float64, err error) {
	for range n {
		b, err := w.Pass()
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// Close ends the loop.
func (w *Bandwidth) Close() error {
	if w.cmd == nil {
		return nil
	}
	w.in.Close() // the process ends at the end of its input
	return w.cmd.Wait()
}

// CompileC compiles the loop into dir and returns the program and the command
// that made it; without a compiler, nothing.
func CompileC(ctx context.Context, dir string) (program, how string, err error) {
	cc := "gcc"
	if _, err := exec.LookPath(cc); err != nil {
		cc = "cc"
		if _, err := exec.LookPath(cc); err != nil {
			return "", "", nil
		}
	}
	source := filepath.Join(dir, "update.c")
	if err := os.WriteFile(source, updateC, 0o644); err != nil {
		return "", "", err
	}
	program = filepath.Join(dir, "update")
	args := []string{"-O3", "-march=native", "-pthread", "-o", program, source}
	if out, err := exec.CommandContext(ctx, cc, args...).CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("%s: %w\n%s", cc, err, out)
	}
	return program, strings.Join(append([]string{cc}, args[:3]...), " "), nil
}

// share is the part of n elements that thread i of several takes; it begins at
// a page of memory if the whole does.
func share(n, threads, i int) (lo, hi int) {
	const page = 1024
	cut := func(i int) int {
		if i == threads {
			return n
		}
		return n / threads * i / page * page
	}
	return cut(i), cut(i + 1)
}

func filled(n int, x float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = x
	}
	return v
}

// AloneC is the median bandwidth in bytes per second of so many passes of the
// compiled loop in a fresh process.
func AloneC(ctx context.Context, program string, n, threads, passes int) (float64, error) {
	w, err := NewBandwidth(ctx, program, n, threads)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	const warmup = 2
	all, err := w.passes(warmup + passes)
	if err != nil {
		return 0, err
	}
	return RangeOf(all[warmup:]).Median, nil
}
