package e2e

import (
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"tributary/comm"
	"tributary/comm/wire"
)

// spy reads along what the workers of a job push and what they are sent.
type spy struct {
	mu     sync.Mutex
	pushed map[pushID]map[uint32]bool // chunks seen
	floor  map[string]uint64          // by worker: incarnations up to this are of dead processes
	newest map[string]uint64          // by worker: the highest incarnation seen
	holder map[uint32]string          // by rank: who pushed it last
	trap   func(*wire.Header) bool    // called with every header, under mu, until it returns true
	frames [][]byte                   // some frames, as they were
}

// pushID is one attempt at a contribution.
type pushID struct {
	worker                      string
	incarnation, timeline, step uint64
	rank                        uint32
}

const keepFrames = 64

// newSpy listens until the test ends.
func newSpy(t *testing.T, url, job string) *spy {
	t.Helper()
	s := &spy{pushed: map[pushID]map[uint32]bool{}, floor: map[string]uint64{}, newest: map[string]uint64{}, holder: map[uint32]string{}}
	nc, err := nats.Connect(url, comm.ConnOptions("spy")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	for _, subject := range []string{"tb." + job + ".shard.*.*", comm.ParamsSubject(job)} {
		sub, err := nc.Subscribe(subject, s.see)
		if err != nil {
			t.Fatal(err)
		}
		if err := sub.SetPendingLimits(-1, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *spy) see(msg *nats.Msg) {
	m, err := wire.Decode(msg.Data, nil)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.frames) < keepFrames {
		s.frames = append(s.frames, msg.Data)
	}
	if m.Kind == wire.Push {
		id := pushID{m.Worker, m.Incarnation, m.Timeline, m.Step, m.Rank}
		if s.pushed[id] == nil {
			s.pushed[id] = map[uint32]bool{}
		}
		s.pushed[id][m.Chunk] = true
		s.newest[m.Worker] = max(s.newest[m.Worker], m.Incarnation)
		s.holder[m.Rank] = m.Worker
	}
	if s.trap != nil && s.trap(&m.Header) {
		s.trap = nil
	}
}

// set sets the trap.
func (s *spy) set(trap func(*wire.Header) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trap = trap
}

// bury says that the process of a worker is dead: what still comes of it
// springs no trap.
func (s *spy) bury(worker string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor[worker] = s.newest[worker]
}

// chunks is how many chunks of a push were seen.
func (s *spy) chunks(id pushID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pushed[id])
}
