// Package comm carries messages between processes: over NATS ([DialNATS]) or
// inside one process ([Memory]). Delivery is at most once and in order per
// publisher; what must not be lost is repeated by the protocols above.
package comm

import (
	"context"
	"errors"
	"fmt"

	"tributary/comm/wire"
)

// Conn is one connection. All methods are safe for concurrent use.
type Conn interface {
	// Publish sends one message. h and tail are only read and may be reused when
	// it returns. While disconnected it fails with ErrDisconnected and nothing is
	// kept: a gradient of a dead step must not arrive later.
	Publish(subject string, h *wire.Header, tail []byte) error
	// Subscribe calls f for every message in order, on one goroutine per
	// subscription. f owns the message and must Release it. Frames that do not
	// decode are counted and dropped. Wildcards are those of NATS: * and >.
	Subscribe(subject string, f func(subject string, m *wire.Message)) (Subscription, error)
	// Flush waits until everything published has reached the broker.
	Flush(ctx context.Context) error
	Stats() Stats
	Connected() bool
	// Close waits until no handler runs any more.
	Close() error
}

// Subscription ends with Unsubscribe: no handler starts after it returned.
type Subscription interface{ Unsubscribe() error }

// Stats are a connection's running totals.
type Stats struct {
	MsgsIn, MsgsOut, BytesIn, BytesOut uint64
	Dropped                            uint64 // lost because a subscriber was too slow
	Malformed                          uint64
	Reconnects                         uint64
}

// Errors of connections.
var (
	ErrDisconnected = errors.New("not connected to the broker")
	ErrClosed       = errors.New("connection closed")
)

// ValidToken says why s cannot be the name of a job, worker or node: names
// become tokens of NATS subjects.
func ValidToken(s string) error {
	if s == "" || len(s) > wire.MaxTokenBytes {
		return fmt.Errorf("%q must have 1 to %d characters", s, wire.MaxTokenBytes)
	}
	for _, c := range s {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return fmt.Errorf("%q may hold only letters, digits, - and _", s)
		}
	}
	return nil
}

// The subjects of a job. The sender's name is a token, so that a broker can
// bind it to the sender's key.

// ShardSubject carries everything from a worker (or the coordinator) to the
// owner of a shard.
func ShardSubject(job string, shard int, from string) string {
	return fmt.Sprintf("tb.%s.shard.%d.%s", job, shard, from)
}

// ShardAll matches ShardSubject of all senders.
func ShardAll(job string, shard int) string { return fmt.Sprintf("tb.%s.shard.%d.*", job, shard) }

// PeerSubject carries partial sums between shards.
func PeerSubject(job string) string { return "tb." + job + ".peers" }

// WorkerSubject is a worker's inbox.
func WorkerSubject(job, worker string) string { return "tb." + job + ".worker." + worker }

// ParamsSubject carries parameters that are broadcast to all workers.
func ParamsSubject(job string) string { return "tb." + job + ".params" }

// CoordSubject carries everything to the job's coordinator.
func CoordSubject(job, from string) string { return "tb." + job + ".coord." + from }

// CoordAll matches CoordSubject of all senders.
func CoordAll(job string) string { return "tb." + job + ".coord.*" }

// NewsSubject carries decisions.
func NewsSubject(job string) string { return "tb." + job + ".news" }
