package worker

import (
	"context"
	"errors"
	"time"

	"tributary/client"
	"tributary/internal/rng"
	"tributary/optim"
)

// Measured is where the time of a worker with synthetic gradients went, over
// the steps after the warm-up.
type Measured struct {
	Steps  uint64        `json:"steps"`
	Wall   time.Duration `json:"wall_ns"`
	Encode time.Duration `json:"encode_ns"`
	Decode time.Duration `json:"decode_ns"`
	Bytes  uint64        `json:"bytes"` // of tensors, both directions
}

// Synthetic works for a job like [Run], but pushes numbers that cost nothing to
// compute: what is left is the parameter server. The first warmup steps are not
// measured.
func Synthetic(ctx context.Context, o Options, warmup uint64) (Measured, error) {
	w, err := client.Join(ctx, client.Options{Conn: o.Data, Control: o.Control, Job: o.Job, Worker: o.Name, Logger: o.Logger, OnWait: o.OnWait, JoinTimeout: o.JoinTimeout})
	if err != nil {
		return Measured{}, err
	}
	m, err := synthetic(ctx, w, warmup)
	if errors.Is(err, client.ErrDone) {
		err = nil
	}
	return m, errors.Join(err, w.Close())
}

func synthetic(ctx context.Context, w *client.Worker, warmup uint64) (m Measured, err error) {
	plan := w.Plan()
	grads := make([][]float32, plan.Ranks)
	var start time.Time
	var before client.Times
	var bytes uint64
	for {
		work, err := w.Pull(ctx)
		if err != nil {
			return m, err
		}
		if work.Step == warmup {
			start, before = time.Now(), w.Times()
			s := w.Stats()
			bytes = s.BytesIn + s.BytesOut
		}
		if work.Step > warmup {
			t, s := w.Times(), w.Stats()
			m = Measured{Steps: work.Step - warmup, Wall: time.Since(start), Encode: t.Encode - before.Encode, Decode: t.Decode - before.Decode,
				Bytes: s.BytesIn + s.BytesOut - bytes}
		}
		for _, rank := range work.Ranks {
			// The same numbers at every step: the session only reads them.
			if grads[rank] == nil {
				grads[rank] = pattern(plan.Layout.P, rank)
			}
			c := client.Contribution{Rank: rank, Step: work.Step, Version: work.Version, Grad: grads[rank], Loss: 1, Extra: map[optim.Role][]float32{}}
			for _, role := range work.Roles {
				c.Extra[role] = grads[rank] // the session takes Grad from Grad
			}
			err := w.Push(ctx, c)
			if err != nil && !errors.Is(err, client.ErrNotMine) {
				return m, err
			}
		}
	}
}

// pattern is n small numbers of either sign.
func pattern(n, rank int) []float32 {
	k := rng.New(uint64(rank), "synthetic")
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(k.Float64(uint64(i))-0.5) * 1e-2
	}
	return x
}
