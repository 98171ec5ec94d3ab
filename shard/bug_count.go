//go:build bug_count

package shard

const (
	countMessages     = true
	ackBeforeApply    = false
	acceptOldTimeline = false
)
