package client

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// Session is the worker's side of the protocol as a pure state machine: the
// driver hands it messages, contributions and the time, and sends the [Out]s
// it returns. The fault simulation runs exactly this code.
//
// A worker that hears nothing asks, per chunk, for the version it waits for.
// The answer is the parameters, or the ranks that the chunk lacks: if one of
// them is its own, its push was lost and it pushes again under the same
// identity (docs/protocol.md).
type Session struct {
	cfg    SessionConfig
	plan   *Plan
	led    ledger.State
	inc    uint64 // 0: not a member
	topInc uint64 // highest incarnation ever allotted to this process
	// Per shard: range of chunks, and when it last answered.
	ranges []layout.Range
	heard  []time.Duration
	vers   []version
	ranks  map[int]*rankState
	flight []*contribution
	eval   evaluation
	seq    uint64

	joinAt, beatAt, newsAt time.Duration
	newsTo                 uint64 // number of the newest decision heard of
	rewound                bool
	rewoundTo              uint64
	err                    error
	waitText               string
	pushedTo               uint64                   // first step behind all that was pushed in this timeline
	lastPush               uint64                   // asynchronous: parameters asked for before this are stale
	loaded                 map[stateKey]loadedState // asked for, some of them come
	bad                    *wire.Header             // news of a contribution that is not finite; told again on leaving
	credit                 []int                    // per shard: chunks of a rank and step that may be in flight
	stats                  SessionStats
	outs                   []Out
	now                    time.Duration
}

// SessionConfig names the worker.
type SessionConfig struct {
	Job     string
	Worker  string
	Nonce   uint64        // of this process; not 0
	Replace bool          // take the name over from a live process
	Retry   time.Duration // first wait before asking again; doubles up to 16 times that
	// Open makes the plan from the job's record, normally [OpenPlan].
	Open func(record []byte) (*Plan, error)
}

// Out is a message to send: to shard Shard, or to the coordinator when Shard
// is −1. Tail is valid until the next call into the session.
type Out struct {
	Shard int
	H     wire.Header
	Tail  []byte
}

// SessionStats are running totals.
type SessionStats struct {
	Pushed   uint64 `json:"pushed"`    // contributions
	Repushed uint64 `json:"repushed"`  // chunks pushed again
	Pulls    uint64 `json:"pulls"`     // chunks asked for
	Repairs  uint64 `json:"repairs"`   // times that something was overdue
	Rewinds  uint64 `json:"rewinds"`   // timelines begun after the first
	BytesOut uint64 `json:"bytes_out"` // of tensors
	BytesIn  uint64 `json:"bytes_in"`
}

// version is one set of parameters being received or complete.
type version struct {
	v       uint64
	used    bool
	data    []float32
	got     []bool // per chunk
	left    int
	asked   []bool // per chunk: a pull is outstanding
	lent    bool   // the application reads data
	pulling bool   // ask for what is missing without waiting for a broadcast
	since   time.Duration
	wait    time.Duration
	turn    int // where the next repair begins
}

type rankState struct {
	rank   int
	known  bool   // next is known
	next   uint64 // next step to compute
	needs  []uint64
	heard  []bool
	left   int
	seq    uint64
	asked  time.Duration
	issued bool // the application is computing next
	own    bool // this worker computed the step before next
}

// Contribution is the gradient of one rank at one step.
type Contribution struct {
	Rank    int
	Step    uint64
	Version uint64 // of the parameters it was computed on
	Grad    []float32
	Extra   map[optim.Role][]float32 // further roles the rule asks for
	// Runs, if not nil, are the runs of parameters that the contribution names,
	// ascending and apart: of Grad only their numbers count, and all other
	// parameters keep their value and state unless another rank names them.
	// Only for rules that take row-sparse contributions ([optim.Spec.Runs]).
	Runs     []layout.Range
	Examples float64 // weight; 0 counts as 1
	Loss     float64
	Null     bool // an explicit contribution of weight zero
	// State is the rank's opaque state after this step, for the next cut.
	State []byte
}

type chunkState uint8

const (
	unsent chunkState = iota
	inFlight
	safe // staged: credit is back, the bytes are still needed
	done
)

type contribution struct {
	Contribution
	roles []optim.Role
	tails [][]float32 // by role
	state []chunkState
	acked []uint32 // per chunk: roles known to be staged, one bit each
	left  int
	out   []int // per shard: chunks in flight
	next  []int // per shard: lowest chunk that may be unsent
	turn  int   // where the next repair begins
	since time.Duration
	wait  time.Duration
}

// Errors of a session.
var (
	ErrDone     = errors.New("the job has finished")
	ErrStopped  = errors.New("the job was stopped")
	ErrHalted   = errors.New("the job halted")
	ErrReplaced = errors.New("another process took this worker's name")
	ErrNotMine  = errors.New("the rank or step is not (or no longer) this worker's to compute")
)

// NewSession returns a session that will ask to join.
func NewSession(cfg SessionConfig) *Session {
	if cfg.Retry == 0 {
		cfg.Retry = 100 * time.Millisecond
	}
	return &Session{cfg: cfg, ranks: map[int]*rankState{}, loaded: map[stateKey]loadedState{}}
}

func (s *Session) open(record []byte) error {
	p, err := s.cfg.Open(record)
	if err != nil {
		return err
	}
	s.plan = p
	if p.Retry > 0 {
		s.cfg.Retry = p.Retry
	}
	s.ranges = p.Layout.Shards(p.Shards)
	s.heard = make([]time.Duration, len(s.ranges))
	s.credit = slices.Repeat([]int{p.Window}, len(s.ranges))
	keep := max(2*p.Staleness+2+p.Rule.History(), 1) // as many as a shard keeps: two ranks served here may be that far apart
	for range keep {
		s.vers = append(s.vers, version{data: make([]float32, p.Layout.P), got: make([]bool, p.Layout.Chunks()), asked: make([]bool, p.Layout.Chunks())})
	}
	return nil
}

func (s *Session) async() bool { return s.plan.Staleness < 0 }

// Handle takes one message and releases it.
func (s *Session) Handle(m *wire.Message, now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	if m.Job == s.cfg.Job {
		s.recv(m)
	}
	m.Release()
	s.advance()
	return s.outs
}

// Advance sends what has become possible since the application gave the
// parameters of its last work back.
func (s *Session) Advance(now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	s.advance()
	return s.outs
}

// Tick does what is due at now. Call it every 20 ms or so.
func (s *Session) Tick(now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	if s.inc != 0 && now-s.beatAt >= 3*s.cfg.Retry {
		s.beatAt = now
		h := s.header(wire.Beat)
		h.Seq, h.Lo = s.cfg.Nonce, s.led.N
		s.toCoord(h, nil)
	}
	s.advance()
	s.repair()
	return s.outs
}

// Push takes over a contribution. The slices belong to the session until a
// later version is handed out by Take. It fails with ErrNotMine when the rank
// was moved, or the job rewound or stopped, since Take handed the work out.
func (s *Session) Push(c Contribution, now time.Duration) ([]Out, error) {
	s.outs, s.now = s.outs[:0], now
	if s.plan == nil {
		return nil, ErrNotMine
	}
	r := s.ranks[c.Rank]
	if r == nil || !r.issued || r.next != c.Step {
		return nil, fmt.Errorf("rank %d, step %d: %w", c.Rank, c.Step, ErrNotMine)
	}
	if s.led.Stopped && c.Step >= s.led.StopAt { // decided while it was computed
		return nil, fmt.Errorf("rank %d: the job stops before step %d: %w", c.Rank, c.Step, ErrNotMine)
	}
	x := &contribution{Contribution: c, state: make([]chunkState, s.plan.Layout.Chunks()), since: now, wait: s.cfg.Retry,
		out: make([]int, len(s.ranges)), next: make([]int, len(s.ranges))}
	x.acked = make([]uint32, len(x.state))
	x.left = len(x.state)
	for i, rg := range s.ranges {
		x.next[i] = rg.Lo
	}
	if err := s.check(&x.Contribution); err != nil {
		return s.outs, err
	}
	x.roles = s.plan.Roles(c.Step)
	for _, role := range x.roles {
		x.tails = append(x.tails, x.tensor(role))
	}
	if x.Examples == 0 && !x.Null {
		x.Examples = 1
	}
	r.issued, r.own, r.next = false, true, c.Step+1
	s.flight = append(s.flight, x)
	s.pushedTo = max(s.pushedTo, c.Step+1)
	s.stats.Pushed++
	s.seq++
	s.lastPush = s.seq
	if s.plan.RankState {
		s.sendState(x)
	}
	s.advance()
	return s.outs, nil
}

// tensor is what c carries in a role.
func (c *Contribution) tensor(role optim.Role) []float32 {
	if role == optim.Grad {
		return c.Grad
	}
	return c.Extra[role]
}

// Work is what a worker computes next: what Roles say, at Params, for every
// rank in Ranks. Params and Prev are read only and valid until the next Take.
type Work struct {
	// Step is the step of the protocol: one phase of an update.
	Step    uint64
	Version uint64
	Params  []float32
	// Prev are the parameters of the version before, in steps whose roles have
	// optim.GradPrev.
	Prev  []float32
	Ranks []int
	// Roles are what a contribution carries; Update is the number of the update
	// from 1, and Phase the phase of it. Contributions to all phases of an
	// update are taken on the same examples.
	Roles  []optim.Role
	Update uint64
	Phase  int
	// Gained lists those of Ranks that this worker did not compute the step
	// before: it took them over, or the job was rewound. A worker with state
	// of its own loads it for them.
	Gained []int
}

// Take returns the next work that is ready. Ranks handed out before and not
// pushed are handed out again.
func (s *Session) Take(now time.Duration) (Work, bool) {
	if s.plan == nil || s.err != nil {
		return Work{}, false
	}
	for i := range s.vers {
		s.vers[i].lent = false
	}
	var w Work
	for _, r := range s.sortedRanks() {
		r.issued = false
		v, ok := s.ready(r)
		if !ok || len(w.Ranks) > 0 && (r.next != w.Step || v.v != w.Version) {
			continue
		}
		if len(w.Ranks) == 0 {
			w.Step, w.Version, w.Params = r.next, v.v, v.data
			w.Roles, w.Update, w.Phase = s.plan.Roles(r.next), s.plan.Update(r.next), s.plan.phase(r.next)
			v.lent = true
			if s.plan.wantsPrev(r.next) {
				prev := s.held(v.v - 1)
				w.Prev, prev.lent = prev.data, true
			}
		}
		r.issued = true
		w.Ranks = append(w.Ranks, r.rank)
		if !r.own {
			w.Gained = append(w.Gained, r.rank)
		}
	}
	return w, len(w.Ranks) > 0
}

func (s *Session) sortedRanks() []*rankState {
	rs := make([]*rankState, 0, len(s.ranks))
	for _, r := range s.ranks {
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b *rankState) int { return a.rank - b.rank })
	return rs
}

// ready returns the parameters on which rank r can compute its next step.
func (s *Session) ready(r *rankState) (*version, bool) {
	if !r.known || r.next >= s.plan.Steps || s.led.Stopped && r.next >= s.led.StopAt || s.led.Finished || s.led.Halted {
		return nil, false
	}
	if s.async() {
		v := &s.vers[0]
		// The version must have been asked for after the rank's last push.
		return v, v.used && v.left == 0 && !s.stale(v) && !s.flying(r.rank)
	}
	want := s.wants(r)
	var best *version
	for i := range s.vers {
		v := &s.vers[i]
		if v.used && v.left == 0 && (v.v == want || !s.plan.Pinned && v.v > want) && v.v <= r.next && (best == nil || v.v > best.v) {
			best = v
		}
	}
	if best != nil && s.plan.wantsPrev(r.next) && s.held(best.v-1) == nil {
		return nil, false
	}
	return best, best != nil
}

// held is version v if all of it is here, else nil.
func (s *Session) held(v uint64) *version {
	if x := &s.vers[v%uint64(len(s.vers))]; x.used && x.v == v && x.left == 0 {
		return x
	}
	return nil
}

// wants is the lowest version rank r may compute its next step on.
func (s *Session) wants(r *rankState) uint64 {
	n := uint64(s.plan.Staleness)
	return r.next - min(n, r.next)
}

func (s *Session) flying(rank int) bool {
	return slices.ContainsFunc(s.flight, func(c *contribution) bool { return c.Rank == rank })
}

// Rewound says, once, that the job went back to an earlier step, so that the
// application can load the state it had there.
func (s *Session) Rewound() (to uint64, ok bool) {
	to, ok = s.rewoundTo, s.rewound
	s.rewound = false
	return to, ok
}

// Err is why the session ended, or nil.
func (s *Session) Err() error {
	switch {
	case s.err != nil:
		return s.err
	case s.led.Finished:
		return ErrDone
	case s.led.N < s.newsTo:
		return nil // what comes next may take a stop or a halt back
	case s.led.Halted:
		return fmt.Errorf("%w: %s", ErrHalted, s.led.Reason)
	case s.led.Stopped && s.led.Newest().Step == s.led.StopAt && len(s.flight) == 0:
		return fmt.Errorf("%w at step %d: %s", ErrStopped, s.made(s.led.StopAt), s.led.Reason)
	}
	return nil
}

// made is how many updates version v has.
func (s *Session) made(v uint64) uint64 {
	if s.plan == nil {
		return v
	}
	return v / uint64(len(s.plan.Rule.Phases))
}

// Acknowledged says whether everything pushed is acknowledged at the job's
// level: applied, or in a recorded cut.
func (s *Session) Acknowledged() bool {
	return len(s.flight) == 0 && (s.plan == nil || !s.plan.Durable || s.led.Newest().Step >= s.pushedTo)
}

// Plan returns the job's plan, or nil before the coordinator's welcome.
func (s *Session) Plan() *Plan { return s.plan }

// Ledger returns the decisions known so far, in sum.
func (s *Session) Ledger() *ledger.State { return &s.led }

// Stats returns the running totals.
func (s *Session) Stats() SessionStats { return s.stats }

func (s *Session) header(k wire.Kind) wire.Header {
	return wire.Header{Kind: k, Job: s.cfg.Job, Worker: s.cfg.Worker, Incarnation: s.inc, Timeline: s.led.Timeline, View: s.led.View}
}

func (s *Session) toCoord(h wire.Header, tail []byte) {
	s.outs = append(s.outs, Out{Shard: -1, H: h, Tail: tail})
}

func (s *Session) toShard(k int, h wire.Header, tail []byte) {
	h.Shard = uint32(k)
	if k < len(s.led.Epochs) {
		h.Epoch = s.led.Epochs[k]
	}
	s.outs = append(s.outs, Out{Shard: k, H: h, Tail: tail})
	s.stats.BytesOut += uint64(len(tail))
}

// Waiting says whom the session waits for, for people; "" when for nobody.
func (s *Session) Waiting(now time.Duration) string {
	switch {
	case s.inc == 0 && s.waitText != "":
		return s.waitText
	case s.inc == 0:
		return fmt.Sprintf("waiting for the coordinator of job %q: nobody answers; was the job submitted?", s.cfg.Job)
	case s.led.Timeline == 0:
		return fmt.Sprintf("waiting for job %q to start: too few workers or parameter servers so far", s.cfg.Job)
	case len(s.ranks) == 0:
		return "waiting for a rank to serve: all ranks are with other workers"
	}
	for k, at := range s.heard {
		if now-at > 5*s.cfg.Retry && s.expects(k) {
			return fmt.Sprintf("waiting for shard %d: no answer for %v", k, (now - at).Round(100*time.Millisecond))
		}
	}
	return s.waitText
}

// expects says whether something is due from shard k.
func (s *Session) expects(k int) bool {
	for _, c := range s.flight {
		for i := s.ranges[k].Lo; i < s.ranges[k].Hi; i++ {
			if c.state[i] == inFlight {
				return true
			}
		}
	}
	for i := range s.vers {
		if v := &s.vers[i]; v.used && v.left > 0 && v.pulling && slices.Contains(v.got[s.ranges[k].Lo:s.ranges[k].Hi], false) {
			return true
		}
	}
	return false
}
