// Package faults runs a whole job (the real shards, coordinator, placement and
// worker protocol) in one process, in virtual time, on one single-threaded
// event loop seeded from one number (docs/consistency.md, C20). Messages are
// lost, repeated, delayed and reordered, workers and servers crash and come
// back, compare-and-sets fail ambiguously. After each schedule the final
// parameters and slots must equal those of the undisturbed run bit for bit,
// and every wait must have ended.
package faults

import (
	"container/heap"
	"fmt"
	"hash/fnv"
	"io"
	"time"

	"tributary/comm/wire"
	"tributary/internal/rng"
	"tributary/layout"
	"tributary/ledger"
)

// event is something that happens at a virtual time. Ties are broken by a
// seeded number and then by order of creation, so a seed replays exactly.
type event struct {
	at  time.Duration
	tie uint64
	n   uint64
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	a, b := &q[i], &q[j]
	if a.at != b.at {
		return a.at < b.at
	}
	if a.tie != b.tie {
		return a.tie < b.tie
	}
	return a.n < b.n
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// world is the state of one schedule.
type world struct {
	plan  Plan
	key   rng.Key
	draws uint64
	now   time.Duration
	n     uint64
	queue queue
	hash  uint64
	trace io.Writer // nil: no readable trace

	servers []*server
	workers []*workerNode
	auth    authority
	disk    map[cutFile][]byte
	layout  *layout.Layout
	epochs  map[uint32]uint64 // newest epoch per shard, for audits
	fault   string
	counts  Counts
}

type cutFile struct {
	shard int
	cut   ledger.CutID
}

// Counts say what happened in a schedule.
type Counts struct {
	Events, Sent, Lost, Repeated uint64
	WorkerCrashes, ServerCrashes uint64
	Timelines                    uint64
}

// draw is the next seeded number in [0, 1).
func (w *world) draw() float64 {
	w.draws++
	return w.key.Float64(w.draws)
}

func (w *world) intn(n int) int { return int(w.draw() * float64(n)) }

func (w *world) chance(p float64) bool { return w.draw() < p }

func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.draw()*float64(hi-lo))
}

// after schedules do at now+d.
func (w *world) after(d time.Duration, do func()) {
	w.n++
	w.draws++
	heap.Push(&w.queue, event{at: w.now + d, tie: w.key.Uint64(w.draws) >> 32, n: w.n, do: do})
}

// log adds a line to the trace and to its hash. The line is formatted only
// when somebody reads it; the hash takes the facts themselves.
func (w *world) log(what string, facts ...uint64) {
	h := w.hash
	mix := func(x uint64) { h = (h ^ x) * 1099511628211 }
	mix(uint64(w.now))
	for i := range len(what) {
		mix(uint64(what[i]))
	}
	for _, f := range facts {
		mix(f)
	}
	w.hash = h
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%12v  %s %v\n", w.now, what, facts)
	}
}

// fail records the first violated promise; the schedule ends there.
func (w *world) fail(format string, args ...any) {
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
		w.log("FAULT " + w.fault)
	}
}

// send puts a message on the network: encoded to bytes, as it would really
// travel, then lost, delayed or repeated as the seed says.
func (w *world) send(from, to string, h *wire.Header, tail []byte, deliver func(*wire.Message)) {
	w.counts.Sent++
	frame := wire.Append(nil, h, tail)
	copies := 1
	switch f := w.plan.Faults; {
	case w.quiet():
	case w.chance(f.Loss):
		copies = 0
		w.counts.Lost++
	case w.chance(f.Repeat):
		copies = 2
		w.counts.Repeated++
	}
	for range copies {
		d := w.between(w.plan.Faults.MinDelay, w.plan.Faults.MaxDelay)
		if !w.quiet() && w.chance(w.plan.Faults.Slow) {
			d *= 40
		}
		w.after(d, func() {
			m, err := wire.Decode(append([]byte(nil), frame...), nil)
			if err != nil {
				w.fail("frame from %s to %s: %v", from, to, err)
				return
			}
			w.log(from+">"+to, uint64(m.Kind), uint64(m.Shard), uint64(m.Rank), m.Step, uint64(m.Chunk), m.Timeline, uint64(m.Code), m.Seq)
			deliver(m)
		})
	}
}

// quiet says that the time of faults is over; from then on all waits must end.
func (w *world) quiet() bool { return w.now > w.plan.Faults.Until }

// run processes events until done, a fault, or the deadline.
func (w *world) run(done func() bool) {
	for w.fault == "" && !done() {
		if w.queue.Len() == 0 {
			w.fail("nothing left to happen and the job has not ended")
			return
		}
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		w.counts.Events++
		if w.now > w.plan.Deadline {
			w.fail("the job has not ended after %v of virtual time: %s", w.plan.Deadline, w.blame())
			return
		}
		e.do()
	}
}

// Trace hashes start from FNV's offset basis.
func newHash() uint64 { return fnv.New64a().Sum64() }
