package faults

import (
	"bytes"
	"errors"
	"slices"
	"time"

	"tributary/client"
	"tributary/comm/wire"
	"tributary/job"
)

const (
	workerTick = 30 * time.Millisecond
	stateRetry = 200 * time.Millisecond // before a state is asked for again
	evalRetry  = 20 * time.Millisecond  // before the point of evaluation is looked for again
)

// workerNode is a worker's name and the processes that live under it. There is
// more than one while an earlier one has not noticed that it was replaced.
type workerNode struct {
	w      *world
	id     int
	name   string
	starts int
	procs  []*worker
}

func (n *workerNode) hear(m *wire.Message) {
	for _, x := range slices.Clone(n.procs) {
		x.hear(m, func(m *wire.Message) { x.do(x.session.Handle(m, x.clock())) })
	}
}

// worker is one worker process: a session and the application that computes.
type worker struct {
	proc
	node    *workerNode
	session *client.Session

	busy   bool           // the application computes or waits for states
	todo   client.Work    // what it works on
	begun  begun          // when it was taken
	lacks  []int          // ranks whose state has not come yet
	states map[int][]byte // what the application knows of each rank, before its next step
}

// begun is the timeline and the view in which work was taken.
type begun struct{ timeline, view uint64 }

// start brings a process up. A job needs a name back that its process held
// when it stood still, so a process replaces half the time.
func (n *workerNode) start() {
	w, p := n.w, &n.w.plan
	n.starts++
	x := &worker{proc: w.newProc(n.name), node: n, states: map[int][]byte{}}
	rule, _, _, err := p.rule()
	if err != nil {
		w.fail("plan: %v", err)
		return
	}
	plan := &client.Plan{Layout: w.layout, Shards: p.Shards, Ranks: p.Ranks, Staleness: p.Staleness, Pinned: p.Pinned, Broadcast: p.Broadcast,
		Steps: p.Steps, Window: p.Window, RankState: p.RankState, Rule: rule.Spec(), Half: p.Half}
	x.session = client.NewSession(client.SessionConfig{Job: jobName, Worker: n.name, Nonce: uint64(n.id+1)<<32 | uint64(n.starts),
		Replace: w.chance(0.5), Open: func([]byte) (*client.Plan, error) { return plan, nil }})
	n.procs = append(n.procs, x)
	w.log(n.name, "starts", uint64(n.starts))
	x.tick()
}

// end ends the process.
func (x *worker) end() {
	x.die()
	x.node.procs = slices.DeleteFunc(x.node.procs, func(y *worker) bool { return y == x })
}

func (x *worker) crash() {
	x.w.counts.WorkerCrashes++
	x.w.log(x.name, "crashes")
	x.end()
}

// leave says goodbye and ends.
func (x *worker) leave() {
	x.w.counts.Leaves++
	x.w.log(x.name, "leaves")
	x.sendAll(x.session.Leave())
	x.end()
}

func (x *worker) tick() {
	x.do(x.session.Tick(x.clock()))
	x.after(workerTick, x.tick)
}

// do sends the session's messages and lets the application go on. Between two
// chunks of a push the process may crash, as the seed says.
func (x *worker) do(outs []client.Out) {
	w := x.w
	if len(outs) > 1 && w.plan.Faults.WorkerCrash > 0 && w.bad(0.002) {
		x.sendAll(outs[:w.intn(len(outs))])
		x.crash()
		w.after(w.between(50*time.Millisecond, 4*time.Second), x.node.restart)
		return
	}
	x.sendAll(outs)
	switch err := x.session.Err(); {
	case err == nil, errors.Is(err, client.ErrDone), errors.Is(err, client.ErrStopped):
	case errors.Is(err, client.ErrReplaced):
		w.log(x.name, "was replaced")
		x.end()
		w.after(w.between(time.Second, 3*time.Second), x.node.restart)
		return
	default:
		w.fail("%s: %v", x.name, err)
		return
	}
	x.work()
}

// restart starts a process unless one lives.
func (n *workerNode) restart() {
	if len(n.procs) == 0 {
		n.start()
	}
}

func (x *worker) sendAll(outs []client.Out) {
	for i := range outs {
		if o := &outs[i]; o.Shard < 0 {
			x.toCoord(&o.H, o.Tail)
		} else {
			x.toShard(o.Shard, &o.H, o.Tail)
		}
	}
}

// work takes the next work that is ready. For ranks that this worker did not
// compute the step before it first fetches their state.
func (x *worker) work() {
	if x.busy {
		return
	}
	x.session.Rewound() // it has no state but that of its ranks, which it loads
	todo, ok := x.session.Take(x.clock())
	if !ok {
		return
	}
	x.busy, x.todo, x.lacks = true, todo, nil
	x.begun = begun{x.session.Ledger().Timeline, x.session.Ledger().View}
	x.w.audit.taken(x, &todo)
	if x.w.plan.RankState && todo.Step > 0 {
		x.lacks = slices.Clone(todo.Gained)
	}
	x.fetch()
}

// fetch asks for the states that are missing and, once all are there, computes.
func (x *worker) fetch() {
	step := x.todo.Step
	for _, r := range slices.Clone(x.lacks) {
		state, ok, err := x.session.Loaded(r, step)
		if !ok {
			continue
		}
		if err != nil && x.w.plan.OnLoss != job.Shrink {
			// The rank was moved on while we asked; the next Take says to whom.
			x.busy = false
			return
		}
		if err == nil {
			x.w.audit.stateLoaded(r, step, state)
		} // else steps closed without the rank, and it begins anew
		x.states[r] = state
		x.lacks = slices.DeleteFunc(x.lacks, func(y int) bool { return y == r })
	}
	if len(x.lacks) == 0 {
		x.evaluate()
		return
	}
	for _, r := range x.lacks {
		x.sendAll(x.session.LoadState(r, step, x.clock()))
	}
	x.after(stateRetry, x.fetch)
}

// evaluate reads the point of evaluation where the plan says so, and computes.
func (x *worker) evaluate() {
	every, v := x.w.plan.EvalEvery, x.todo.Version
	if every > 0 && x.todo.Ranks[0] == 0 && v > 0 && v%every == 0 {
		if x.session.Err() != nil { // ended meanwhile, or replaced
			x.busy = false
			return
		}
		params, ok, err := x.session.Evaluated(v)
		if !ok {
			x.sendAll(x.session.Evaluate(v, x.clock()))
			x.after(evalRetry, x.evaluate)
			return
		}
		x.w.audit.evaluated(x, v, params, err)
	}
	x.after(x.w.between(time.Millisecond, 60*time.Millisecond), x.compute)
}

// compute makes and pushes the contributions.
func (x *worker) compute() {
	p, todo := &x.w.plan, &x.todo
	for _, r := range todo.Ranks {
		if !x.up {
			return
		}
		state := x.states[r]
		if todo.Step == 0 {
			state = nil
		}
		c := p.contribution(x.w, todo, r, state)
		outs, err := x.session.Push(c, x.clock())
		if err != nil && !errors.Is(err, client.ErrNotMine) {
			x.w.fail("%s: %v", x.name, err)
			return
		}
		if err == nil {
			x.states[r] = c.State
			x.w.audit.pushed(&c)
			if bytes.Equal(state, c.State) && p.RankState {
				x.w.fail("%s: the state of rank %d did not change", x.name, r)
			}
		}
		x.busy = r != todo.Ranks[len(todo.Ranks)-1]
		x.do(outs)
	}
}
