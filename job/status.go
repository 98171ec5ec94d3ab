package job

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary/ledger"
)

// Status is what a job looks like to people and to `ps status`.
type Status struct {
	Job        string         `json:"job"`
	State      string         `json:"state"` // waiting, running, stopping, stopped, finished, halted
	Step       uint64         `json:"step"`  // updates that every shard has made
	Steps      uint64         `json:"steps"`
	Timeline   uint64         `json:"timeline"`
	View       uint64         `json:"view"`
	Decisions  uint64         `json:"decisions"`
	Cut        ledger.CutID   `json:"cut"`
	Checkpoint uint64         `json:"checkpoint"` // updates that the newest cut contains
	WaitingFor string         `json:"waiting_for,omitempty"`
	Since      float64        `json:"waiting_seconds,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	Workers    []WorkerStatus `json:"workers"`
	Shards     []ShardStatus  `json:"shards"`
	// Filled by the driver from the metrics.
	Loss        float64 `json:"loss,omitempty"`
	Accuracy    float64 `json:"accuracy,omitempty"`
	StepsPerSec float64 `json:"steps_per_second,omitempty"`
	MBPerSec    float64 `json:"mb_per_second,omitempty"` // parameters and gradients, both directions
	UpdateNanos uint64  `json:"update_ns"`
	Dir         string  `json:"dir,omitempty"`
}

// WorkerStatus is one worker.
type WorkerStatus struct {
	Name        string  `json:"name"`
	Incarnation uint64  `json:"incarnation"`
	Alive       bool    `json:"alive"`
	Silent      float64 `json:"silent_seconds"`
	Ranks       []int   `json:"ranks"`
}

// ShardStatus is one shard.
type ShardStatus struct {
	ID      int    `json:"id"`
	Epoch   uint64 `json:"epoch"`
	Present bool   `json:"present"`
	Lo      uint64 `json:"lowest_version"`
	Hi      uint64 `json:"highest_version"`
	Missing []int  `json:"missing_ranks,omitempty"`
}

// Live is the number of workers that are alive.
func (s *Status) Live() int {
	n := 0
	for i := range s.Workers {
		if s.Workers[i].Alive {
			n++
		}
	}
	return n
}

// Ended says whether the job stands still: finished, stopped or halted.
func (s *Status) Ended() bool {
	return s.State == "finished" || s.State == "stopped" || s.State == "halted"
}

// Status says how the job stands at now, and above all whom it waits for.
func (c *Coord) Status(now time.Duration) Status {
	s := Status{Job: c.cfg.Job, Steps: c.cfg.Steps / c.cfg.Phases, Timeline: c.led.Timeline, View: c.led.View, Decisions: c.led.N, Cut: c.led.Newest(), Reason: c.led.Reason}
	for _, w := range c.sorted() {
		ws := WorkerStatus{Name: w.name, Incarnation: w.inc, Alive: w.alive, Silent: (now - w.seen).Seconds()}
		for r, m := range c.led.Ranks {
			if m.Worker == w.name && m.Incarnation == w.inc {
				ws.Ranks = append(ws.Ranks, r)
			}
		}
		s.Workers = append(s.Workers, ws)
	}
	s.Step = c.cfg.Steps
	for i := range c.shards {
		x := &c.shards[i]
		s.Shards = append(s.Shards, ShardStatus{ID: i, Epoch: x.epoch, Present: x.present, Lo: x.lo, Hi: x.hi, Missing: slices.Clone(x.missing)})
		s.Step = min(s.Step, x.lo)
		s.UpdateNanos = max(s.UpdateNanos, x.nanos)
	}
	s.State = c.state()
	if s.State == "finished" || s.State == "stopped" {
		s.Step = s.Cut.Step // a shard says how far it is now and again only
	}
	s.Step /= c.cfg.Phases
	s.Checkpoint = s.Cut.Step / c.cfg.Phases
	s.WaitingFor, s.Since = c.waiting(now)
	return s
}

func (c *Coord) state() string {
	switch {
	case c.led.Halted:
		return "halted"
	case c.led.Finished:
		return "finished"
	case c.led.Stopped && c.led.Newest().Step == c.led.StopAt:
		return "stopped"
	case c.led.Stopped || c.stop:
		return "stopping"
	case c.led.Timeline == 0:
		return "waiting"
	}
	return "running"
}

// waiting names whom the job waits for and since how many seconds.
func (c *Coord) waiting(now time.Duration) (string, float64) {
	var absent []string
	unheard := now
	for i := range c.shards {
		if x := &c.shards[i]; !x.present || now-x.seen > c.cfg.WorkerTimeout {
			absent = append(absent, fmt.Sprint(i))
			unheard = min(unheard, max(x.seen, c.started))
		}
	}
	alive := len(c.alive())
	switch {
	case c.led.Finished || c.led.Halted:
		return "", 0
	case len(absent) > 0:
		return "the owner of shard " + strings.Join(absent, ", "), (now - unheard).Seconds()
	case c.state() == "stopped":
		return "", 0
	case c.led.Timeline == 0 && alive < c.cfg.Workers:
		return fmt.Sprintf("workers: %d of %d have joined", alive, c.cfg.Workers), (now - c.started).Seconds()
	case alive == 0:
		heard := c.started
		for _, w := range c.workers {
			heard = max(heard, w.seen)
		}
		return "a worker: none is alive", (now - heard).Seconds()
	}
	for i := range c.shards {
		x := &c.shards[i]
		if len(x.missing) == 0 {
			continue
		}
		var who []string
		for _, r := range x.missing {
			name := "nobody"
			if m, ok := c.led.Member(r); ok {
				name = m.Worker
				if w := c.workers[name]; w == nil || !w.alive {
					name += ", lost"
				}
			}
			who = append(who, fmt.Sprintf("%d (%s)", r, name))
		}
		return fmt.Sprintf("step %d: rank %s", x.lo/c.cfg.Phases, strings.Join(who, ", ")), (now - x.since).Seconds()
	}
	return "", 0
}
