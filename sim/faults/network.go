package faults

import (
	"time"

	"tributary/comm/wire"
)

// proc is one process, of a server or a worker. Two processes of one name may
// live at the same time: both hear what is sent to the name, as two
// subscribers of a subject do.
type proc struct {
	w          *world
	name       string
	up         bool
	skew       time.Duration // its clock: began elsewhere and runs a little fast or slow
	rate       float64
	paused     time.Duration // it stands still until then
	deaf, mute time.Duration // until then the network brings it nothing, takes nothing from it
	late       []func()      // what happened to it while it stood still
}

func (w *world) newProc(name string) proc {
	p := proc{w: w, name: name, up: true, rate: 1}
	if w.plan.Faults.Skew {
		p.skew = time.Duration(w.intn(1e6)) * time.Millisecond
		p.rate = 0.95 + 0.1*w.draw()
	}
	return p
}

// clock is what the process takes for the time.
func (p *proc) clock() time.Duration { return p.skew + time.Duration(float64(p.w.now)*p.rate) }

// run does f in the process: at once, when the process goes on again, or, if it
// has died, never.
func (p *proc) run(f func()) {
	switch {
	case !p.up:
	case p.w.now < p.paused:
		p.late = append(p.late, f)
	default:
		f()
	}
}

// after is world.after for something the process itself does.
func (p *proc) after(d time.Duration, f func()) { p.w.after(d, func() { p.run(f) }) }

func (p *proc) die() { p.up, p.late = false, nil }

// pause lets the process stand still; what reaches it is handled afterwards.
func (p *proc) pause(d time.Duration) {
	p.w.counts.Pauses++
	p.w.log(p.name, "stands still for", uint64(d))
	p.paused = p.w.now + d
	p.w.after(d, func() {
		if p.w.now < p.paused {
			return
		}
		late := p.late
		p.late = nil
		for _, f := range late {
			p.run(f)
		}
	})
}

// cutOff parts the process from everybody, in one direction or both.
func (p *proc) cutOff(d time.Duration) {
	p.w.counts.Partitions++
	way := p.w.intn(4)
	p.w.log(p.name, "is cut off for", uint64(d), uint64(way))
	if way != 0 {
		p.deaf = p.w.now + d
	}
	if way != 1 {
		p.mute = p.w.now + d
	}
}

// send puts a message on the network: encoded to bytes, as it would really
// travel, then lost, delayed or repeated as the seed says. deliver hands it to
// those who listen when it arrives; to is what a trace calls them.
func (p *proc) send(to string, h *wire.Header, tail []byte, deliver func(*wire.Message)) {
	w := p.w
	w.counts.Messages++
	copies := 1
	switch f := &w.plan.Faults; {
	case w.bad(f.Loss):
		copies = 0
		w.counts.Lost++
		w.mix(uint64(h.Kind))
		if w.trace != nil {
			w.printf("%s → %s: %s: lost", p.name, to, describe(h))
		}
	case w.bad(f.Repeat):
		copies = 2
		w.counts.Repeated++
	}
	stale := w.bad(w.plan.Faults.Stale)
	if copies == 0 && !stale {
		return
	}
	frame := wire.Append(nil, h, tail)
	arrive := func(d time.Duration) {
		w.after(d, func() {
			if w.now < p.mute {
				w.counts.Lost++
				return
			}
			m, err := wire.Decode(frame, nil)
			if err != nil {
				w.fail("frame from %s to %s: %v", p.name, to, err)
				return
			}
			w.logMessage(p.name, to, m)
			deliver(m)
		})
	}
	for range copies {
		d := w.between(w.plan.Faults.MinDelay, w.plan.Faults.MaxDelay)
		if w.bad(w.plan.Faults.Slow) {
			d *= 40
		}
		arrive(d)
	}
	if stale {
		w.counts.Stale++
		arrive(w.between(100*time.Millisecond, 3*time.Second))
	}
}

// hear hands a message that arrived to one process of its receivers. Each gets
// its own copy of the header; nobody writes to the shared tail.
func (p *proc) hear(m *wire.Message, f func(*wire.Message)) {
	if !p.up {
		return
	}
	if p.w.now < p.deaf {
		p.w.counts.Lost++
		return
	}
	own := wire.NewMessage(m.Header, m.Tail, nil)
	p.run(func() { f(own) })
}
