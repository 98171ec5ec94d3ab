// Package worker is the built-in worker: it joins a job, computes the gradients
// of one of the models of package train on one of its data sets, and pushes
// them, until the job ends. [Run] is what `worker run` does; a worker of one's
// own is written with package client in the same way (see examples/).
package worker

import (
	"errors"
	"fmt"

	"tributary/job"
	"tributary/layout"
	"tributary/train"
)

// Task is what a job trains: its data and its model.
type Task struct {
	Spec        *job.Spec
	Train, Test *train.Dataset
	Split       *train.Split // nil if the data come with a test part of their own
	model       train.ModelSpec
}

// ErrOwnModel: the job's model is a list of tensors, whose workers bring their
// own data and gradients.
var ErrOwnModel = errors.New("the job's model is a list of tensors: write a worker of your own with package client")

// NewTask loads the data of a job with a built-in model.
func NewTask(s *job.Spec) (*Task, error) {
	if s.Model.Kind == "tensors" {
		return nil, ErrOwnModel
	}
	t := &Task{Spec: s, model: train.ModelSpec{Kind: s.Model.Kind, Hidden: s.Model.Hidden, Channels: s.Model.Channels}}
	var err error
	if t.Train, t.Test, t.Split, err = (train.Source{Name: s.Data.Name, Path: s.Data.Path, Label: s.Data.Label}).Load(s.Seed); err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	if t.Train.N < s.RankCount() {
		return nil, fmt.Errorf("data: %d training examples for %d ranks", t.Train.N, s.RankCount())
	}
	if _, err := t.NewModel(); err != nil {
		return nil, err
	}
	return t, nil
}

// NewModel makes the model, with a workspace of its own.
func (t *Task) NewModel() (train.Model, error) { return train.NewModel(t.model, t.Train.Shape()) }

// Record describes the job for submission.
func (t *Task) Record() (*job.Record, error) {
	m, err := t.NewModel()
	if err != nil {
		return nil, err
	}
	return job.NewRecord(t.Spec, m.Tensors()), nil
}

// NewRecord describes a job for submission, whatever its model.
func NewRecord(s *job.Spec) (*job.Record, error) {
	if s.Model.Kind == "tensors" {
		return job.NewRecord(s, nil), nil
	}
	t, err := NewTask(s)
	if err != nil {
		return nil, err
	}
	return t.Record()
}

// Evaluate returns the mean cross-entropy in nats and the share of right
// answers of the model at params on the test part.
func (t *Task) Evaluate(params []float32) (loss, accuracy float64, err error) {
	m, err := t.NewModel()
	if err != nil {
		return 0, 0, err
	}
	loss, correct := m.Eval(params, t.Test.X, t.Test.Y, t.Test.N)
	return loss, float64(correct) / float64(t.Test.N), nil
}

// matches checks that the model which the data on this machine make is the
// job's.
func (t *Task) matches(l *layout.Layout) error {
	m, err := t.NewModel()
	if err != nil {
		return err
	}
	ts := m.Tensors()
	if len(ts) != len(l.Tensors) {
		return fmt.Errorf("the data here make a model of %d tensors, the job's has %d: are they the same files?", len(ts), len(l.Tensors))
	}
	for i := range ts {
		if ts[i].Name != l.Tensors[i].Name || ts[i].Len != l.Tensors[i].Len {
			return fmt.Errorf("the data here make tensor %q of %d parameters, the job has %q of %d: are they the same files?",
				ts[i].Name, ts[i].Len, l.Tensors[i].Name, l.Tensors[i].Len)
		}
	}
	return nil
}
