// Package faults runs a whole job (the real shards, coordinator, placement and
// worker protocol) in one process, in virtual time, on one single-threaded
// event loop seeded from one number (docs/consistency.md, C20).
//
// A seed draws a [Plan]: a small job and what goes wrong. Messages are lost,
// repeated, delayed and reordered; nodes are cut off, in one direction or both,
// and stand still; workers crash, leave, come late and are replaced by a second
// process of their name; servers crash, restart from their last cut, and go on
// beside their successor for a while; unfinished cuts are torn and recorded
// ones rot; compare-and-sets fail, succeed unheard or land late; clocks differ.
//
// What must hold is audited while it happens (audit.go): every step closes with
// exactly the contributions it should, nothing is acknowledged that is not in
// the model, no recorded cut is lost, and every number published, saved or
// handed to a worker equals that of the undisturbed run bit for bit. When the
// faults have ended, every wait must end.
//
// [Run] runs one seed, [Range] many on all cores. A plan's run reads no clock,
// starts no goroutine and iterates over no map where order matters, so a seed
// replays exactly: its trace has the same hash every time.
//
// Not simulated: the adapters around the state machines (goroutines,
// connections, files), and damage to messages, which checksums turn into loss.
package faults

import (
	"fmt"
	"io"
	"time"

	"tributary/cluster/place"
	"tributary/internal/rng"
	"tributary/layout"
)

// event is something that happens at a virtual time. Ties are broken by a
// seeded number and then by order of creation, so a seed replays exactly.
type event struct {
	at  time.Duration
	tie uint32
	n   uint64
	do  func()
}

func (a *event) before(b *event) bool {
	if a.at != b.at {
		return a.at < b.at
	}
	if a.tie != b.tie {
		return a.tie < b.tie
	}
	return a.n < b.n
}

// queue is a binary heap of events.
type queue []event

func (q *queue) push(e event) {
	h := append(*q, e)
	*q = h
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if !h[i].before(&h[up]) {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}

func (q *queue) pop() event {
	h := *q
	first, n := h[0], len(h)-1
	h[0], h[n] = h[n], event{}
	h = h[:n]
	*q = h
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if h[c].before(&h[least]) {
				least = c
			}
		}
		if least == i {
			return first
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
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

	layout    *layout.Layout
	ranges    []layout.Range // chunks of each shard
	servers   []*serverNode
	workers   []*workerNode
	owner     []int // node of each shard
	coordNode int
	auth      authority
	audit     audit
	stopped   bool // somebody asked for it, and the job did
	resumed   bool // and went on
	fault     string
	counts    Counts
}

func newWorld(p Plan, g *golden, trace io.Writer) (*world, error) {
	l, err := layout.New(p.Tensors, p.Chunk)
	if err != nil {
		return nil, err
	}
	w := &world{plan: p, key: rng.New(p.Seed, "world"), hash: fnvOffset, trace: trace, layout: l}
	w.ranges = l.Shards(p.Shards)
	w.plan.Shards = len(w.ranges)
	w.audit.init(w, g)
	var names []string
	for i := range p.Servers {
		n := &serverNode{w: w, name: fmt.Sprintf("ps-%d", i+1), disk: map[cutFile][]byte{}}
		w.servers, names = append(w.servers, n), append(names, n.name)
	}
	for i := range p.Workers + p.Late {
		w.workers = append(w.workers, &workerNode{w: w, id: i, name: fmt.Sprintf("worker-%d", i+1)})
	}
	index := func(name string) int {
		for i, n := range names {
			if n == name {
				return i
			}
		}
		return -1
	}
	for _, n := range place.Shards(jobName, w.plan.Shards, names, nil) {
		w.owner = append(w.owner, index(n))
	}
	w.coordNode = index(place.Ranked(jobName, 1<<32, names)[0])
	return w, nil
}

// draw is the next seeded number in [0, 1).
func (w *world) draw() float64 {
	w.draws++
	return w.key.Float64(w.draws)
}

func (w *world) intn(n int) int { return int(w.draw() * float64(n)) }

func (w *world) chance(p float64) bool { return w.draw() < p }

// bad says whether something that goes wrong with probability p does so now:
// never once the faults have ended.
func (w *world) bad(p float64) bool { return p > 0 && !w.quiet() && w.draw() < p }

func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.draw()*float64(hi-lo))
}

// after schedules do at now+d.
func (w *world) after(d time.Duration, do func()) {
	w.n++
	w.draws++
	w.queue.push(event{at: w.now + d, tie: uint32(w.key.Uint64(w.draws) >> 32), n: w.n, do: do})
}

// quiet says that the time of faults is over; from then on all waits must end.
func (w *world) quiet() bool { return w.now > w.plan.Faults.Until }

// run processes events until the job has ended, a promise is broken, or the
// deadline passes.
func (w *world) run() {
	for w.fault == "" && !w.finished() {
		if len(w.queue) == 0 {
			w.fail("nothing left to happen and the job has not ended")
			return
		}
		e := w.queue.pop()
		w.now = e.at
		w.counts.Events++
		if w.now > w.plan.Faults.Until+patience {
			w.fail("a wait has not ended %v after the last fault: %s", patience, w.blame())
			return
		}
		e.do()
	}
}

// patience is how long after the last fault the job must have ended. The
// longest plan needs less than half of it.
const patience = 2 * time.Minute

// finished says whether the job has ended and all workers that live know it:
// every wait has ended.
func (w *world) finished() bool {
	led := &w.auth.led
	switch {
	case led.Halted && led.Finished && len(w.audit.rotten) > 0:
		// It says that its last cut was damaged after it had finished.
	case led.Halted:
		w.fail("the job halted: %s", led.Reason)
		return true
	case led.Finished:
	case led.Stopped && led.Newest().Step == led.StopAt && (w.resumed || !w.plan.Resume):
	default:
		return false
	}
	for _, n := range w.workers {
		for _, x := range n.procs {
			if x.session.Err() == nil {
				return false
			}
		}
	}
	return true
}

// blame says what everybody waits for.
func (w *world) blame() string {
	s := fmt.Sprintf("%d decisions, timeline %d; ", w.auth.led.N, w.auth.led.Timeline)
	for _, n := range w.workers {
		for _, x := range n.procs {
			s += fmt.Sprintf("%s: %s [%s]; ", n.name, x.session.Waiting(x.clock()), x.session.Debug())
		}
	}
	for _, n := range w.servers {
		for _, p := range n.procs {
			for k, sh := range p.shards {
				if sh != nil {
					lo, hi := sh.Versions()
					s += fmt.Sprintf("shard %d at %d..%d (timeline %d, decision %d); ", k, lo, hi, sh.Ledger().Timeline, sh.Ledger().N)
				}
			}
		}
	}
	return s
}
