package client

import (
	"cmp"
	"math"
	"slices"

	"tributary/comm/wire"
	"tributary/layout"
	"tributary/optim"
)

// advance sends whatever can be sent now.
func (s *Session) advance() {
	if s.err != nil {
		return
	}
	if s.inc == 0 {
		s.join()
		return
	}
	if s.led.Timeline == 0 || s.led.Halted {
		return
	}
	s.dropDone()
	s.askWhere()
	s.pushChunks()
	s.wantVersions()
	s.pullChunks()
	s.pullEval()
}

func (s *Session) join() {
	if s.joinAt != 0 && s.now-s.joinAt < 2*s.cfg.Retry {
		return
	}
	s.joinAt = max(s.now, 1)
	h := s.header(wire.Join)
	h.Seq, h.Incarnation = s.cfg.Nonce, s.topInc
	if s.cfg.Replace && s.plan == nil {
		h.Hi = 1
	}
	s.toCoord(h, nil)
}

func (s *Session) dropDone() {
	kept := s.flight[:0]
	for _, c := range s.flight {
		if c.left > 0 {
			kept = append(kept, c)
		}
	}
	clear(s.flight[len(kept):])
	s.flight = kept
}

// askWhere asks all shards where a rank stands that this worker just got.
func (s *Session) askWhere() {
	for _, r := range s.sortedRanks() {
		if r.known || r.heard != nil && s.now-r.asked < s.cfg.Retry {
			continue
		}
		if r.heard == nil || r.left == 0 {
			r.heard, r.needs, r.left = make([]bool, len(s.ranges)), make([]uint64, len(s.ranges)), len(s.ranges)
			s.seq++
			r.seq = s.seq
		}
		r.asked = s.now
		for k := range s.ranges {
			if !r.heard[k] {
				h := s.header(wire.Where)
				h.Rank, h.Seq = uint32(r.rank), r.seq
				s.toShard(k, h, nil)
			}
		}
	}
}

// pushChunks sends chunks in ascending order, rank by rank for each chunk, as
// far as the windows allow. Windows are per rank, step and shard: a chunk is
// applied only when all ranks have it, and in the order of steps, so the window
// of one rank or step must never block another's.
func (s *Session) pushChunks() {
	for k := range s.ranges {
		for again := true; again; {
			again = false
			for _, c := range s.flight {
				if c.out[k] < s.credit[k] && s.pushNext(c, k) {
					again = true
				}
			}
		}
	}
}

// pushNext sends the lowest unsent chunk of c to shard k.
func (s *Session) pushNext(c *contribution, k int) bool {
	for c.next[k] < s.ranges[k].Hi && c.state[c.next[k]] != unsent {
		c.next[k]++
	}
	ci := c.next[k]
	if ci >= s.ranges[k].Hi {
		return false
	}
	c.next[k]++
	c.state[ci] = inFlight
	c.out[k]++
	s.sendChunk(c, k, ci)
	return true
}

func (s *Session) sendChunk(c *contribution, k, ci int) {
	r := s.plan.Layout.Chunk(ci)
	for i, role := range c.roles {
		h := s.header(wire.Push)
		h.Phase = uint8(s.plan.phase(c.Step))
		h.Rank, h.Step, h.Pulled = uint32(c.Rank), c.Step, c.Version
		h.Role, h.Chunk, h.Chunks = role, uint32(ci), uint32(s.plan.Layout.Chunks())
		h.Loss, h.Examples = c.Loss, c.Examples
		if c.Null {
			h.Encoding, h.Examples = wire.Null, 0
			s.toShard(k, h, nil)
			continue
		}
		h.Encoding, h.Count = wire.F32, uint32(r.Len())
		tail := wire.Bytes32(c.tails[i][r.Lo:r.Hi])
		switch {
		case s.plan.Half:
			half := make([]uint16, r.Len())
			wire.ToHalf(half, c.tails[i][r.Lo:r.Hi])
			h.Encoding, tail = wire.BF16, wire.BytesHalf(half)
		case c.Runs != nil:
			var n int
			tail, n = wire.AppendRuns(nil, runsIn(c.Runs, r), c.tails[i][r.Lo:r.Hi])
			h.Encoding, h.Count = wire.Rows, uint32(n)
		}
		h.CRC = wire.Checksum(tail)
		s.toShard(k, h, tail)
	}
}

// runsIn are the parts of runs that lie in a chunk, counted from its start.
func runsIn(runs []layout.Range, chunk layout.Range) []wire.Run {
	i, _ := slices.BinarySearchFunc(runs, chunk.Lo, func(r layout.Range, lo int) int { return r.Hi - lo - 1 })
	var in []wire.Run
	for ; i < len(runs) && runs[i].Lo < chunk.Hi; i++ {
		in = append(in, wire.Run{Lo: max(runs[i].Lo, chunk.Lo) - chunk.Lo, Hi: min(runs[i].Hi, chunk.Hi) - chunk.Lo})
	}
	return in
}

// wantVersions gives a buffer to every version that a rank needs next. Where
// two need the same buffer the lower step goes first: the other cannot close
// before it.
func (s *Session) wantVersions() {
	if s.async() {
		s.wantLatest()
		return
	}
	ranks := s.sortedRanks()
	slices.SortStableFunc(ranks, func(a, b *rankState) int { return cmp.Compare(a.next, b.next) })
	for i, r := range ranks {
		if !r.known || r.issued || r.next >= s.plan.Steps {
			continue
		}
		want := s.wants(r)
		if s.plan.wantsPrev(r.next) && s.held(want-1) == nil {
			s.wantPrev(want - 1)
		}
		if slices.ContainsFunc(ranks[:i], func(q *rankState) bool { return s.claims(q, want) }) {
			continue
		}
		if _, ok := s.ready(r); ok {
			continue
		}
		v := &s.vers[want%uint64(len(s.vers))]
		if v.used && v.v == want {
			v.pulling = v.pulling || !s.plan.Broadcast
			continue
		}
		if v.lent || v.used && v.v < want && s.wanted(v.v) {
			continue // the rank that is further behind goes first
		}
		// In a broadcast job the next version comes by itself; a version that is
		// already out there must be asked for.
		s.assign(v, want, !s.plan.Broadcast || !s.inStep(want))
	}
}

// wantPrev asks for the version before the one a rank computes on. Whoever
// computed the step before has it.
func (s *Session) wantPrev(v uint64) {
	x := &s.vers[v%uint64(len(s.vers))]
	if x.lent || x.used && x.v == v && x.pulling || x.used && x.v > v {
		return
	}
	if x.used && x.v == v {
		x.pulling = true
		return
	}
	s.assign(x, v, true)
}

// claims says whether rank r needs the buffer of version v for another version.
func (s *Session) claims(r *rankState, v uint64) bool {
	if !r.known || r.issued || r.next >= s.plan.Steps {
		return false
	}
	want, n := s.wants(r), uint64(len(s.vers))
	return want != v && want%n == v%n
}

// wanted says whether a rank needs version n to go on.
func (s *Session) wanted(n uint64) bool {
	for _, r := range s.ranks {
		if r.known && !r.issued && r.next < s.plan.Steps && (s.wants(r) == n || s.plan.wantsPrev(r.next) && s.wants(r) == n+1) {
			return true
		}
	}
	return false
}

// inStep says whether the version before v was complete here, so that v is
// going to be broadcast to us.
func (s *Session) inStep(v uint64) bool {
	for i := range s.vers {
		if x := &s.vers[i]; x.used && x.left == 0 && x.v+1 == v {
			return true
		}
	}
	return false
}

// wantLatest asks, in an asynchronous job, for the newest parameters of every
// shard once a rank has nothing in flight.
func (s *Session) wantLatest() {
	v := &s.vers[0]
	for _, r := range s.sortedRanks() {
		if r.known && !r.issued && r.next < s.plan.Steps && !s.flying(r.rank) {
			if v.lent || v.used && (v.left > 0 || !s.stale(v)) {
				return
			}
			s.seq++
			s.assign(v, s.seq, true)
			return
		}
	}
}

// stale says whether something was pushed since v was asked for.
func (s *Session) stale(v *version) bool { return v.v < s.lastPush }

// pullChunks asks for missing chunks of wanted versions, first chunk first.
func (s *Session) pullChunks() {
	for i := range s.vers {
		v := &s.vers[i]
		if !v.used || v.left == 0 || !v.pulling {
			continue
		}
		for k, rg := range s.ranges {
			out := 0
			for ci := rg.Lo; ci < rg.Hi && out < s.plan.Window; ci++ {
				if v.got[ci] {
					continue
				}
				out++
				if !v.asked[ci] {
					v.asked[ci] = true
					s.pull(v, k, ci, false)
				}
			}
		}
	}
}

func (s *Session) pull(v *version, k, ci int, tellMe bool) {
	h := s.header(wire.Pull)
	h.Chunk, h.Step, h.Point = uint32(ci), v.v, optim.Train
	if s.async() {
		h.Step, h.Seq = math.MaxUint64, v.v
	}
	if tellMe {
		h.Hi = 1
	}
	s.stats.Pulls++
	s.toShard(k, h, nil)
}

// repairChunks is how many chunks are asked for at once when nothing came.
const repairChunks = 8

// repair asks again for what did not come in time. Waits double up to 16 times
// the first one.
func (s *Session) repair() {
	if s.err != nil || s.inc == 0 || s.led.Timeline == 0 || s.led.Halted {
		return
	}
	for i := range s.vers {
		v := &s.vers[i]
		if v.used && v.left > 0 && s.now-v.since >= v.wait {
			v.since, v.wait = s.now, min(2*v.wait, 16*s.cfg.Retry)
			s.repairVersion(v)
		}
	}
	for _, c := range s.flight {
		if s.now-c.since >= c.wait {
			c.since, c.wait = s.now, min(2*c.wait, 16*s.cfg.Retry)
			s.repairPush(c)
		}
	}
}

func (s *Session) repairVersion(v *version) {
	s.stats.Repairs++
	for k, rg := range s.ranges {
		n := 0
		for i := range rg.Len() {
			ci := rg.Lo + (i+v.turn)%rg.Len()
			if !v.got[ci] && n < repairChunks {
				n++
				s.pull(v, k, ci, true)
			}
		}
	}
	v.turn += repairChunks
}

// repairPush asks about chunks that were not acknowledged. The answer shows
// whether they arrived. An asynchronous shard has no versions to ask for, so
// there the chunk itself is sent again. Of chunks known to be staged one per
// shard is asked for, in case the news of their step was lost.
func (s *Session) repairPush(c *contribution) {
	s.stats.Repairs++
	probe := version{v: c.Step + 1}
	for k, rg := range s.ranges {
		n, staged := 0, -1
		for i := 0; i < rg.Len() && n < repairChunks; i++ {
			ci := rg.Lo + (i+c.turn)%rg.Len()
			switch {
			case s.async() && (c.state[ci] == safe || c.state[ci] == inFlight):
				s.resend(c, ci)
				n++
			case c.state[ci] == safe:
				staged = ci
			case c.state[ci] != inFlight:
			default:
				s.pull(&probe, k, ci, true)
				n++
			}
		}
		if n == 0 && staged >= 0 {
			s.pull(&probe, k, staged, true)
		}
	}
	c.turn += repairChunks
	s.pushChunks()
}
