// Package wire is the message format: one small msgpack header and a raw tail
// of little-endian numbers that is viewed in place. It performs no I/O, so the
// pure state machines may use it. Every field and code is described in
// docs/protocol.md.
package wire

import "tributary/optim"

// Kind says what a message is for. Numbers are frozen.
type Kind uint8

// The kinds of message. In brackets: who sends it to whom.
const (
	_          Kind = iota
	Push            // [worker → shard] one chunk of a contribution
	Ack             // [shard → worker] a push was accepted (Level, Credit) or refused (Code)
	Pull            // [worker → shard] asks for chunk Chunk at version Step
	Params          // [shard → worker(s)] chunk Chunk at version Step
	Waiting         // [shard → worker] chunk is not there yet; tail is a bitmap of missing ranks
	Where           // [worker → shard] asks which step of Rank the shard still needs
	Here            // [shard → worker] answers Where: Step is the first step lacking chunks of Rank
	Partial         // [shard → shards] partial values of one pass; tail is float64
	AskPartial      // [shard → shard] asks for a Partial that did not arrive
	Join            // [worker → coordinator] wants ranks; Seq is the process's nonce
	Welcome         // [coordinator → worker] allots Incarnation; tail is the job's spec as JSON
	Beat            // [worker → coordinator] is alive
	Leave           // [worker → coordinator] goes away on purpose
	News            // [coordinator → all] decision number Seq; tail is JSON
	AskNews         // [all → coordinator] wants decisions from Seq on
	Report          // [shard → coordinator] progress; tail is float64 losses
	Ready           // [shard → coordinator] is empty and may take part in a new timeline
	Staged          // [shard → coordinator] holds the whole contribution (Rank, Step)
	Hold            // [coordinator → shard] promise not to close steps ≥ Step
	Held            // [shard → coordinator] answers Hold; Lo is the first step it can promise
	Saved           // [shard → coordinator] its part of the cut at Step is on disk
	State           // [worker → shard] opaque state of Rank at Step
	AskState        // [shard → worker] wants the state of Rank at Step
	Metric          // [worker → coordinator] named scalars of a step
	Bad             // [worker → coordinator] its contribution of Rank at Step is not finite; Text says where
	NumKinds
)

// Encoding is how the tail of a tensor message is encoded. Numbers are frozen.
type Encoding uint8

// The encodings.
const (
	F32  Encoding = iota
	Rows          // runs of parameters and their float32 numbers: a row-sparse contribution
	Null          // no tail: an explicit contribution of weight zero
	BF16          // bfloat16: the upper half of float32, rounded to nearest
)

// Level is how safe an acknowledged contribution is (C5). Numbers are frozen.
type Level uint8

// The levels, weakest first. LevelStaged returns credit but promises nothing.
const (
	LevelStaged Level = iota
	LevelApplied
	LevelReplicated
	LevelDurable
)

// Header is everything about a message but its numbers. Fields that a kind
// does not use are zero and do not travel.
type Header struct {
	Kind        Kind        `msgpack:"k"`
	Job         string      `msgpack:"j,omitempty"`
	Timeline    uint64      `msgpack:"tl,omitempty"`
	View        uint64      `msgpack:"vw,omitempty"`
	Shard       uint32      `msgpack:"sh,omitempty"`
	Epoch       uint64      `msgpack:"ep,omitempty"`
	Rank        uint32      `msgpack:"rk,omitempty"`
	Worker      string      `msgpack:"wk,omitempty"`
	Incarnation uint64      `msgpack:"in,omitempty"`
	Step        uint64      `msgpack:"st,omitempty"` // step, round, or version of parameters
	Phase       uint8       `msgpack:"ph,omitempty"`
	Pass        uint8       `msgpack:"ps,omitempty"`
	Pulled      uint64      `msgpack:"pv,omitempty"` // version the contribution was computed on
	Role        optim.Role  `msgpack:"ro,omitempty"`
	Point       optim.Point `msgpack:"pt,omitempty"`
	Chunk       uint32      `msgpack:"c,omitempty"`
	Chunks      uint32      `msgpack:"cs,omitempty"`
	Encoding    Encoding    `msgpack:"e,omitempty"`
	Count       uint32      `msgpack:"n,omitempty"` // numbers in the tail after decoding
	Examples    float64     `msgpack:"x,omitempty"` // weight of the contribution
	Loss        float64     `msgpack:"l,omitempty"`
	CRC         uint32      `msgpack:"cr,omitempty"` // CRC-32C of the tail
	Digest      uint64      `msgpack:"d,omitempty"`  // of the whole contribution
	Level       Level       `msgpack:"lv,omitempty"`
	Code        Code        `msgpack:"er,omitempty"`
	Text        string      `msgpack:"tx,omitempty"`
	Credit      uint32      `msgpack:"cd,omitempty"` // chunks the sender may have in flight
	RetryMillis uint32      `msgpack:"rt,omitempty"`
	Seq         uint64      `msgpack:"sq,omitempty"`
	Lo          uint64      `msgpack:"lo,omitempty"` // lowest and highest version held, or as the kind says
	Hi          uint64      `msgpack:"hi,omitempty"`
	Nanos       uint64      `msgpack:"ns,omitempty"` // time the sender spent on the work
}

// Message is a header and a raw view of its tail. The receiver of a Message
// owns it until it calls Release; after that Tail must not be touched.
type Message struct {
	Header
	Tail    []byte
	release func()
}

// NewMessage returns a message whose Release calls release, which may be nil.
func NewMessage(h Header, tail []byte, release func()) *Message {
	return &Message{Header: h, Tail: tail, release: release}
}

// Release gives the tail's memory back. It is safe to call more than once.
func (m *Message) Release() {
	if r := m.release; r != nil {
		m.release = nil
		r()
	}
	m.Tail = nil
}
