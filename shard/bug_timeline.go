//go:build bug_timeline

package shard

const (
	countMessages     = false
	ackBeforeApply    = false
	acceptOldTimeline = true
)
