package worker

import (
	"errors"
	"fmt"
	"io/fs"

	"tributary/checkpoint"
	"tributary/layout"
	"tributary/train"
)

// teacher is the trained model whose scores a job distils (`distill`).
type teacher struct {
	model       train.Model
	params      []float32
	temperature float64
	weight      float32
	scores      []float32
}

// CheckTeacher says why the job's teacher cannot be read here. A job that has
// none needs none.
func (t *Task) CheckTeacher() error {
	if t.Spec.Distill.Teacher == "" {
		return nil
	}
	_, err := newTeacher(t)
	return err
}

func newTeacher(task *Task) (*teacher, error) {
	d := task.Spec.Distill
	m, err := train.NewModel(train.ModelSpec{Kind: d.Kind, Hidden: d.Hidden, Channels: d.Channels}, task.Train.Shape())
	if err != nil {
		return nil, fmt.Errorf("distill: %w", err)
	}
	l, err := layout.New(m.Tensors(), 0)
	if err != nil {
		return nil, fmt.Errorf("distill: %w", err)
	}
	params, err := checkpoint.ReadSafetensors(d.Teacher, l)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("distill.teacher: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("distill.teacher: %w; its model is described by distill.kind, hidden and channels", err)
	}
	return &teacher{model: m, params: params, temperature: d.Temperature, weight: float32(d.Weight)}, nil
}

// gradient is that of the distillation loss on c's current batch.
func (t *teacher) gradient(c *calculator, params []float32, n int, out []float32) {
	if need := n * c.task.Train.Classes; len(t.scores) != need {
		t.scores = make([]float32, need)
	}
	t.model.Scores(t.params, c.x, n, t.scores)
	c.model.GradSoft(params, c.x, t.scores, t.temperature, n, out)
	for i := range out {
		out[i] *= t.weight
	}
}
