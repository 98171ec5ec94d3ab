// Package cli is what the commands share: how they parse their line, end, find
// the broker and run as a worker.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
	exitAborted = 130 // by a second signal, as shells count it
)

// Main parses args into grammar and runs the chosen command, whose Run method
// may take a context.Context. The first SIGINT or SIGTERM ends the context,
// the second one the process. The result is the exit code: 0 for success, 1
// for a failure, told in one line on stderr, and 2 for a line that cannot be
// read.
func Main(name, about string, grammar any, args []string) int {
	ctx, stop := signalled()
	defer stop()
	tuneMemory()
	p, err := kong.New(grammar, kong.Name(name), kong.Description(about), kong.DefaultEnvars("PS"),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.BindTo(ctx, (*context.Context)(nil)))
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return exitFailure
	}
	k, err := p.Parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v; see %s --help\n", name, err, name)
		return exitUsage
	}
	if err := k.Run(); err != nil {
		Say(os.Stderr, name, err)
		return exitFailure
	}
	return exitOK
}

// Say writes an error for people: one line, or one per problem if it has
// several.
func Say(w io.Writer, name string, err error) {
	for line := range strings.SplitSeq(strings.TrimSpace(err.Error()), "\n") {
		fmt.Fprintf(w, "%s: %s\n", name, line)
	}
}

// signalled returns a context that the first signal ends; a second one ends
// the process.
func signalled() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() { // until stop
		for n := 0; ; n++ {
			select {
			case <-signals:
				if n > 0 {
					fmt.Fprintln(os.Stderr, "aborted")
					os.Exit(exitAborted)
				}
				cancel()
			case <-done:
				return
			}
		}
	}()
	return ctx, func() { signal.Stop(signals); close(done); cancel() }
}

// UntilEOF returns a context that ends, too, when standard input does: the end
// of a child whose parent died. With follow false it is ctx.
func UntilEOF(ctx context.Context, follow bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	if follow {
		go func() { // ends with the process at the latest: a read of stdin cannot be interrupted
			if _, err := io.Copy(io.Discard, os.Stdin); err == nil || ctx.Err() == nil {
				cancel()
			}
		}()
	}
	return ctx, cancel
}
