package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"

	"tributary/job"
)

//go:embed digits.yaml
var digitsJob []byte

// jobFlags choose a job and change it.
type jobFlags struct {
	File  string   `arg:"" optional:"" help:"Job file (YAML); without one, the built-in digits job." placeholder:"JOB.yaml"`
	Set   []string `help:"Change a field, as in --set optimizer.hyper.lr=0.01; may be repeated." sep:"none" placeholder:"KEY=VALUE"`
	Data  string   `help:"Short for --set data.name=…: digits, mnist, fashion-mnist, csv or libsvm." placeholder:"NAME"`
	Print bool     `help:"Print the job with all its fields and exit."`
}

// load reads the job. All problems are reported together, with the file's name
// before each.
func (f *jobFlags) load() (*job.Spec, error) {
	text, name := digitsJob, "built-in job"
	if f.File != "" {
		var err error
		if text, err = os.ReadFile(f.File); err != nil {
			return nil, fmt.Errorf("job file: %w", err)
		}
		name = f.File
	}
	s, err := job.Parse(text)
	if err != nil {
		return nil, named(name, err)
	}
	sets := f.Set
	if f.Data != "" {
		sets = append([]string{"data.name=" + f.Data}, sets...)
	}
	var errs []error
	for _, set := range sets {
		if err := s.Set(set); err != nil {
			errs = append(errs, fmt.Errorf("--set %s: %w", set, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, named(name+" with --set", err)
	}
	return s, nil
}

// named puts the file's name before each problem.
func named(file string, err error) error {
	var ps job.Problems
	if !errors.As(err, &ps) {
		return fmt.Errorf("%s: %w", file, err)
	}
	errs := make([]error, len(ps))
	for i, p := range ps {
		errs[i] = fmt.Errorf("%s: %s", file, p)
	}
	return errors.Join(errs...)
}

// printJob writes the job as a file that can be read back.
func printJob(s *job.Spec) error {
	b, err := s.Marshal()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(b)
	return err
}
