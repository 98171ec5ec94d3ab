package faults

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"tributary/internal/rng"
	"tributary/layout"
	"tributary/ledger"
)

// Result is the outcome of one seed.
type Result struct {
	Seed   uint64        `json:"seed"`
	OK     bool          `json:"ok"`
	Fault  string        `json:"fault,omitempty"`
	Plan   string        `json:"plan"`
	Hash   string        `json:"trace_hash"`
	Took   time.Duration `json:"virtual_ns"`
	Counts Counts        `json:"counts"`
	Replay string        `json:"replay,omitempty"`
}

// Run runs one seed and compares it with its calm twin. trace, if not nil,
// gets one readable line per event.
func Run(seed uint64, trace io.Writer) Result {
	p := NewPlan(seed)
	want, calm := runPlan(p.Calm(), nil)
	res := Result{Seed: seed, Plan: p.String(), Replay: fmt.Sprintf("go run ./cmd/ps faults --seeds 1 --from %d --trace", seed)}
	if calm.fault != "" {
		res.Fault = "undisturbed run: " + calm.fault
		return res
	}
	got, w := runPlan(p, trace)
	if w.fault == "" {
		if diff := compare(want, got); diff != "" {
			w.fail("%s", diff)
		}
	}
	res.Fault, res.OK = w.fault, w.fault == ""
	res.Hash, res.Took, res.Counts = fmt.Sprintf("%016x", w.hash), w.now, w.counts
	if res.OK {
		res.Replay = ""
	}
	return res
}

func runPlan(p Plan, trace io.Writer) (map[string][]float32, *world) {
	w := &world{plan: p, key: rng.New(p.Seed, "world"), hash: newHash(), trace: trace, disk: map[cutFile][]byte{}}
	l, err := layout.New(p.Tensors, p.Chunk)
	if err != nil {
		w.fail("plan: %v", err)
		return nil, w
	}
	w.layout = l
	w.plan.Shards = len(l.Shards(p.Shards))
	for i := range w.plan.Servers {
		w.servers = append(w.servers, &server{w: w, id: i})
	}
	for i := range w.plan.Workers {
		w.workers = append(w.workers, &workerNode{w: w, id: i})
	}
	for _, s := range w.servers {
		w.after(w.between(0, 500*time.Millisecond), s.start)
		w.crashes(p.Faults.ServerCrash, func() { s.crashIfUp() })
	}
	for _, x := range w.workers {
		w.after(w.between(0, 500*time.Millisecond), x.start)
		w.crashes(p.Faults.WorkerCrash, func() { x.crashIfUp() })
	}
	w.run(w.finished)
	if w.fault != "" {
		return nil, w
	}
	out, err := w.final()
	if err != nil {
		w.fail("final state: %v", err)
	}
	return out, w
}

func (s *server) crashIfUp() {
	if s.up {
		s.crash(s.w.between(100*time.Millisecond, 5*time.Second))
	}
}

func (x *workerNode) crashIfUp() {
	if x.up {
		x.crash(x.w.between(50*time.Millisecond, 5*time.Second))
	}
}

// crashes schedules crashes with the given mean gap until the faults end.
func (w *world) crashes(mean time.Duration, do func()) {
	if mean == 0 {
		return
	}
	w.after(w.between(mean/4, 2*mean), func() {
		if !w.quiet() {
			do()
			w.crashes(mean, do)
		}
	})
}

// finished says whether the job's last decision says so and all workers that
// live know it: every wait has ended.
func (w *world) finished() bool {
	n := len(w.auth.decisions)
	if n == 0 {
		return false
	}
	switch d := w.auth.decisions[n-1]; d.Kind {
	case ledger.Halt:
		w.fail("the job halted: %s", d.Reason)
		return true
	case ledger.Finish:
		for _, x := range w.workers {
			if !x.up || x.session.Err() == nil {
				return false
			}
		}
		return true
	}
	return false
}

// blame says what everybody waits for.
func (w *world) blame() string {
	s := ""
	for _, x := range w.workers {
		if x.up {
			s += fmt.Sprintf("%s: %s [%s]; ", x.name(), x.session.Waiting(x.clock()), x.session.Debug())
		}
	}
	for _, sv := range w.servers {
		for k := range w.plan.Shards {
			if sh := sv.shards[k]; sh != nil {
				lo, hi := sh.Versions()
				s += fmt.Sprintf("shard %d at %d..%d (timeline %d); ", k, lo, hi, sh.Ledger().Timeline)
			}
		}
	}
	return s
}

// compare says how two final states differ, or "".
func compare(want, got map[string][]float32) string {
	var names []string
	for n := range want {
		names = append(names, n)
	}
	slices.Sort(names)
	if len(got) != len(want) {
		return fmt.Sprintf("%d sections, undisturbed run %d", len(got), len(want))
	}
	for _, n := range names {
		for i := range want[n] {
			if len(got[n]) != len(want[n]) || math.Float32bits(got[n][i]) != math.Float32bits(want[n][i]) {
				return fmt.Sprintf("%s[%d] differs from the undisturbed run", n, i)
			}
		}
	}
	return ""
}
