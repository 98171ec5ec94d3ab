package faults

import (
	"time"

	"tributary/job"
	"tributary/ledger"
)

// authority is the compare-and-set store: decisions by number, and a revision
// that every change advances, from which epochs and incarnations come.
type authority struct {
	revision  uint64
	decisions []*ledger.Decision
	led       ledger.State // what they amount to
}

func (w *world) bump() uint64 {
	w.auth.revision++
	if w.bad(w.plan.Faults.AuthFail) {
		w.auth.revision++ // done but not heard of, and done again
	}
	return w.auth.revision
}

// create stores d under its number unless something is there already.
func (w *world) create(d *ledger.Decision) {
	a := &w.auth
	if d.N != a.led.N+1 {
		return
	}
	w.audit.decision(d)
	a.revision++
	a.decisions = append(a.decisions, d)
	a.led.Apply(d)
	w.log("authority", string(d.Kind), d.N, d.Timeline, d.Step, d.View)
	w.printf("decision %d: %s", d.N, job.Describe(d, 1))
	switch d.Kind {
	case ledger.Begin:
		w.counts.Timelines++
	case ledger.View:
		w.counts.Views++
	case ledger.Cut:
		w.counts.Cuts++
		if w.bad(w.plan.Faults.CutCrash) {
			// The worst moment: what is under way now is of steps that the next
			// timeline begins with.
			n := w.servers[w.intn(len(w.servers))]
			w.after(w.between(0, 300*time.Millisecond), n.fail)
		}
	case ledger.Stop:
		w.counts.Stops++
	}
}

// at is the decision under number n, or nil.
func (a *authority) at(n uint64) *ledger.Decision {
	if n == 0 || n > uint64(len(a.decisions)) {
		return nil
	}
	return a.decisions[n-1]
}

// propose tries to create a decision for the coordinator c of process s, and
// tells it what stands under the number. A time-out leaves open whether the
// attempt worked: it may not have arrived, have worked unheard, or arrive
// later, when the coordinator has long gone on or died.
func (s *server) propose(c *job.Coord, d *ledger.Decision) {
	w := s.w
	answer := func(d *ledger.Decision) {
		s.run(func() {
			if s.coord == c {
				s.doCoord(c.Decided(d, s.clock()))
			}
		})
	}
	if w.now >= s.mute && w.now >= s.deaf && !w.bad(w.plan.Faults.AuthFail) {
		w.create(d)
		answer(w.auth.at(d.N))
		return
	}
	w.counts.AmbiguousCAS++
	switch w.intn(3) {
	case 0: // never arrives
		answer(nil)
	case 1: // worked; reading again finds it later
		w.create(d)
		w.after(time.Second, func() { answer(w.auth.at(d.N)) })
	case 2: // arrives late
		w.after(w.between(0, 3*time.Second), func() { w.create(d) })
		answer(nil)
	}
}

// enlist allots an incarnation.
func (s *server) enlist(c *job.Coord, worker string, nonce uint64) {
	w := s.w
	inc := w.bump()
	if w.now < s.mute || w.bad(w.plan.Faults.AuthFail) {
		inc = 0
	}
	s.run(func() {
		if s.coord == c {
			s.doCoord(c.Enlisted(worker, nonce, inc, s.clock()))
		}
	})
}
