package wire

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// The envelope: magic(2) version(1) flags(1) headerLen(u32 LE), the msgpack
// header, zeros up to a multiple of eight, the raw tail.
const (
	magic0, magic1 = 'T', 'b'
	version        = 1
	prefixLen      = 8

	MaxHeaderBytes = 64 << 10
	MaxTokenBytes  = 64      // job and worker names
	MaxTextBytes   = 4 << 10 // text of an error; longer ones are cut when sent
)

// AppendHeader appends everything of a frame that comes before its tail, so
// that a frame can be written without copying the tail. The tail then starts at
// a multiple of eight bytes from the frame's start. h is only read; the only
// allocation is dst's growth.
func AppendHeader(dst []byte, h *Header) []byte { return appendFrame(dst, h, nil) }

// Append appends a whole frame. h and tail are only read, and dst grows at most
// once.
func Append(dst []byte, h *Header, tail []byte) []byte { return appendFrame(dst, h, tail) }

func appendFrame(dst []byte, h *Header, tail []byte) []byte {
	e := encoders.Get().(*encoder)
	count, fields := e.encode(h)
	n := len(count) + len(fields)
	dst = slices.Grow(dst, prefixLen+n+padding(n)+len(tail))
	dst = append(dst, magic0, magic1, version, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	dst = append(append(dst, count...), fields...)
	encoders.Put(e)
	var zeros [8]byte
	dst = append(dst, zeros[:padding(n)]...)
	return append(dst, tail...)
}

// Size is the length of the frame that Append makes of h and tail.
func Size(h *Header, tail []byte) int {
	e := encoders.Get().(*encoder)
	defer encoders.Put(e)
	count, fields := e.encode(h)
	n := len(count) + len(fields)
	return prefixLen + n + padding(n) + len(tail)
}

func padding(headerLen int) int { return -headerLen & 7 }

// Of these there is nothing more to say to a stranger who sends rubbish.
var (
	errNoFrame = fmt.Errorf("%w: not a frame of this protocol", ErrBadMessage)
	errPadding = fmt.Errorf("%w: padding is not zero", ErrBadMessage)
)

// Decode reads one frame. The message's Tail views frame in place, so frame
// must stay as it is until release is called; release, which may be nil, is
// called when the message is released, and not at all when Decode fails.
// Errors wrap [ErrBadMessage], or [ErrNotFinite] for a NaN or Inf in Loss or
// Examples. The frame may come from anybody: nothing is allocated that it does
// not pay for.
func Decode(frame []byte, release func()) (*Message, error) {
	head, tail, err := split(frame)
	if err != nil {
		return nil, err
	}
	if err := prescan(head); err != nil {
		return nil, err
	}
	m := &Message{Tail: tail, release: release}
	d := decoders.Get().(*decoder)
	err = d.decode(head, &m.Header)
	decoders.Put(d)
	if err != nil {
		return nil, err
	}
	if err := m.Header.Check(); err != nil {
		return nil, err
	}
	return m, nil
}

// split checks the envelope and returns what it holds.
func split(frame []byte) (head, tail []byte, err error) {
	if len(frame) < prefixLen || frame[0] != magic0 || frame[1] != magic1 {
		return nil, nil, errNoFrame
	}
	if frame[2] != version || frame[3] != 0 {
		return nil, nil, fmt.Errorf("%w: protocol version %d with flags %#x; this process speaks version %d without flags", ErrBadMessage, frame[2], frame[3], version)
	}
	n := binary.LittleEndian.Uint32(frame[4:])
	if n > MaxHeaderBytes || int(n)+padding(int(n)) > len(frame)-prefixLen {
		return nil, nil, fmt.Errorf("%w: header of %d bytes in a frame of %d", ErrBadMessage, n, len(frame))
	}
	end := prefixLen + int(n)
	for _, b := range frame[end : end+padding(int(n))] {
		if b != 0 {
			return nil, nil, errPadding
		}
	}
	return frame[prefixLen:end], frame[end+padding(int(n)):], nil
}

// Check says why no receiver would accept h. Senders ask before they send: a
// loss that is not a number would otherwise be dropped on the far side, where
// its sender cannot hear of it.
func (h *Header) Check() error {
	switch {
	case h.Kind == 0 || h.Kind >= NumKinds:
		return fmt.Errorf("%w: unknown kind %d", ErrBadMessage, h.Kind)
	case !validToken(h.Job):
		return fmt.Errorf("%w: invalid job name", ErrBadMessage)
	case h.Worker != "" && !validToken(h.Worker):
		return fmt.Errorf("%w: invalid worker name", ErrBadMessage)
	case !finite(h.Loss):
		return fmt.Errorf("%w: loss %v", ErrNotFinite, h.Loss)
	case !finite(h.Examples):
		return fmt.Errorf("%w: examples %v", ErrNotFinite, h.Examples)
	case h.Examples < 0:
		return fmt.Errorf("%w: %v examples", ErrBadMessage, h.Examples)
	}
	return nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

func validToken(s string) bool {
	if s == "" || len(s) > MaxTokenBytes {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Err is nil for a message without an error code, else an error that matches
// the code with errors.Is and carries the sender's text.
func (h *Header) Err() error {
	switch {
	case h.Code == OK:
		return nil
	case h.Text == "":
		return h.Code
	}
	return fmt.Errorf("%w: %s", h.Code, h.Text)
}
