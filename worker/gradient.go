package worker

import (
	"math"

	"tributary/client"
	"tributary/internal/rng"
	"tributary/layout"
	"tributary/optim"
	"tributary/train"
)

// calculator computes what ranks push, in all the roles that update rules ask
// for: a function of the parameters, the seed, the rank and the step alone. It
// is used by one goroutine.
type calculator struct {
	task    *Task
	plan    *client.Plan
	model   train.Model
	teacher *teacher // nil unless the job distils
	sampler *train.Sampler

	x       []float32
	y       []int32
	indices []int
	scratch [][]float32 // of the length of the model
	out     map[slotKey][]float32
	depth   uint64
}

// A tensor that was pushed belongs to the session until its step is applied,
// which is at the latest when step + staleness + 1 is handed out.
type slotKey struct {
	rank int
	role optim.Role
	slot uint64
}

func newCalculator(task *Task, plan *client.Plan) (*calculator, error) {
	m, err := task.NewModel()
	if err != nil {
		return nil, err
	}
	c := &calculator{task: task, plan: plan, model: m, sampler: train.NewSampler(task.Train.N, plan.Ranks, task.Spec.Seed),
		out: map[slotKey][]float32{}, depth: uint64(max(plan.Staleness, 0) + 2)}
	if task.Spec.Distill.Teacher != "" {
		if c.teacher, err = newTeacher(task); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// contribution is what a rank pushes in a step.
func (c *calculator) contribution(work *client.Work, rank int) client.Contribution {
	n := c.task.Spec.Batch
	// All phases of an update see the same examples.
	c.indices, _ = c.sampler.Batch(c.indices[:0], rank, work.Update-1, n)
	c.gather(c.indices)
	con := client.Contribution{Rank: rank, Step: work.Step, Version: work.Version, Examples: float64(n)}
	for _, role := range work.Roles {
		out := c.buffer(rank, role, work.Step)
		switch role {
		case optim.Grad:
			con.Loss = c.gradient(work.Params, n, out)
			con.Grad = out
			if sparse, ok := c.model.(train.RowSparse); ok && c.plan.Rule.Runs && !c.plan.Half {
				con.Runs = sparse.Touched(c.x, n, make([]layout.Range, 0, n))
			}
			continue
		case optim.GradPrev:
			c.gradient(work.Prev, n, out)
		case optim.FullGrad:
			con.Loss, con.Examples = c.full(work.Params, rank, out)
			c.gather(c.indices[:n]) // full has overwritten the batch
		case optim.HessDiag:
			c.hessian(work, n, out)
		case optim.HessGrad:
			c.sampled(work, rank, n, out)
		case optim.GradKD:
			c.teacher.gradient(c, work.Params, n, out)
		}
		if con.Extra == nil {
			con.Extra = map[optim.Role][]float32{}
		}
		con.Extra[role] = out
	}
	return con
}

// gather makes examples the current batch.
func (c *calculator) gather(indices []int) {
	n := len(indices)
	if need := n * c.task.Train.Dim; cap(c.x) < need {
		c.x, c.y = make([]float32, need), make([]int32, n)
	}
	c.x, c.y = c.x[:n*c.task.Train.Dim], c.y[:n]
	c.task.Train.Gather(indices, c.x, c.y)
}

func (c *calculator) buffer(rank int, role optim.Role, step uint64) []float32 {
	key := slotKey{rank, role, step % c.depth}
	if c.out[key] == nil {
		c.out[key] = make([]float32, c.plan.Layout.P)
	}
	return c.out[key]
}

// work returns memory number i of the length of the model.
func (c *calculator) work(i int) []float32 {
	for len(c.scratch) <= i {
		c.scratch = append(c.scratch, make([]float32, c.plan.Layout.P))
	}
	return c.scratch[i]
}

// gradient is that of the current batch at params, or, where the rule asks for
// it, at params + ρ·g/‖g‖ with g the gradient at params. The loss is that at
// params.
func (c *calculator) gradient(params []float32, n int, out []float32) (loss float64) {
	loss, _ = c.model.Grad(params, c.x, c.y, n, out)
	rho := c.plan.Rule.Perturb
	if rho <= 0 {
		return loss
	}
	sum := 0.0
	for _, g := range out {
		sum += float64(g) * float64(g)
	}
	if sum == 0 {
		return loss
	}
	scale := float32(rho / math.Sqrt(sum))
	moved := c.work(0)
	for i, g := range out {
		moved[i] = params[i] + float32(scale*g)
	}
	c.model.Grad(moved, c.x, c.y, n, out)
	return loss
}

// full is the gradient over all examples that the rank stands for, its loss and
// how many they are.
func (c *calculator) full(params []float32, rank int, out []float32) (loss, examples float64) {
	share := c.sampler.Share(nil, rank)
	part := c.work(0)
	clear(out)
	for lo := 0; lo < len(share); lo += fullPart {
		piece := share[lo:min(lo+fullPart, len(share))]
		c.gather(piece)
		l, _ := c.model.Grad(params, c.x, c.y, len(piece), part)
		f := float64(len(piece)) / float64(len(share))
		loss += f * l
		for i, g := range part {
			out[i] += float32(float32(f) * g)
		}
	}
	if c.task.Spec.Aggregate.By == "uniform" { // else the weight is in Examples
		f := float32(c.sampler.ShareWeight(rank))
		for i := range out {
			out[i] *= f
		}
	}
	return loss, float64(len(share))
}

// fullPart is how many examples of a full gradient are gathered at a time.
const fullPart = 1 << 12

// hessian is the Hutchinson sample of the diagonal of the Hessian: z∘(H·z) of
// the current batch with its sign, or what AdaHessian takes. z is the same for
// all ranks.
func (c *calculator) hessian(work *client.Work, n int, out []float32) {
	z := c.work(0)
	train.Rademacher(c.task.Spec.Seed, work.Update, 0, z)
	c.model.HVP(work.Params, z, c.x, c.y, n, out)
	if c.plan.Rule.AbsHessian {
		train.AbsHessian(c.plan.Layout.Tensors, out, out)
		return
	}
	for i := range out {
		out[i] *= z[i]
	}
}

// sampled is the gradient of the current batch with labels drawn from the
// model's own distribution.
func (c *calculator) sampled(work *client.Work, rank, n int, out []float32) {
	k := rng.New(c.task.Spec.Seed, "labels").With(work.Update).With(uint64(rank))
	y := make([]int32, n)
	c.model.SampleLabels(work.Params, c.x, n, func(i int) float64 { return k.Float64(uint64(i)) }, y)
	c.model.Grad(work.Params, c.x, y, n, out)
}
