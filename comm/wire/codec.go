package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/vmihailenco/msgpack/v5"
)

// The envelope: magic(2) version(1) flags(1) headerLen(u32 LE), the msgpack
// header, zeros up to a multiple of eight, the raw tail.
const (
	magic0, magic1 = 'T', 'b'
	version        = 1
	prefixLen      = 8

	MaxHeaderBytes = 64 << 10
	MaxTokenBytes  = 64      // job and worker names
	MaxTextBytes   = 4 << 10 // text of an error
)

type encoder struct {
	buf bytes.Buffer
	enc *msgpack.Encoder
}

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.enc = msgpack.NewEncoder(&e.buf)
	e.enc.UseCompactInts(true)
	e.enc.UseCompactFloats(false)
	return e
}}

// AppendHeader appends everything of a frame that comes before its tail.
func AppendHeader(dst []byte, h *Header) []byte {
	e := encoders.Get().(*encoder)
	e.buf.Reset()
	if err := e.enc.Encode(h); err != nil {
		panic(err) // a struct of numbers and strings always encodes
	}
	n := e.buf.Len()
	dst = append(dst, magic0, magic1, version, 0)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	dst = append(dst, e.buf.Bytes()...)
	encoders.Put(e)
	for range padding(n) {
		dst = append(dst, 0)
	}
	return dst
}

func padding(headerLen int) int { return -headerLen & 7 }

// Append appends a whole frame. h and tail are only read.
func Append(dst []byte, h *Header, tail []byte) []byte {
	return append(AppendHeader(dst, h), tail...)
}

// Decode reads one frame. The message's Tail views frame in place; release,
// which may be nil, is called when the message is released. Errors wrap
// [ErrBadMessage] or [ErrNotFinite]; nothing is allocated that the frame does
// not pay for.
func Decode(frame []byte, release func()) (*Message, error) {
	if len(frame) < prefixLen || frame[0] != magic0 || frame[1] != magic1 {
		return nil, fmt.Errorf("%w: no frame of this protocol", ErrBadMessage)
	}
	if frame[2] != version {
		return nil, fmt.Errorf("%w: protocol version %d, this process speaks %d", ErrBadMessage, frame[2], version)
	}
	n := binary.LittleEndian.Uint32(frame[4:])
	if frame[3] != 0 || n > MaxHeaderBytes || int(n)+padding(int(n)) > len(frame)-prefixLen {
		return nil, fmt.Errorf("%w: header of %d bytes in a frame of %d", ErrBadMessage, n, len(frame))
	}
	head := frame[prefixLen : prefixLen+int(n)]
	if err := prescan(head); err != nil {
		return nil, err
	}
	m := &Message{release: release, Tail: frame[prefixLen+int(n)+padding(int(n)):]}
	if err := decodeHeader(head, &m.Header); err != nil {
		return nil, err
	}
	if err := m.Header.check(); err != nil {
		return nil, err
	}
	return m, nil
}

type decoder struct {
	r   bytes.Reader
	dec *msgpack.Decoder
}

var decoders = sync.Pool{New: func() any {
	d := &decoder{}
	d.dec = msgpack.NewDecoder(&d.r)
	return d
}}

func decodeHeader(head []byte, h *Header) error {
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	d.r.Reset(head)
	d.dec.Reset(&d.r)
	if err := d.dec.Decode(h); err != nil {
		return fmt.Errorf("%w: header: %v", ErrBadMessage, err)
	}
	if d.r.Len() != 0 {
		return fmt.Errorf("%w: %d bytes after the header", ErrBadMessage, d.r.Len())
	}
	return nil
}

// check enforces the limits on decoded fields.
func (h *Header) check() error {
	switch {
	case h.Kind == 0 || h.Kind >= NumKinds:
		return fmt.Errorf("%w: kind %d", ErrBadMessage, h.Kind)
	case !validToken(h.Job) || h.Worker != "" && !validToken(h.Worker):
		return fmt.Errorf("%w: job or worker name", ErrBadMessage)
	case len(h.Text) > MaxTextBytes:
		return fmt.Errorf("%w: text of %d bytes", ErrBadMessage, len(h.Text))
	case !finite(h.Loss) || !finite(h.Examples):
		return fmt.Errorf("%w: loss or examples", ErrNotFinite)
	case h.Examples < 0:
		return fmt.Errorf("%w: negative examples", ErrBadMessage)
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

// prescan walks a msgpack header before the library sees it. msgpack/v5 5.4.1
// allocates whatever a length prefix claims; here every length must fit the
// input, and the header must be one map from strings to plain scalars and
// strings, which is all that a Header ever is.
func prescan(b []byte) error {
	errShape := func(what string) error { return fmt.Errorf("%w: header: %s", ErrBadMessage, what) }
	if len(b) == 0 {
		return errShape("empty")
	}
	n, b, ok := mapLen(b)
	if !ok {
		return errShape("not a map")
	}
	if n > len(b)/2 {
		return errShape("more fields than bytes")
	}
	for range n {
		var err error
		if b, err = skipString(b); err != nil {
			return errShape(err.Error())
		}
		if b, err = skipScalar(b); err != nil {
			return errShape(err.Error())
		}
	}
	if len(b) != 0 {
		return errShape("bytes after the last field")
	}
	return nil
}

var (
	errTruncated = errors.New("truncated")
	errType      = errors.New("a field is neither number, string nor boolean")
)

func mapLen(b []byte) (n int, rest []byte, ok bool) {
	switch {
	case b[0]&0xf0 == 0x80:
		return int(b[0] & 0x0f), b[1:], true
	case b[0] == 0xde && len(b) >= 3:
		return int(binary.BigEndian.Uint16(b[1:])), b[3:], true
	}
	return 0, nil, false
}

func skipString(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errTruncated
	}
	n, at := 0, 1
	switch c := b[0]; {
	case c&0xe0 == 0xa0:
		n = int(c & 0x1f)
	case c == 0xd9 && len(b) >= 2:
		n, at = int(b[1]), 2
	case c == 0xda && len(b) >= 3:
		n, at = int(binary.BigEndian.Uint16(b[1:])), 3
	default:
		return nil, errType
	}
	if len(b)-at < n {
		return nil, errTruncated
	}
	return b[at+n:], nil
}

func skipScalar(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errTruncated
	}
	n := 0
	switch c := b[0]; {
	case c < 0x80 || c >= 0xe0 || c == 0xc0 || c == 0xc2 || c == 0xc3:
		n = 1
	case c == 0xcc || c == 0xd0:
		n = 2
	case c == 0xcd || c == 0xd1:
		n = 3
	case c == 0xce || c == 0xd2 || c == 0xca:
		n = 5
	case c == 0xcf || c == 0xd3 || c == 0xcb:
		n = 9
	default:
		return skipString(b)
	}
	if len(b) < n {
		return nil, errTruncated
	}
	return b[n:], nil
}
