package job

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/shard"
)

// CoordConfig is what a coordinator is made for.
type CoordConfig struct {
	Job           string
	Ranks         int
	Workers       int // workers to wait for before the first step
	Shards        int
	Steps         uint64 // of the protocol: Phases per update
	Phases        uint64 // pushes per update; 0 means 1
	Mode          shard.Mode
	OnLoss        OnLoss
	WorkerTimeout time.Duration // silence after which a worker counts as lost
	StartTimeout  time.Duration // longest wait for workers before the first step
	Spec          []byte        // the job as JSON, handed to workers that join
	Nonce         uint64        // names this process in ambiguous compare-and-sets
}

// OutKind says what the driver must do with an [Out].
type OutKind uint8

// The kinds of output.
const (
	ToWorker OutKind = iota
	ToShard
	ToAll    // every shard and worker
	Propose  // create Decision under its number by compare-and-set, then call Decided
	Enlist   // allot an incarnation to Worker by compare-and-set, then call Enlisted
	NoteLoss // losses of steps Step… for the metrics
	NoteStep // a named metric of a step
	Note     // Text, for people
)

// Out is something the driver of a coordinator must do.
type Out struct {
	Kind     OutKind
	Worker   string
	Shard    int
	H        wire.Header
	Tail     []byte
	Decision *ledger.Decision
	Nonce    uint64
	Step     uint64
	Losses   []float64
	Text     string
}

// Coord is the coordinator of one job: a pure state machine that turns joins,
// beats and reports into ordered decisions. At most one proposal is in flight,
// and nothing is announced before its compare-and-set succeeded (C4).
type Coord struct {
	cfg     CoordConfig
	led     ledger.State
	history []*ledger.Decision
	workers map[string]*worker
	shards  []shardInfo
	pending *ledger.Decision
	asked   time.Duration // when pending was proposed
	enlist  map[string]bool
	started time.Duration
	beacon  time.Duration
	reset   bool // holds of an earlier coordinator were withdrawn

	stop     bool
	stopWhy  string
	stopAt   uint64
	stopSent time.Duration
	stopLead uint64 // how far ahead the last step was that a shard could not promise
	resume   bool   // asked to go on after a stop or a halt
	heardOf  uint64 // newest decision that a shard or worker says it knows
	closing  uint64 // ByDecision: next step to close
	badCuts  map[ledger.CutID]bool
	halt     string
	lossNext uint64
	outs     []Out
}

type worker struct {
	name  string
	nonce uint64
	inc   uint64
	seen  time.Duration
	alive bool
}

type shardInfo struct {
	epoch   uint64
	seen    time.Duration
	present bool
	lo, hi  uint64
	saved   map[ledger.CutID]bool
	held    bool
	missing []int
	since   time.Duration // waiting since
	staged  map[stagedAt]ledger.Member
	nanos   uint64
}

// maxStopLead bounds how far ahead a stop is looked for.
const maxStopLead = 1 << 16

type stagedAt struct {
	rank int
	step uint64
}

// NewCoord returns a coordinator that continues after the given decisions.
func NewCoord(cfg CoordConfig, history []*ledger.Decision, now time.Duration) *Coord {
	cfg.Phases = max(1, cfg.Phases)
	c := &Coord{cfg: cfg, workers: map[string]*worker{}, enlist: map[string]bool{}, started: now, badCuts: map[ledger.CutID]bool{}}
	c.shards = make([]shardInfo, cfg.Shards)
	for i := range c.shards {
		c.shards[i].saved = map[ledger.CutID]bool{}
		c.shards[i].staged = map[stagedAt]ledger.Member{}
	}
	for _, d := range history {
		c.take(d)
	}
	return c
}

// Ledger returns the decisions so far, in sum.
func (c *Coord) Ledger() *ledger.State { return &c.led }

// History returns the decisions in order. The slice must not be changed.
func (c *Coord) History() []*ledger.Decision { return c.history }

func (c *Coord) take(d *ledger.Decision) bool {
	if !c.led.Apply(d) {
		return false
	}
	c.history = append(c.history, d)
	switch d.Kind {
	case ledger.Begin:
		c.closing = d.Step
		// A stop that was asked for and not yet decided outlives the timeline.
		c.stop, c.stopAt, c.stopSent, c.stopLead = c.stop && !c.resume, d.Step, 0, 0
		// So does a wish to go on when this timeline, under way already, does not.
		c.resume, c.halt = c.resume && d.Paused, ""
		for i := range c.shards {
			clear(c.shards[i].saved)
			clear(c.shards[i].staged)
			c.shards[i].held, c.shards[i].missing = false, nil
			c.shards[i].lo, c.shards[i].hi = d.Step, d.Step
		}
	case ledger.View:
		c.dropStaged(func(x stagedAt) bool { return c.led.Since[x.rank] == d.View })
	case ledger.Close:
		c.closing = d.Step + 1
		if c.stop && c.stopAt <= d.Step { // was under way when the stop was asked for
			c.stopAt, c.stopSent = d.Step+1, 0
			for i := range c.shards {
				c.shards[i].held = false
			}
		}
		c.dropStaged(func(x stagedAt) bool { return x.step <= d.Step })
	case ledger.Halt:
		c.halt, c.resume = "", false
	}
	return true
}

// dropStaged forgets reports of staged contributions.
func (c *Coord) dropStaged(which func(stagedAt) bool) {
	for i := range c.shards {
		maps.DeleteFunc(c.shards[i].staged, func(x stagedAt, _ ledger.Member) bool { return which(x) })
	}
}

// Handle takes one message and releases it.
func (c *Coord) Handle(m *wire.Message, now time.Duration) []Out {
	c.outs = c.outs[:0]
	if m.Job == c.cfg.Job {
		c.handle(m, now)
	}
	m.Release()
	c.decide(now)
	return c.outs
}

func (c *Coord) handle(m *wire.Message, now time.Duration) {
	switch m.Kind {
	case wire.Join:
		c.join(m, now)
	case wire.Beat:
		c.beat(m, now)
	case wire.Leave:
		if w := c.workers[m.Worker]; w != nil && w.nonce == m.Seq {
			w.alive = false
			c.note("worker %s left", w.name)
		}
	case wire.AskNews:
		c.answerNews(m)
	case wire.Bad:
		if h, ok := c.led.Member(int(m.Rank)); ok && h == (ledger.Member{Worker: m.Worker, Incarnation: m.Incarnation}) &&
			m.Timeline == c.led.Timeline && c.halt == "" && !c.led.Halted {
			c.halt = m.Text
		}
	case wire.Metric:
		if w := c.workers[m.Worker]; w != nil && w.inc == m.Incarnation && m.Timeline == c.led.Timeline {
			c.outs = append(c.outs, Out{Kind: NoteStep, Worker: m.Worker, Step: m.Step, Text: m.Text, Losses: []float64{m.Loss}})
		}
	default:
		if int(m.Shard) < len(c.shards) {
			c.fromShard(m, &c.shards[m.Shard], now)
		}
	}
}

// join admits a worker. A repeated join of the same process (same nonce) gets
// the same answer; a live name belongs to its process unless Hi says replace.
func (c *Coord) join(m *wire.Message, now time.Duration) {
	w := c.workers[m.Worker]
	switch {
	case m.Worker == "" || m.Seq == 0:
		return
	case w != nil && w.nonce == m.Seq && w.inc != 0:
		w.seen, w.alive, w.inc = now, true, max(w.inc, m.Incarnation)
		c.welcome(w)
		return
	case w != nil && w.nonce == m.Seq:
		w.seen = now
	case w != nil && w.alive && m.Hi == 0:
		h := c.header(wire.Welcome)
		h.Worker, h.Seq, h.Code, h.RetryMillis = m.Worker, m.Seq, wire.ErrNameInUse, 500
		h.Text = fmt.Sprintf("another live process is worker %q; stop it, choose another name, or replace it", m.Worker)
		c.outs = append(c.outs, Out{Kind: ToWorker, Worker: m.Worker, H: h})
		return
	default:
		w = &worker{name: m.Worker, nonce: m.Seq, seen: now}
		c.workers[m.Worker] = w
	}
	if !c.enlist[m.Worker] {
		c.enlist[m.Worker] = true
		c.outs = append(c.outs, Out{Kind: Enlist, Worker: m.Worker, Nonce: m.Seq})
	}
}

// Enlisted hands over the incarnation that the compare-and-set on the worker's
// record gave; 0 means that it failed and the worker will ask again.
func (c *Coord) Enlisted(name string, nonce, inc uint64, now time.Duration) []Out {
	c.outs = c.outs[:0]
	delete(c.enlist, name)
	if w := c.workers[name]; w != nil && w.nonce == nonce && inc != 0 {
		w.inc, w.alive, w.seen = max(w.inc, inc), true, now
		c.note("worker %s joined (incarnation %d)", name, w.inc)
		c.welcome(w)
		c.decide(now)
	}
	return c.outs
}

func (c *Coord) welcome(w *worker) {
	h := c.header(wire.Welcome)
	h.Worker, h.Seq, h.Incarnation, h.Lo = w.name, w.nonce, w.inc, c.led.N
	c.outs = append(c.outs, Out{Kind: ToWorker, Worker: w.name, H: h, Tail: c.cfg.Spec})
}

func (c *Coord) beat(m *wire.Message, now time.Duration) {
	w := c.workers[m.Worker]
	if w != nil && w.nonce == m.Seq && w.inc != 0 {
		// Another coordinator, which does not know that it was replaced, may have
		// allotted the process an incarnation too. The higher one counts.
		w.inc = max(w.inc, m.Incarnation)
		if m.Incarnation < w.inc {
			c.welcome(w)
		}
		c.heardOf = max(c.heardOf, m.Lo)
	} else {
		// Unknown to this coordinator (it restarted) or replaced: let it join.
		h := c.header(wire.Welcome)
		h.Worker, h.Seq, h.Code = m.Worker, m.Seq, wire.ErrStaleInc
		c.outs = append(c.outs, Out{Kind: ToWorker, Worker: m.Worker, H: h})
		return
	}
	if !w.alive {
		c.note("worker %s is back", w.name)
	}
	w.seen, w.alive = now, true
}

func (c *Coord) answerNews(m *wire.Message) {
	from := max(m.Seq, 1)
	for n := from; n <= uint64(len(c.history)) && n < from+64; n++ {
		o := c.newsOf(c.history[n-1])
		if m.Worker != "" {
			o.Kind, o.Worker = ToWorker, m.Worker
		} else {
			o.Kind, o.Shard = ToShard, int(m.Shard)
		}
		c.outs = append(c.outs, o)
	}
}

func (c *Coord) newsOf(d *ledger.Decision) Out {
	h := c.header(wire.News)
	h.Seq = d.N
	return Out{Kind: ToAll, H: h, Tail: d.Encode()}
}

func (c *Coord) header(k wire.Kind) wire.Header {
	return wire.Header{Kind: k, Job: c.cfg.Job, Timeline: c.led.Timeline, View: c.led.View}
}

func (c *Coord) note(format string, args ...any) {
	c.outs = append(c.outs, Out{Kind: Note, Text: fmt.Sprintf(format, args...)})
}

// Decided hands over the decision that now stands under the proposed number:
// ours, or the one somebody else created first. nil means that the attempt
// failed and left nothing; it is made again.
func (c *Coord) Decided(d *ledger.Decision, now time.Duration) []Out {
	c.outs = c.outs[:0]
	c.pending = nil
	if d != nil && d.Nonce == c.cfg.Nonce {
		c.heardOf = d.N // it was free: nobody knows more
	}
	if d != nil && c.take(d) {
		c.outs = append(c.outs, c.newsOf(d))
		c.note("decision %d: %s", d.N, Describe(d, c.cfg.Phases))
	}
	c.decide(now)
	return c.outs
}

// Tick does what is due at now. Call it every 50 ms or so.
func (c *Coord) Tick(now time.Duration) []Out {
	c.outs = c.outs[:0]
	for _, w := range c.sorted() {
		if w.alive && now-w.seen > c.cfg.WorkerTimeout {
			w.alive = false
			c.note("worker %s is silent for %v and counts as lost", w.name, (now - w.seen).Round(time.Millisecond))
		}
	}
	if !c.reset {
		c.reset = true
		if !c.led.Stopped {
			c.holdAll(shard.Latest)
		}
	}
	if now-c.beacon >= 200*time.Millisecond || c.beacon == 0 {
		c.beacon = now
		h := c.header(wire.News)
		h.Seq = c.led.N
		c.outs = append(c.outs, Out{Kind: ToAll, H: h})
	}
	if c.stop && !c.led.Stopped && now-c.stopSent > 200*time.Millisecond {
		c.askHold(now)
	}
	c.decide(now)
	return c.outs
}

func (c *Coord) sorted() []*worker {
	ws := make([]*worker, 0, len(c.workers))
	for _, w := range c.workers {
		ws = append(ws, w)
	}
	slices.SortFunc(ws, func(a, b *worker) int { return cmp.Compare(a.name, b.name) })
	return ws
}

func (c *Coord) alive() []ledger.Member {
	var ms []ledger.Member
	for _, w := range c.sorted() {
		if w.alive && w.inc != 0 {
			ms = append(ms, ledger.Member{Worker: w.name, Incarnation: w.inc})
		}
	}
	return ms
}

// fromShard takes a message of the owner of a shard. A newer epoch than known
// means that the shard restarted and lost what it held.
func (c *Coord) fromShard(m *wire.Message, s *shardInfo, now time.Duration) {
	if m.Epoch < s.epoch {
		return
	}
	if m.Epoch > s.epoch {
		s.epoch, s.missing, s.held = m.Epoch, nil, false
	}
	s.seen, s.present = now, true
	if m.Kind == wire.Report || m.Kind == wire.Ready {
		c.heardOf = max(c.heardOf, m.Seq)
	}
	if m.Kind == wire.Ready || m.Timeline != c.led.Timeline {
		return
	}
	switch m.Kind {
	case wire.Report:
		c.reported(m, s)
	case wire.Waiting:
		s.missing = s.missing[:0]
		for r := range min(c.cfg.Ranks, 8*len(m.Tail)) {
			if m.Tail[r/8]&(1<<(r%8)) != 0 {
				s.missing = append(s.missing, r)
			}
		}
		if s.since == 0 {
			s.since = now
		}
	case wire.Staged:
		// A shard that has not yet seen the rank leave and come back is about to
		// drop what it reports.
		if r := int(m.Rank); r < len(c.led.Since) && m.View >= c.led.Since[r] && m.Step >= c.closing {
			s.staged[stagedAt{r, m.Step}] = ledger.Member{Worker: m.Worker, Incarnation: m.Incarnation}
		}
	case wire.Held:
		if c.stop && m.Step == c.stopAt {
			s.held = m.Lo <= m.Step
			if !s.held {
				// The shard goes on until it is asked again: aim further ahead each
				// time, or a fast job is never caught.
				c.stopLead = max(1, 2*c.stopLead)
				c.stopAt = max(c.stopAt, m.Lo+min(c.stopLead, maxStopLead))
				c.stopSent = 0
			}
		}
	case wire.Saved:
		s.saved[ledger.CutID{Timeline: m.Timeline, Step: m.Step}] = true
	}
}

func (c *Coord) reported(m *wire.Message, s *shardInfo) {
	if m.Code != wire.OK {
		if m.Code == wire.ErrGone { // the base cut cannot be read: go further back
			c.badCuts[c.led.Base] = true
			c.note("%s", m.Text)
			return
		}
		if c.halt == "" && !c.led.Halted {
			c.halt = m.Text
		}
		return
	}
	if m.Lo > s.lo {
		s.missing, s.since = nil, 0
	}
	s.lo, s.hi, s.nanos = max(s.lo, m.Lo), max(s.hi, m.Hi), m.Nanos
	if n := int(m.Count); n > 0 && len(m.Tail) == 8*n {
		x := make([]float64, n)
		wire.CopyFloat64s(x, m.Tail)
		if end := m.Pulled + uint64(n); end > c.lossNext {
			skip := max(c.lossNext, m.Pulled) - m.Pulled
			c.outs = append(c.outs, Out{Kind: NoteLoss, Step: m.Pulled + skip, Losses: x[skip:]})
			c.lossNext = end
		}
	}
}
