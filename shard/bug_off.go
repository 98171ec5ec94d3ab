//go:build !bug_count && !bug_ack && !bug_timeline

package shard

// The planted faults of the fault simulation (sim, TestPlanted): each is one
// constant, off unless its build tag is set.
const (
	countMessages     = false // close on a number of messages instead of a set of ranks
	ackBeforeApply    = false // acknowledge as applied before applying
	acceptOldTimeline = false // accept messages of an older timeline
)
