package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"tributary/comm"
	"tributary/comm/wire"
	"tributary/job"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
	"tributary/shard"
)

// Snapshot is a whole model at one version: the parameters to evaluate and to
// serve.
type Snapshot struct {
	Params   []float32
	Step     uint64 // updates made
	Timeline uint64
}

// ErrRunning: a model is handed out whole only when its job has finished or
// stopped; before that its parameters change under the reader.
var ErrRunning = errors.New("the job is running")

// Fetch reads the model of a job that has finished or stopped, over the wire
// and without joining. It asks again for what gets lost until ctx ends. While
// the job is still closing it waits; one that runs gives ErrRunning.
func Fetch(ctx context.Context, data, control comm.Conn, p *job.Pipeline) (*Snapshot, error) {
	f := &fetcher{data: data, control: control, pipe: p, name: fmt.Sprintf("reader-%08x", rand.Uint32()),
		inbox: make(chan *wire.Message, 256), params: make([]float32, p.Layout.P), got: make([]bool, p.Layout.Chunks()), left: p.Layout.Chunks()}
	job := p.Spec.Name
	receive := func(_ string, m *wire.Message) {
		select {
		case f.inbox <- m:
		case <-ctx.Done():
			m.Release()
		}
	}
	for _, x := range []struct {
		conn    comm.Conn
		subject string
	}{{data, comm.WorkerSubject(job, f.name)}, {control, comm.NewsSubject(job)}} {
		sub, err := x.conn.Subscribe(x.subject, receive)
		if err != nil {
			return nil, fmt.Errorf("read the model of %q: %w", job, err)
		}
		defer sub.Unsubscribe() // fails only when the connection has ended
	}
	if err := f.run(ctx); err != nil {
		return nil, fmt.Errorf("read the model of %q: %w", job, err)
	}
	return &Snapshot{f.params, f.led.Newest().Step / p.Phases, f.led.Timeline}, nil
}

type fetcher struct {
	data, control comm.Conn
	pipe          *job.Pipeline
	name          string
	inbox         chan *wire.Message
	led           ledger.State
	newsTo        uint64
	heard         bool // of newsTo
	timeline      uint64
	params        []float32
	got           []bool
	left          int
	out           int  // chunks asked for and not here
	moved         bool // a chunk came since the last ask
}

// readWindow is how many chunks are asked for at a time: enough to keep the
// shards busy, far below what a subscription may queue.
const readWindow = 16

// again is how long the fetcher waits before it asks for what is missing.
const again = 200 * time.Millisecond

func (f *fetcher) run(ctx context.Context) error {
	every := time.NewTicker(again)
	defer every.Stop()
	f.ask()
	for f.left > 0 {
		select {
		case m := <-f.inbox:
			err := f.take(m)
			m.Release()
			if err != nil {
				return err
			}
		case <-every.C:
			f.ask()
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", f.waiting(), ctx.Err())
		}
	}
	return nil
}

func (f *fetcher) waiting() string {
	switch {
	case !f.heard:
		return "the job's coordinator does not answer"
	case f.led.N < f.newsTo || !f.ended():
		return "the job has not ended"
	}
	for c, got := range f.got {
		if !got {
			return fmt.Sprintf("shard %d does not answer", f.shardOf(c))
		}
	}
	return ""
}

// ended says whether the model stands still and a cut of it is recorded.
func (f *fetcher) ended() bool {
	s := &f.led
	return s.Finished || s.Stopped && s.Newest().Step == s.StopAt
}

// ask asks for the decisions that are missing, then for parameters.
func (f *fetcher) ask() {
	if !f.heard || f.led.N < f.newsTo {
		h := f.header(wire.AskNews)
		h.Seq = f.led.N + 1
		f.send(f.control, comm.CoordSubject(f.pipe.Spec.Name, f.name), &h)
		return
	}
	if f.ended() && !f.moved {
		f.pull()
	}
	f.moved = false
}

// pull asks for the first missing chunks.
func (f *fetcher) pull() {
	f.out = 0
	for c := 0; c < len(f.got) && f.out < readWindow; c++ {
		if f.got[c] {
			continue
		}
		f.out++
		k := f.shardOf(c)
		h := f.header(wire.Pull)
		h.Shard, h.Chunk, h.Point = uint32(k), uint32(c), optim.Eval
		if k < len(f.led.Epochs) {
			h.Epoch = f.led.Epochs[k]
		}
		if h.Step = f.led.Newest().Step; f.pipe.Mode == shard.Async {
			h.Step = shard.Latest
		}
		f.send(f.data, comm.ShardSubject(f.pipe.Spec.Name, k, f.name), &h)
	}
}

// send loses the message when the connection is down; ask sends it again.
func (f *fetcher) send(c comm.Conn, subject string, h *wire.Header) {
	if err := c.Publish(subject, h, nil); err != nil {
		return
	}
}

func (f *fetcher) header(k wire.Kind) wire.Header {
	return wire.Header{Kind: k, Job: f.pipe.Spec.Name, Worker: f.name, Timeline: f.led.Timeline, View: f.led.View}
}

func (f *fetcher) take(m *wire.Message) error {
	switch {
	case m.Job != f.pipe.Spec.Name:
	case m.Kind == wire.News:
		return f.news(m)
	case m.Kind == wire.Params && m.Timeline == f.led.Timeline:
		f.chunk(m)
	}
	return nil
}

func (f *fetcher) news(m *wire.Message) error {
	f.newsTo = max(f.newsTo, m.Seq)
	if len(m.Tail) == 0 {
		f.heard = true // a beacon counts all decisions
	} else {
		if d, err := ledger.Decode(m.Tail); err == nil { // a damaged one is asked for again
			f.led.Apply(d)
		}
	}
	if !f.heard || f.led.N < f.newsTo {
		return nil
	}
	if f.led.Timeline != f.timeline { // what was read belongs to the past
		f.timeline, f.left = f.led.Timeline, len(f.got)
		clear(f.got)
	}
	switch {
	case f.led.Halted:
		return fmt.Errorf("%w: %s", ErrHalted, f.led.Reason)
	case !f.led.Stopped && !f.led.Finished && f.led.Newest().Step < f.pipe.Steps:
		return fmt.Errorf("%w: wait until it ends, or stop it", ErrRunning)
	}
	return nil
}

func (f *fetcher) chunk(m *wire.Message) {
	c := int(m.Chunk)
	if c >= len(f.got) || f.got[c] || f.pipe.Mode != shard.Async && m.Step != f.led.Newest().Step {
		return
	}
	r := f.pipe.Layout.Chunk(c)
	if int(m.Count) != r.Len() || len(m.Tail) != 4*r.Len() || wire.Checksum(m.Tail) != m.CRC {
		return
	}
	wire.CopyFloat32s(f.params[r.Lo:r.Hi], m.Tail)
	f.got[c] = true
	f.left--
	f.moved = true
	if f.out--; f.out <= 0 {
		f.pull()
	}
}

func (f *fetcher) shardOf(chunk int) int { return shardOf(f.pipe.Layout.Shards(f.pipe.Shards), chunk) }

// shardOf is the shard whose range holds a chunk.
func shardOf(ranges []layout.Range, chunk int) int {
	n := len(ranges)
	k := min(n-1, chunk*n/max(1, ranges[n-1].Hi))
	for chunk < ranges[k].Lo {
		k--
	}
	for chunk >= ranges[k].Hi {
		k++
	}
	return k
}
