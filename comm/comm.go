// Package comm carries messages between processes: over NATS ([DialNATS]) or
// inside one process ([Memory]). Delivery is at most once and in order per
// publisher; what must not be lost is repeated by the protocols above. Package
// commtest says what every implementation of [Conn] must do.
package comm

import (
	"context"
	"errors"
	"fmt"

	"tributary/comm/wire"
)

// MaxMessageBytes bounds a message with its header. A broker's max_payload must
// not be smaller.
const MaxMessageBytes = 8 << 20

// Conn is one connection. All methods are safe for concurrent use.
type Conn interface {
	// Publish sends one message. h and tail are only read and may be reused when
	// it returns. While disconnected it fails with ErrDisconnected and nothing is
	// kept: a gradient of a dead step must not arrive later. It fails with
	// wire.ErrTooLarge above MaxMessageBytes and with what h.Check says, because
	// no receiver would take such a message and its sender would never hear.
	Publish(subject string, h *wire.Header, tail []byte) error
	// Subscribe calls f for every message in order, on one goroutine per
	// subscription. f owns the message and must Release it, now or later; it only
	// reads Tail, which other subscriptions may share. Frames that do not decode
	// are counted and dropped, and so is what arrives while too much is queued.
	// Wildcards are those of NATS: * and >. A Flush makes sure that the broker
	// knows of the subscription.
	Subscribe(subject string, f func(subject string, m *wire.Message)) (Subscription, error)
	// Flush waits until everything published has reached the broker, at most 10 s
	// if ctx has no deadline.
	Flush(ctx context.Context) error
	Stats() Stats
	Connected() bool
	// Close stops subscriptions, lets handlers finish what has arrived, sends what
	// was published, and closes. When it returns nil no handler runs any more; it
	// gives up with an error after 10 s. It must not be called from a handler.
	Close() error
}

// Subscription ends with Unsubscribe: no handler starts after it returned, and
// what is queued is dropped. It does not wait for a handler that is running, so
// a handler may call it; Conn.Close waits.
type Subscription interface{ Unsubscribe() error }

// Stats are a connection's running totals. Bytes are those of whole frames.
type Stats struct {
	MsgsIn, MsgsOut, BytesIn, BytesOut uint64
	Dropped                            uint64 // messages lost because a subscriber was too slow
	Malformed                          uint64 // frames that did not decode
	Reconnects                         uint64
}

// Errors of connections.
var (
	// ErrDisconnected: the broker is away and the connection is being restored.
	// What was to be sent is lost; sending again later may succeed.
	ErrDisconnected = errors.New("not connected to the broker")
	// ErrClosed: the connection was closed for good.
	ErrClosed = errors.New("connection closed")
)

// checkSize refuses frames that brokers would not carry.
func checkSize(subject string, n int) error {
	if n > MaxMessageBytes {
		return fmt.Errorf("publish %s: %w: %d bytes, at most %d", subject, wire.ErrTooLarge, n, MaxMessageBytes)
	}
	return nil
}
