package faults

import (
	"fmt"
	"strings"

	"tributary/comm/wire"
)

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

func (w *world) mix(x uint64) { w.hash = (w.hash ^ x) * fnvPrime }

func (w *world) mixString(s string) {
	for i := range len(s) {
		w.mix(uint64(s[i]))
	}
}

// log adds a fact to the trace and to its hash. The line is formatted only when
// somebody reads it; the hash takes the facts themselves.
func (w *world) log(who, what string, facts ...uint64) {
	w.mix(uint64(w.now))
	w.mixString(who)
	w.mixString(what)
	for _, f := range facts {
		w.mix(f)
	}
	if w.trace != nil {
		w.printf("%s: %s %s", who, what, strings.Trim(fmt.Sprint(facts), "[]"))
	}
}

// logMessage does the same for a message that arrives.
func (w *world) logMessage(from, to string, m *wire.Message) {
	w.mix(uint64(w.now))
	w.mixString(from)
	w.mixString(to)
	for _, f := range [...]uint64{uint64(m.Kind), uint64(m.Shard), uint64(m.Rank), m.Step, uint64(m.Chunk), m.Timeline, m.View, uint64(m.Code), m.Seq, uint64(m.CRC)} {
		w.mix(f)
	}
	if w.trace != nil {
		w.printf("%s → %s: %s", from, to, describe(&m.Header))
	}
}

func (w *world) printf(format string, args ...any) {
	if w.trace != nil {
		fmt.Fprintf(w.trace, "%12s  %s\n", fmt.Sprintf("%.3fs", w.now.Seconds()), fmt.Sprintf(format, args...))
	}
}

// fail records the first broken promise; the schedule ends there.
func (w *world) fail(format string, args ...any) {
	if w.fault == "" {
		w.fault = fmt.Sprintf(format, args...)
		w.log("BROKEN", w.fault)
	}
}

var kindNames = [wire.NumKinds]string{
	wire.Push: "push", wire.Ack: "ack", wire.Pull: "pull", wire.Params: "params", wire.Waiting: "waiting", wire.Where: "where", wire.Here: "here",
	wire.Partial: "partial", wire.AskPartial: "ask partial", wire.Join: "join", wire.Welcome: "welcome", wire.Beat: "beat", wire.Leave: "leave",
	wire.News: "news", wire.AskNews: "ask news", wire.Report: "report", wire.Ready: "ready", wire.Staged: "staged", wire.Hold: "hold", wire.Held: "held",
	wire.Saved: "saved", wire.State: "state", wire.AskState: "ask state", wire.Metric: "metric", wire.Bad: "bad",
}

var levelNames = [...]string{wire.LevelStaged: "staged", wire.LevelApplied: "applied", wire.LevelReplicated: "replicated", wire.LevelDurable: "durable"}

// describe puts the fields that tell messages of a kind apart on one line.
func describe(h *wire.Header) string {
	var b strings.Builder
	b.WriteString(kindNames[h.Kind])
	add := func(format string, args ...any) { fmt.Fprintf(&b, " "+format, args...) }
	switch h.Kind {
	case wire.Push, wire.Ack:
		add("rank %d step %d chunk %d", h.Rank, h.Step, h.Chunk)
	case wire.Pull, wire.Params, wire.Waiting:
		add("chunk %d version %d", h.Chunk, int64(h.Step)) // −1: latest
	case wire.Where, wire.Here, wire.Staged, wire.State, wire.AskState:
		add("rank %d step %d", h.Rank, h.Step)
	case wire.Partial, wire.AskPartial:
		add("step %d pass %d", h.Step, h.Pass)
	case wire.Report:
		add("versions %d to %d", h.Lo, h.Hi)
	case wire.Hold, wire.Held, wire.Saved:
		add("step %d", int64(h.Step))
	case wire.News, wire.AskNews:
		add("%d", h.Seq)
	}
	switch {
	case h.Code != wire.OK:
		add("refused: %v", h.Code)
	case h.Kind == wire.Ack:
		add("%s", levelNames[h.Level])
	}
	add("(timeline %d, view %d", h.Timeline, h.View)
	if h.Epoch != 0 {
		b.WriteString(fmt.Sprintf(", epoch %d", h.Epoch))
	}
	if h.Incarnation != 0 {
		b.WriteString(fmt.Sprintf(", incarnation %d", h.Incarnation))
	}
	b.WriteString(")")
	return b.String()
}
