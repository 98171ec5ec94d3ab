package faults

import (
	"time"

	"tributary/job"
)

// begin starts all nodes and everything that will go wrong with them.
func (w *world) begin() {
	f := &w.plan.Faults
	for _, n := range w.servers {
		w.after(w.between(0, 500*time.Millisecond), n.start)
		w.every(f.ServerCrash, n.fail)
		w.every(f.Partition, func() { w.disturb(n.newest(), true) })
		w.every(f.Pause, func() { w.disturb(n.newest(), false) })
	}
	w.every(f.CoordRestart, w.servers[w.coordNode].restartCoord)
	for i, n := range w.workers {
		d := w.between(0, 500*time.Millisecond)
		if i >= w.plan.Workers {
			d = w.between(time.Second, 12*time.Second)
		}
		w.after(d, n.start)
		w.every(f.WorkerCrash, n.fail)
		w.every(f.Leave, n.leave)
		w.every(f.Replace, n.replace)
		w.every(f.Partition, func() { w.disturb(n.newest(), true) })
		w.every(f.Pause, func() { w.disturb(n.newest(), false) })
	}
	if w.plan.Stop > 0 {
		w.after(w.plan.Stop, w.stop)
	}
}

// every does something at random times with the given mean gap until the
// faults end.
func (w *world) every(mean time.Duration, do func()) {
	if mean == 0 {
		return
	}
	w.after(w.between(mean/4, 2*mean), func() {
		if !w.quiet() {
			do()
			w.every(mean, do)
		}
	})
}

// disturb cuts a process off, or lets it stand still: mostly shortly, at times
// for so long that others give it up.
func (w *world) disturb(p *proc, partition bool) {
	if p == nil {
		return
	}
	d := w.between(20*time.Millisecond, time.Second)
	if w.chance(0.4) {
		d = w.between(time.Second, 6*time.Second)
	}
	if partition {
		p.cutOff(d)
	} else {
		p.pause(d)
	}
}

// live is the node's process, or nil while it is down. One that was deposed is
// not the node's any more.
func (n *serverNode) live() *server {
	for _, s := range n.procs {
		if !s.deposed {
			return s
		}
	}
	return nil
}

func (n *serverNode) newest() *proc {
	if s := n.live(); s != nil {
		return &s.proc
	}
	return nil
}

// fail crashes the node's process; another starts after a while. Or the other
// starts at once and the old process, which did not hear of it, goes on for a
// few seconds, perhaps after having stood still.
func (n *serverNode) fail() {
	w := n.w
	old := n.live()
	if old == nil {
		return
	}
	w.counts.ServerCrashes++
	if w.chance(w.plan.Faults.Depose) {
		w.counts.Deposed++
		old.deposed = true
		w.log(n.name, "goes on beside its successor")
		if w.chance(0.5) {
			old.pause(w.between(0, 3*time.Second))
		}
		w.after(w.between(time.Second, 6*time.Second), func() {
			if old.up {
				old.crash()
			}
		})
		n.start()
		return
	}
	old.crash()
	down := w.between(100*time.Millisecond, 5*time.Second)
	if w.chance(0.4) {
		down = w.between(0, 100*time.Millisecond) // its supervisor is quick
	}
	w.after(down, func() {
		if w.bad(w.plan.Faults.Rot) {
			n.rot()
		}
		n.start()
	})
}

// rot damages the node's part of the newest recorded cut.
func (n *serverNode) rot() {
	w := n.w
	id := w.auth.led.Newest()
	for k, owner := range w.owner {
		f := cutFile{k, id}
		if b := n.disk[f]; w.servers[owner] == n && len(b) > 0 {
			w.counts.RottenCuts++
			w.log(n.name, "finds its newest cut damaged", uint64(k), id.Timeline, id.Step)
			w.audit.rotten[id] = true
			bad := append([]byte(nil), b...)
			bad[w.intn(len(bad))] ^= 0x10
			n.disk[f] = bad
			return
		}
	}
}

// restartCoord replaces the coordinator alone; the shards beside it live on.
func (n *serverNode) restartCoord() {
	s := n.live()
	if s == nil {
		return
	}
	n.w.counts.CoordRestarts++
	n.w.log(n.name, "restarts its coordinator")
	s.coord = nil
	n.w.after(n.w.between(0, 3*time.Second), func() {
		if s.up && s.coord == nil {
			s.startCoord()
		}
	})
}

func (n *workerNode) newest() *proc {
	if len(n.procs) == 0 {
		return nil
	}
	return &n.procs[len(n.procs)-1].proc
}

func (n *workerNode) fail() {
	if len(n.procs) > 0 {
		n.procs[n.w.intn(len(n.procs))].crash()
		n.w.after(n.w.between(50*time.Millisecond, 5*time.Second), n.restart)
	}
}

func (n *workerNode) leave() {
	if len(n.procs) > 0 {
		n.procs[len(n.procs)-1].leave()
		n.w.after(n.w.between(50*time.Millisecond, 8*time.Second), n.restart)
	}
}

// replace starts a second process under a live name. It takes the name over, or
// waits until the first one is silent; that one does not know and goes on.
func (n *workerNode) replace() {
	if len(n.procs) == 1 {
		n.w.counts.Replaced++
		n.start()
	}
}

// stop asks the coordinator to stop the job and, if the plan says so, to resume
// it once it has stopped. It asks again, as people do, when nobody was there or
// the job went back to an earlier cut.
func (w *world) stop() {
	led := &w.auth.led
	switch {
	case led.Finished || led.Halted:
		return
	case led.Stopped && led.Newest().Step == led.StopAt:
		w.stopped = true
		if !w.plan.Resume {
			return
		}
		w.ask(func(c *job.Coord, now time.Duration) []job.Out {
			outs, _ := c.RequestResume(now)
			return outs
		})
	case w.stopped && !led.Stopped:
		w.resumed = true
		w.counts.Resumed++
		return
	case !led.Stopped:
		w.ask(func(c *job.Coord, now time.Duration) []job.Out {
			outs, _ := c.RequestStop("asked to", now)
			return outs
		})
	}
	w.after(3*time.Second, w.stop)
}

// ask puts a request to the coordinator, if there is one.
func (w *world) ask(request func(*job.Coord, time.Duration) []job.Out) {
	for _, s := range w.servers[w.coordNode].procs {
		s.run(func() {
			if s.coord != nil {
				s.doCoord(request(s.coord, s.clock()))
			}
		})
	}
}
