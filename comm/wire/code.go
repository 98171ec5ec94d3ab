package wire

import "fmt"

// Code is a frozen error number that travels in answers; zero is success. Each
// code is also an error, so that errors.Is(err, wire.ErrStaleEpoch) works on
// the far side.
type Code uint8

// The codes. Never renumber them. Retry says whether the same message may
// succeed later without anything else being done first.
const (
	OK               Code = iota
	ErrStaleEpoch         // the shard has a newer owner
	ErrStaleView          // a newer view exists and gives the rank to somebody else
	ErrStaleInc           // a newer incarnation of the worker exists
	ErrStaleTimeline      // the job was rolled back, restored or forked
	ErrNotOwner           // this node does not own the shard
	ErrNotInView          // the worker holds no such rank
	ErrNameInUse          // a live process already has this worker name
	ErrForbidden          // not allowed for this sender
	ErrUnknownJob         // no such job here
	ErrBadShape           // wrong chunk, count, rank, role or phase
	ErrTooLarge           // exceeds a stated limit
	ErrNotFinite          // NaN or Inf
	ErrBusy               // try again after RetryMillis
	ErrLate               // the step has been closed without this contribution
	ErrGone               // that version is no longer held; Lo and Hi say what is
	ErrReadOnly           // the job has ended or is halted
	ErrRoundClosed        // the round no longer takes contributions
	ErrBadCRC             // the tail was damaged on the way
	ErrBadEncoding        // unknown or undecodable encoding
	ErrBadMessage         // not a message of this protocol
	ErrAhead              // the receiver has not yet learnt what the sender refers to
	ErrHalted             // the job stopped because of an error; Text says which
	ErrDuplicate          // already part of the model, and acknowledged once more
	numCodes
)

var codeText = [numCodes]string{
	"ok", "stale epoch", "stale view", "stale incarnation", "stale timeline", "not owner", "not in view",
	"name in use", "forbidden", "unknown job", "bad shape", "too large", "not finite", "busy", "late", "gone",
	"read only", "round closed", "bad checksum", "bad encoding", "bad message", "receiver is behind", "job halted", "duplicate",
}

// Error is the code's text.
func (c Code) Error() string {
	if c < numCodes {
		return codeText[c]
	}
	return fmt.Sprintf("error code %d", uint8(c))
}

// Retry says whether sending the same message again may succeed by itself.
func (c Code) Retry() bool {
	return c == ErrBusy || c == ErrBadCRC || c == ErrAhead
}
