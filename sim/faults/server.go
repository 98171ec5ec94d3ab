package faults

import (
	"fmt"
	"slices"
	"time"

	"tributary/checkpoint"
	"tributary/comm/wire"
	"tributary/job"
	"tributary/ledger"
	"tributary/shard"
)

const (
	jobName       = "sim"
	serverTick    = 50 * time.Millisecond
	workerTimeout = 2 * time.Second
)

type cutFile struct {
	shard int
	cut   ledger.CutID
}

// serverNode is one machine: a name, a disk that outlives its processes, and
// the processes that live on it. There is more than one while a deposed one has
// not noticed that it was replaced.
type serverNode struct {
	w     *world
	name  string
	disk  map[cutFile][]byte
	procs []*server
}

// server is one parameter-server process: it owns shards and, if placement
// says so, the coordinator.
type server struct {
	proc
	node *serverNode
	// deposed: another process was started in its place, and it goes on.
	deposed bool
	shards  []*shard.Shard // by shard; nil where another node owns it
	logs    []shardLog     // by shard; what the audit saw of it
	coord   *job.Coord
	saving  []cutFile // being written
}

// start brings a process up. It takes a new epoch for each of its shards from
// the authority, one after the other, and reads the decisions so far.
func (n *serverNode) start() {
	w := n.w
	s := &server{proc: w.newProc(n.name), node: n, shards: make([]*shard.Shard, w.plan.Shards), logs: make([]shardLog, w.plan.Shards)}
	n.procs = append(n.procs, s)
	w.log(n.name, "starts")
	for k, owner := range w.owner {
		if w.servers[owner] == n {
			s.after(w.between(0, 50*time.Millisecond), func() { s.own(k) })
		}
	}
	if w.servers[w.coordNode] == n {
		s.startCoord()
	}
	s.tick()
}

func (s *server) own(k int) {
	w, p := s.w, &s.w.plan
	if s.deposed {
		return // its lease was taken over: it may not take an epoch any more
	}
	rule, agg, lr, err := p.rule()
	if err != nil {
		w.fail("plan: %v", err)
		return
	}
	s.shards[k] = shard.New(shard.Config{Job: jobName, ID: k, Shards: p.Shards, Layout: w.layout, Chunks: w.ranges[k], Rule: rule, Agg: agg, LR: lr,
		Ranks: p.Ranks, Staleness: p.Staleness, Mode: p.Mode, Steps: p.Steps, CutEvery: p.CutEvery, EvalEvery: p.EvalEvery,
		Half: p.Half, RankState: p.RankState, Window: p.Window, Broadcast: p.Broadcast, Seed: p.Seed, Epoch: w.bump()})
}

// startCoord starts the coordinator from the decisions as they are now; more
// may be made before it says its first word.
func (s *server) startCoord() {
	w, p := s.w, &s.w.plan
	history := slices.Clone(w.auth.decisions)
	s.after(w.between(0, 50*time.Millisecond), func() {
		s.coord = job.NewCoord(job.CoordConfig{Job: jobName, Ranks: p.Ranks, Workers: p.Workers, Shards: p.Shards, Steps: p.Steps, Phases: p.Phases,
			Mode: p.Mode, OnLoss: p.OnLoss, WorkerTimeout: workerTimeout, Spec: []byte("{}"), Nonce: w.bump()}, history, s.clock())
	})
}

// crash ends the process. What it was writing to disk is torn, or complete but
// unreported; either way nobody may ever read it.
func (s *server) crash() {
	w := s.w
	w.log(s.name, "crashes")
	s.die()
	for _, f := range s.saving {
		if b := s.node.disk[f]; len(b) > 0 && w.chance(0.5) {
			w.counts.TornCuts++
			s.node.disk[f] = b[:w.intn(len(b))]
		}
	}
	s.node.procs = slices.DeleteFunc(s.node.procs, func(x *server) bool { return x == s })
}

func (s *server) tick() {
	for k, sh := range s.shards {
		if sh != nil {
			s.do(k, sh.Tick(s.clock()))
		}
	}
	if s.coord != nil {
		s.doCoord(s.coord.Tick(s.clock()))
	}
	s.after(serverTick, s.tick)
}

// do performs a shard's outputs.
func (s *server) do(k int, outs []shard.Out) {
	w, sh := s.w, s.shards[k]
	w.audit.shardDid(s, k, outs)
	for i := range outs {
		o := &outs[i]
		switch o.Kind {
		case shard.ToWorker:
			s.toWorker(o.Worker, &o.H, o.Tail)
		case shard.ToWorkers:
			s.toWorkers(&o.H, o.Tail)
		case shard.ToCoord:
			s.toCoord(&o.H, o.Tail)
		case shard.ToPeers:
			for other := range w.plan.Shards {
				if other != k {
					s.toShard(other, &o.H, o.Tail)
				}
			}
		case shard.SaveCut:
			s.save(k, o.Cut, checkpoint.Encode(o.Sections))
		case shard.LoadCut:
			id := o.Cut
			s.after(w.between(0, w.plan.Faults.Disk), func() {
				parts, err := checkpoint.Decode(s.node.disk[cutFile{k, id}])
				if err != nil {
					s.do(k, sh.CutFailed(id, true, err))
					return
				}
				s.do(k, sh.CutLoaded(id, parts, s.clock()))
			})
		}
	}
	s.retain(k, sh.Ledger())
}

func (s *server) save(k int, id ledger.CutID, data []byte) {
	f := cutFile{k, id}
	s.saving = append(s.saving, f)
	s.after(s.w.between(0, s.w.plan.Faults.Disk), func() {
		s.node.disk[f] = data
		s.after(s.w.between(0, s.w.plan.Faults.Disk), func() {
			s.saving = slices.DeleteFunc(s.saving, func(x cutFile) bool { return x == f })
			s.do(k, s.shards[k].CutSaved(id, s.clock()))
		})
	})
}

// retain removes files of cuts that newer recorded ones have replaced.
func (s *server) retain(k int, led *ledger.State) {
	for f := range s.node.disk {
		if f.shard == k && led.Obsolete(f.cut, s.w.plan.Keep) {
			delete(s.node.disk, f)
		}
	}
}

// doCoord performs the coordinator's outputs.
func (s *server) doCoord(outs []job.Out) {
	w, c := s.w, s.coord
	for i := range outs {
		o := &outs[i]
		switch o.Kind {
		case job.ToWorker:
			s.toWorker(o.Worker, &o.H, o.Tail)
		case job.ToShard:
			s.toShard(o.Shard, &o.H, o.Tail)
		case job.ToAll:
			for k := range w.plan.Shards {
				s.toShard(k, &o.H, o.Tail)
			}
			s.toWorkers(&o.H, o.Tail)
		case job.Propose:
			d := *o.Decision
			s.after(w.between(time.Millisecond, 30*time.Millisecond), func() { s.propose(c, &d) })
		case job.Enlist:
			worker, nonce := o.Worker, o.Nonce
			s.after(w.between(time.Millisecond, 30*time.Millisecond), func() { s.enlist(c, worker, nonce) })
		case job.Note:
			w.printf("%s: note: %s", s.name, o.Text)
		}
	}
}

func (p *proc) toWorker(name string, h *wire.Header, tail []byte) {
	for _, n := range p.w.workers {
		if n.name == name {
			p.send(n.name, h, tail, n.hear)
		}
	}
}

func (p *proc) toWorkers(h *wire.Header, tail []byte) {
	for _, n := range p.w.workers {
		p.send(n.name, h, tail, n.hear)
	}
}

func (p *proc) toShard(k int, h *wire.Header, tail []byte) {
	if k >= len(p.w.owner) {
		p.w.fail("%s sends to shard %d of %d", p.name, k, len(p.w.owner))
		return
	}
	p.send(shardNames[k], h, tail, func(m *wire.Message) {
		for _, s := range slices.Clone(p.w.servers[p.w.owner[k]].procs) {
			if sh := s.shards[k]; sh != nil {
				s.hear(m, func(m *wire.Message) { s.do(k, sh.Handle(m, s.clock())) })
			}
		}
	})
}

func (p *proc) toCoord(h *wire.Header, tail []byte) {
	p.send("coordinator", h, tail, func(m *wire.Message) {
		for _, s := range slices.Clone(p.w.servers[p.w.coordNode].procs) {
			s.hear(m, func(m *wire.Message) {
				if s.coord != nil {
					s.doCoord(s.coord.Handle(m, s.clock()))
				}
			})
		}
	})
}

var shardNames = func() (names [maxShards]string) {
	for k := range names {
		names[k] = fmt.Sprintf("shard-%d", k)
	}
	return names
}()
