// Package shard is one shard of a job: parameters, optimizer slots, staged
// contributions, versions and snapshots. A [Shard] is a pure state machine: the
// driver hands it messages, decisions and the time, and performs the [Out]s it
// returns. It starts no goroutine, reads no clock and touches no network or
// disk, so the fault simulation runs exactly this code.
//
// The life of a push: [Shard.Handle] → push (push.go) validates and stages the
// bytes as they are; when a chunk has every rank, closeChunk (step.go) combines
// them in rank order and runs the update rule in one pass over memory, then
// acknowledges and publishes the new parameters.
package shard

import (
	"slices"
	"time"

	"tributary/aggregate"
	"tributary/comm/wire"
	"tributary/layout"
	"tributary/ledger"
	"tributary/optim"
)

// Mode says how a step closes (docs/consistency.md, C3 and C11).
type Mode uint8

// The ways to close a step.
const (
	Streaming   Mode = iota // chunk by chunk, as soon as all ranks have pushed it
	ByReduction             // atomically: the rule's own reductions wait for every shard
	ByDecision              // atomically: the coordinator decides who is in
	Async                   // no steps: a contribution applies when this shard has all of it
)

// String is the mode's name in documents and in explain.
func (m Mode) String() string {
	return [...]string{"streaming", "atomic, by reduction", "atomic, by decision", "asynchronous"}[m]
}

// Config is what a shard is made for. It is read only.
//
// What is called a step here and in the protocol is one phase of the rule: of
// a rule with two, such as SAM, updates 1, 2, … are steps 0 and 1, 2 and 3, ….
// Steps, CutEvery and EvalEvery count such steps and are multiples of the
// number of phases; only LR takes the number of the update.
type Config struct {
	Job       string
	ID        int // index of the shard
	Shards    int // number of shards of the job
	Layout    *layout.Layout
	Chunks    layout.Range // the chunks this shard holds
	Rule      optim.Rule[float32]
	Agg       aggregate.Rule[float32]
	LR        func(t uint64) float64 // schedule: learning rate of update t, from 1
	Ranks     int
	Staleness int // versions a contribution may lag behind; 0 is synchronous
	Mode      Mode
	Steps     uint64 // steps (per rank when asynchronous) after which nothing closes
	CutEvery  uint64 // a cut every so many steps; 0: only at the end
	EvalEvery uint64 // the point of evaluation stays readable at every such step; 0: only at the newest
	Half      bool   // contributions travel as bfloat16
	Dense     bool   // contributions name all parameters, whatever the rule takes
	RankState bool   // cuts contain an opaque state of every rank
	Window    int    // chunks of one rank and step that may be in flight to this shard
	Broadcast bool   // publish new parameters to all workers unasked
	NullBad   bool   // who pushes what is not finite is refused, but the job goes on
	Seed      uint64
	Epoch     uint64 // of this owner
	// Clock, if set, times the work for the statistics; nothing depends on it.
	Clock func() time.Duration
}

// ToWorker and the others say what the driver must do with an [Out].
type OutKind uint8

// The kinds of output.
const (
	ToWorker  OutKind = iota // send to Worker
	ToWorkers                // send to all workers of the job
	ToCoord                  // send to the coordinator
	ToPeers                  // send to all shards of the job, this one excluded
	SaveCut                  // write Sections as this shard's part of Cut, then call CutSaved
	LoadCut                  // read this shard's part of Cut, then call CutLoaded
)

// Out is something the driver must do. Tail and header are valid until the
// next call into the shard; Sections belong to the driver.
type Out struct {
	Kind     OutKind
	Worker   string
	H        wire.Header
	Tail     []byte
	Cut      ledger.CutID
	Sections []layout.Section
}

type phase uint8

const (
	idle    phase = iota // not part of the current timeline
	loading              // waits for the driver to load the base cut
	running
)

// Shard is the state machine. It is owned by one goroutine.
type Shard struct {
	cfg   Config
	led   ledger.State
	phase phase
	lo    int // first global parameter
	n     int // parameters held

	spec   *optim.Spec
	roles  []optim.Role // all that some step wants
	phases uint64
	eval   int         // slot of the point of evaluation; −1: the parameters
	bufs   [][]float32 // bufs[v%len(bufs)] holds version v
	slots  []elements  // of the rule, in Spec order
	tens   []tensorState
	chunks []chunk
	scal   []stepScalars // ring by step
	model  []float64     // model slots of a job start, then in scal

	without [][]steps // by rank: steps that closed without it (on_loss: shrink)
	applied []uint64  // asynchronous: next step of each rank
	updates uint64    // asynchronous: updates applied so far
	only    int       // asynchronous: the rank being applied

	states  map[stateKey][]byte // opaque states of ranks this shard keeps
	cuts    []*pendingCut
	floor   uint64 // versions below were not restored
	held    bool   // promised not to close steps ≥ heldAt
	heldAt  uint64
	saving  map[ledger.CutID]bool // saved here, not yet recorded by decision
	work    scratch
	wild    int // parameter that the update being made turned non-finite; −1: none
	red     reduction
	log     Log
	stats   Stats
	broken  string // why the shard stopped itself; "" while well
	unread  string // why the base cut could not be loaded
	losses  []float64
	lossLo  uint64 // step of losses[0]
	report  time.Duration
	lastAdv time.Duration // when a chunk last advanced
	now     time.Duration // of the message being handled
	newsAt  time.Duration // when decisions were last asked for
	dirty   bool          // something to report
	staged  []stagedMark
	outs    []Out
}

// steps are those from lo up to and without hi.
type steps struct{ lo, hi uint64 }

// chunk is the state of one chunk.
type chunk struct {
	version uint64
	staged  [][]entry // [step % depth][rank*roles+role]
	parked  []parked
	evals   []evalCopy    // the point of evaluation at the last steps where it must stay readable
	first   time.Duration // when the first contribution to the next step came; 0: none has
	counted int           // used by a planted fault only
}

// entry is one staged contribution to one chunk. It has vals, half or neither,
// which is an explicit null; with runs, vals are those of the runs only.
type entry struct {
	msg    *wire.Message
	vals   []float32 // view of the tail
	half   []uint16  // view of the tail as bfloat16
	runs   []run
	member ledger.Member
	step   uint64
}

// parked is a pull that waits for its version.
type parked struct {
	worker  string
	version uint64
	seq     uint64
}

type stateKey struct {
	rank int
	step uint64
}

// Stats are running totals, for metrics.
type Stats struct {
	Pushes      uint64 `json:"pushes"`
	Duplicates  uint64 `json:"duplicates"`
	Refused     uint64 `json:"refused"`
	Pulls       uint64 `json:"pulls"`
	Applied     uint64 `json:"applied"` // chunks that took a step
	BytesIn     uint64 `json:"bytes_in"`
	BytesOut    uint64 `json:"bytes_out"`
	Reductions  uint64 `json:"reductions"`
	UpdateNanos uint64 `json:"update_ns"` // combining and updating; needs Config.Clock
	SkewNanos   uint64 `json:"skew_ns"`   // from a chunk's first contribution to its last, added up over Applied
}

// New returns an idle shard. It allocates the parameters and slots.
func New(cfg Config) *Shard {
	l := cfg.Layout
	s := &Shard{cfg: cfg, spec: cfg.Rule.Spec(), states: map[stateKey][]byte{}, saving: map[ledger.CutID]bool{}}
	s.roles, s.phases = s.spec.AllRoles(), uint64(len(s.spec.Phases))
	s.eval = slices.IndexFunc(s.spec.Slots, func(sl optim.Slot) bool { return s.spec.Eval != "" && sl.Name == s.spec.Eval })
	s.lo = l.Chunk(cfg.Chunks.Lo).Lo
	s.n = l.Chunk(cfg.Chunks.Hi-1).Hi - s.lo
	for range Versions(cfg.Mode, cfg.Staleness, s.spec) {
		s.bufs = append(s.bufs, make([]float32, s.n))
	}
	s.makeSlots()
	s.chunks = make([]chunk, cfg.Chunks.Len())
	for i := range s.chunks {
		s.chunks[i].staged = make([][]entry, s.depth())
		for d := range s.chunks[i].staged {
			s.chunks[i].staged[d] = make([]entry, cfg.Ranks*len(s.roles))
		}
	}
	s.applied = make([]uint64, cfg.Ranks)
	s.without = make([][]steps, cfg.Ranks)
	s.initTensors()
	return s
}

// Versions is how many versions of the parameters a shard holds. A chunk at
// version t may wait for a rank whose worker died and whose step t is computed
// again, on version t−N, while others that had the rank's steps up to t+N are at
// version t+N+1. A later phase needs the version its update began with, a
// gradient at the previous parameters those.
func Versions(mode Mode, staleness int, rule *optim.Spec) int {
	if mode == Async {
		return 1
	}
	return 2*staleness + 2 + len(rule.Phases) - 1 + rule.History()
}

// depth is how many steps may be staged at once.
func (s *Shard) depth() int { return max(s.cfg.Staleness, 0) + 1 }

// keep is how many versions are held.
func (s *Shard) keep() uint64 { return uint64(len(s.bufs)) }

// Handle takes one message. It owns m and releases it in time. The returned
// outputs are valid until the next call.
func (s *Shard) Handle(m *wire.Message, now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	switch m.Kind {
	case wire.Push:
		s.push(m, now)
		return s.outs
	case wire.Pull:
		s.pull(m)
	case wire.Where:
		s.where(m)
	case wire.State:
		s.keepState(m, now)
	case wire.AskState:
		s.giveState(m)
	case wire.News:
		s.news(m, now)
	case wire.Hold:
		s.hold(m, now)
	case wire.Partial:
		s.partial(m, now)
		return s.outs
	case wire.AskPartial:
		s.askedPartial(m)
	}
	m.Release()
	return s.outs
}

// Stats returns the running totals.
func (s *Shard) Stats() Stats { return s.stats }

// Versions returns the lowest and highest version among the shard's chunks.
func (s *Shard) Versions() (lo, hi uint64) {
	if s.cfg.Mode == Async {
		return s.updates, s.updates
	}
	lo = ^uint64(0)
	for i := range s.chunks {
		lo, hi = min(lo, s.chunks[i].version), max(hi, s.chunks[i].version)
	}
	return lo, hi
}

// Ledger returns the decisions applied so far, in sum.
func (s *Shard) Ledger() *ledger.State { return &s.led }

func (s *Shard) header(k wire.Kind) wire.Header {
	return wire.Header{Kind: k, Job: s.cfg.Job, Timeline: s.led.Timeline, Shard: uint32(s.cfg.ID), Epoch: s.cfg.Epoch, View: s.led.View}
}

func (s *Shard) toWorker(w string, h wire.Header, tail []byte) {
	s.outs = append(s.outs, Out{Kind: ToWorker, Worker: w, H: h, Tail: tail})
	s.stats.BytesOut += uint64(len(tail))
}

func (s *Shard) toCoord(h wire.Header, tail []byte) {
	s.outs = append(s.outs, Out{Kind: ToCoord, H: h, Tail: tail})
}

// refuse answers m with an error; the model is untouched.
func (s *Shard) refuse(m *wire.Message, code wire.Code, text string) {
	h := s.header(wire.Ack)
	h.Rank, h.Step, h.Chunk, h.Role, h.Point, h.Code, h.Text = m.Rank, m.Step, m.Chunk, m.Role, m.Point, code, text
	h.Incarnation = m.Incarnation
	h.Lo, h.Hi = s.Versions()
	if code == wire.ErrBusy || code == wire.ErrAhead {
		h.RetryMillis = 50
	}
	if code == wire.ErrAhead {
		s.askNews()
	}
	h.Seq = s.led.N
	s.stats.Refused++
	s.toWorker(m.Worker, h, nil)
}

// askAgain is how long the answer to a question for decisions may take. Without
// a limit, every decision that arrives out of order would ask for all the rest,
// and each of those, arriving out of order, for all the rest again.
const askAgain = 50 * time.Millisecond

func (s *Shard) askNews() {
	if s.newsAt != 0 && s.now-s.newsAt < askAgain {
		return
	}
	s.newsAt = s.now
	h := s.header(wire.AskNews)
	h.Seq = s.led.N + 1
	s.toCoord(h, nil)
}
