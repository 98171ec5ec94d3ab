//go:build bug_ack

package shard

const (
	countMessages     = false
	ackBeforeApply    = true
	acceptOldTimeline = false
)
