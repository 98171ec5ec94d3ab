package client

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tributary/comm/wire"
	"tributary/ledger"
	"tributary/optim"
)

func (s *Session) recv(m *wire.Message) {
	switch m.Kind {
	case wire.Welcome:
		s.welcome(m)
		return
	case wire.News:
		s.news(m)
		return
	}
	// Everything else comes from the owner of a shard in the present timeline.
	if s.plan == nil || s.inc == 0 || int(m.Shard) >= len(s.ranges) {
		return
	}
	if m.Timeline > s.led.Timeline || m.Kind == wire.Ack && m.Seq > s.led.N {
		s.askNews()
	}
	if m.Timeline != s.led.Timeline || int(m.Shard) >= len(s.led.Epochs) || m.Epoch != s.led.Epochs[m.Shard] {
		return
	}
	s.heard[m.Shard] = s.now
	switch m.Kind {
	case wire.Ack:
		s.acked(m)
	case wire.Params:
		s.params(m)
	case wire.Waiting:
		s.waiting(m)
	case wire.Here:
		s.here(m)
	case wire.State:
		s.gotState(m)
	case wire.AskState:
		for _, c := range s.flight {
			if c.Rank == int(m.Rank) && c.Step+1 == m.Step {
				s.sendState(c)
			}
		}
	}
}

// welcome takes the answer to a join: an incarnation and the job, or a refusal.
func (s *Session) welcome(m *wire.Message) {
	if m.Worker != s.cfg.Worker || m.Seq != s.cfg.Nonce {
		return
	}
	switch m.Code {
	case wire.OK:
	case wire.ErrStaleInc:
		s.inc, s.joinAt = 0, 0 // the coordinator does not know us (any more)
		return
	case wire.ErrNameInUse:
		if s.inc != 0 || s.plan != nil {
			s.err = ErrReplaced
		}
		s.waitText = m.Text
		return
	default:
		s.err = m.Err()
		return
	}
	if s.inc == m.Incarnation || m.Incarnation < s.topInc {
		// Never back to a lower one: what was computed under it and forgotten
		// could be mixed with what is computed under it again (C8).
		return
	}
	if s.plan == nil {
		if err := s.open(m.Tail); err != nil {
			s.err = fmt.Errorf("job %q: %w", s.cfg.Job, err)
			return
		}
	}
	s.inc, s.topInc, s.waitText = m.Incarnation, m.Incarnation, ""
	s.takeView()
	if s.newsTo = max(s.newsTo, m.Lo); m.Lo > s.led.N {
		s.newsAt = 0
		s.askNews()
	}
}

func (s *Session) askNews() {
	if s.newsAt != 0 && s.now-s.newsAt < s.cfg.Retry/2 {
		return
	}
	s.newsAt = s.now
	h := s.header(wire.AskNews)
	h.Seq = s.led.N + 1
	s.toCoord(h, nil)
}

func (s *Session) news(m *wire.Message) {
	s.newsTo = max(s.newsTo, m.Seq)
	if len(m.Tail) == 0 || m.Seq != s.led.N+1 {
		if m.Seq > s.led.N {
			s.askNews()
		}
		return
	}
	d, err := ledger.Decode(m.Tail)
	if err != nil {
		return
	}
	if !s.led.Apply(d) {
		if d.N > s.led.N {
			s.askNews()
		}
		return
	}
	switch d.Kind {
	case ledger.Begin:
		if d.Timeline > 1 {
			s.rewound, s.rewoundTo = true, d.Step
			s.stats.Rewinds++
		}
		s.restart()
	case ledger.View:
		s.takeView()
	case ledger.Stop:
		s.flight = slices.DeleteFunc(s.flight, func(c *contribution) bool { return c.Step >= d.Step })
	}
}

// restart forgets everything of the past timeline.
func (s *Session) restart() {
	s.flight = nil
	for i := range s.vers {
		v := &s.vers[i]
		v.used = false
	}
	clear(s.ranks)
	clear(s.loaded)
	s.eval = evaluation{}
	s.pushedTo = 0
	s.seq++
	s.lastPush = s.seq
	s.takeView()
}

// takeView makes the ranks served those of the view.
func (s *Session) takeView() {
	if s.plan == nil || s.inc == 0 {
		return
	}
	me := ledger.Member{Worker: s.cfg.Worker, Incarnation: s.inc}
	for rank := range s.plan.Ranks {
		m, ok := s.led.Member(rank)
		mine := ok && m == me && s.led.In(rank)
		switch _, have := s.ranks[rank]; {
		case mine && !have:
			s.ranks[rank] = &rankState{rank: rank}
		case !mine && have:
			delete(s.ranks, rank)
			kept := s.flight[:0]
			for _, c := range s.flight {
				if c.Rank != rank {
					kept = append(kept, c)
				}
			}
			s.flight = kept
		}
	}
}

func (s *Session) acked(m *wire.Message) {
	if n := int(m.Credit); n > 0 {
		s.credit[m.Shard] = min(n, s.plan.Window)
	}
	if m.Point == optim.Eval {
		s.evalRefused(m)
		return
	}
	switch m.Code {
	case wire.OK, wire.ErrDuplicate, wire.ErrLate: // late: nobody wants it any more
	case wire.ErrGone:
		// The version we hoped for is no longer held: find out where we stand.
		for _, r := range s.ranks {
			r.known = false
		}
		for i := range s.vers {
			if v := &s.vers[i]; v.left > 0 {
				v.used = false
			}
		}
		return
	case wire.ErrStaleView, wire.ErrNotInView, wire.ErrStaleInc, wire.ErrStaleTimeline, wire.ErrStaleEpoch, wire.ErrReadOnly, wire.ErrHalted:
		s.askNews()
		return
	case wire.ErrNotFinite, wire.ErrBadShape, wire.ErrBadEncoding, wire.ErrTooLarge:
		s.err = fmt.Errorf("shard %d refused rank %d, step %d: %w", m.Shard, m.Rank, m.Step, m.Err())
		return
	default:
		return // the repair timer tries again
	}
	for _, c := range s.flight {
		if c.Rank == int(m.Rank) && c.Step == m.Step && int(m.Chunk) < len(c.state) {
			if m.Level != wire.LevelStaged || m.Code == wire.ErrLate {
				s.mark(c, int(m.Chunk), done)
			} else if s.allStaged(c, m) {
				s.mark(c, int(m.Chunk), safe)
			}
			return
		}
	}
}

// allStaged says whether, with the answer m, every role of a chunk is known to
// be staged. Each role is a message of its own, which may have been lost while
// the others arrived.
func (s *Session) allStaged(c *contribution, m *wire.Message) bool {
	i := slices.Index(c.roles, m.Role)
	if i < 0 {
		return false
	}
	c.acked[m.Chunk] |= 1 << i
	return c.acked[m.Chunk] == 1<<len(c.roles)-1
}

// mark records how far a pushed chunk got.
func (s *Session) mark(c *contribution, chunk int, to chunkState) {
	k := s.shardOf(chunk)
	was := c.state[chunk]
	if was >= to {
		return
	}
	if was == inFlight {
		c.out[k]--
	}
	c.state[chunk] = to
	c.since, c.wait = s.now, s.cfg.Retry
	if to == done {
		c.left--
	}
}

func (s *Session) shardOf(chunk int) int { return shardOf(s.ranges, chunk) }

// params takes one chunk of parameters into the buffer of its version.
func (s *Session) params(m *wire.Message) {
	ci := int(m.Chunk)
	if ci >= s.plan.Layout.Chunks() || ci < s.ranges[m.Shard].Lo || ci >= s.ranges[m.Shard].Hi {
		return
	}
	r := s.plan.Layout.Chunk(ci)
	if int(m.Count) != r.Len() || len(m.Tail) != 4*r.Len() || wire.Checksum(m.Tail) != m.CRC {
		return
	}
	if m.Point == optim.Eval {
		s.evalChunk(m, ci, r)
		return
	}
	if !s.async() {
		for _, c := range s.flight {
			if c.Step < m.Step {
				s.mark(c, ci, done) // version m.Step contains it
			}
		}
	}
	v := s.buffer(m)
	if v == nil || v.got[ci] {
		return
	}
	wire.CopyFloat32s(v.data[r.Lo:r.Hi], m.Tail)
	v.got[ci], v.asked[ci] = true, false
	v.left--
	v.since, v.wait = s.now, s.cfg.Retry
	s.stats.BytesIn += uint64(len(m.Tail))
	if v.left == 0 {
		s.waitText = ""
	}
}

// buffer returns where the chunk of m belongs, or nil if nobody needs it.
func (s *Session) buffer(m *wire.Message) *version {
	if s.async() {
		v := &s.vers[0]
		if v.lent || !v.used || m.Seq != v.v {
			return nil
		}
		return v
	}
	v := &s.vers[m.Step%uint64(len(s.vers))]
	switch {
	case v.used && v.v == m.Step:
		if v.lent && v.left > 0 {
			return nil
		}
		return v
	case v.lent || v.used && (v.v > m.Step || s.wanted(v.v)):
		return nil
	}
	s.assign(v, m.Step, false)
	return v
}

func (s *Session) assign(v *version, n uint64, pulling bool) {
	v.v, v.used, v.pulling = n, true, pulling
	clear(v.got)
	clear(v.asked)
	v.left = len(v.got)
	v.since, v.wait = s.now, s.cfg.Retry
}

// waiting learns which ranks a chunk lacks; if one of them is ours and we did
// push it, the push was lost.
func (s *Session) waiting(m *wire.Message) {
	if len(m.Tail) != (s.plan.Ranks+7)/8 || int(m.Chunk) >= s.plan.Layout.Chunks() {
		return
	}
	var others []string
	for rank := range s.plan.Ranks {
		if m.Tail[rank/8]&(1<<(rank%8)) == 0 {
			s.isStaged(rank, m)
			continue
		}
		mine := false
		for _, c := range s.flight {
			if c.Rank == rank && c.Step == m.Step {
				mine = true
				s.resend(c, int(m.Chunk))
			}
		}
		if _, have := s.ranks[rank]; !mine && !have {
			who := "nobody"
			if mem, ok := s.led.Member(rank); ok {
				who = mem.Worker
			}
			others = append(others, fmt.Sprintf("%d (%s)", rank, who))
		}
	}
	if len(others) > 0 {
		s.waitText = fmt.Sprintf("step %d waits for rank %s", m.Step, strings.Join(others, ", "))
	}
}

// isStaged learns that a shard holds a chunk: the push arrived. Where credit
// returns on staging, the acknowledgement was lost and this stands for it; a
// streaming job returns it on apply, which is yet to come.
func (s *Session) isStaged(rank int, m *wire.Message) {
	if s.plan.Streaming {
		return
	}
	for _, c := range s.flight {
		if c.Rank == rank && c.Step == m.Step && c.state[m.Chunk] == inFlight {
			s.mark(c, int(m.Chunk), safe)
		}
	}
}

func (s *Session) resend(c *contribution, chunk int) {
	if c.state[chunk] == done {
		return
	}
	k := s.shardOf(chunk)
	if c.state[chunk] == inFlight {
		c.out[k]--
	}
	c.state[chunk], c.acked[chunk] = unsent, 0
	c.next[k] = min(c.next[k], chunk)
	s.stats.Repushed++
}

// here collects the shards' answers to where a rank stands.
func (s *Session) here(m *wire.Message) {
	r := s.ranks[int(m.Rank)]
	if r == nil || r.known || m.Seq != r.seq || r.heard[m.Shard] {
		return
	}
	r.heard[m.Shard], r.needs[m.Shard] = true, m.Step
	r.left--
	if r.left > 0 {
		return
	}
	next := r.needs[0]
	for _, n := range r.needs {
		next = min(next, n)
	}
	was := r.next
	r.known, r.next = true, next
	// What every shard has needs no further care; the rest is still in flight.
	kept := s.flight[:0]
	for _, c := range s.flight {
		if c.Rank != r.rank || c.Step >= next {
			kept = append(kept, c)
		}
	}
	s.flight = kept
	for _, c := range s.flight {
		if c.Rank == r.rank {
			r.next = max(r.next, c.Step+1)
		}
	}
	r.own = r.own && r.next == was
}

func (s *Session) sendState(c *contribution) {
	h := s.header(wire.State)
	h.Rank, h.Step, h.CRC = uint32(c.Rank), c.Step+1, wire.Checksum(c.State)
	s.toShard(c.Rank%len(s.ranges), h, c.State)
}

type stateKey struct {
	rank int
	step uint64
}

type loadedState struct {
	come bool
	data []byte
	code wire.Code
}

// LoadState asks for the opaque state that rank had before step. Loaded hands
// it out when it has come; the caller repeats the question until then.
func (s *Session) LoadState(rank int, step uint64, now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	if s.plan == nil || rank < 0 || rank >= s.plan.Ranks {
		return nil
	}
	for k := range s.loaded {
		if k.rank == rank && k.step != step {
			delete(s.loaded, k) // given up
		}
	}
	if k := (stateKey{rank, step}); !s.loaded[k].come {
		s.loaded[k] = loadedState{}
		h := s.header(wire.AskState)
		h.Rank, h.Step = uint32(rank), step
		s.toShard(rank%len(s.ranges), h, nil)
	}
	return s.outs
}

// Loaded hands out the answer to LoadState, once. The error is wire.ErrGone
// when the shard holds no such state.
func (s *Session) Loaded(rank int, step uint64) (state []byte, ok bool, err error) {
	k := stateKey{rank, step}
	x := s.loaded[k]
	if !x.come {
		return nil, false, nil
	}
	delete(s.loaded, k)
	if x.code != wire.OK {
		err = fmt.Errorf("state of rank %d at step %d: %w", rank, step, x.code)
	}
	return x.data, true, err
}

func (s *Session) gotState(m *wire.Message) {
	k := stateKey{int(m.Rank), m.Step}
	if x, asked := s.loaded[k]; !asked || x.come || wire.Checksum(m.Tail) != m.CRC || m.Code.Retry() {
		return
	}
	s.loaded[k] = loadedState{true, slices.Clone(m.Tail), m.Code}
}

// Metric is a message to the coordinator that carries one number of a step.
func (s *Session) Metric(step uint64, name string, x float64, now time.Duration) []Out {
	s.outs, s.now = s.outs[:0], now
	h := s.header(wire.Metric)
	h.Step, h.Text, h.Loss = step, name, x
	s.toCoord(h, nil)
	return s.outs
}

// Leave says goodbye, so that nobody waits for this worker.
func (s *Session) Leave() []Out {
	s.outs = s.outs[:0]
	h := s.header(wire.Leave)
	h.Seq = s.cfg.Nonce
	if s.bad != nil {
		s.toCoord(*s.bad, nil)
	}
	s.toCoord(h, nil)
	if s.err == nil {
		s.err = errLeft
	}
	return s.outs
}

var errLeft = errors.New("the worker left the job")
