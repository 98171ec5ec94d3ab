package wire

import (
	"encoding/binary"
	"fmt"
)

// What prescan answers. They are made once, so that refusing a hostile header
// costs no memory at all.
var (
	errEmpty     = fmt.Errorf("%w: header is empty", ErrBadMessage)
	errNoMap     = fmt.Errorf("%w: header is not a map of at most 65535 fields", ErrBadMessage)
	errFields    = fmt.Errorf("%w: header declares more fields than it has bytes for", ErrBadMessage)
	errTruncated = fmt.Errorf("%w: header ends inside a field", ErrBadMessage)
	errKey       = fmt.Errorf("%w: a header field's name is not a string", ErrBadMessage)
	errValue     = fmt.Errorf("%w: a header field is neither number, string nor boolean", ErrBadMessage)
	errTrailing  = fmt.Errorf("%w: bytes after the header's last field", ErrBadMessage)
)

// prescan walks a msgpack header before the library sees it. msgpack/v5 5.4.1
// allocates whatever a length prefix claims; here every length must fit the
// input, and the header must be one flat map from strings to scalars and
// strings, which is all that a Header ever is. Nothing nests, so there is no
// depth to bound. Unknown fields pass: newer peers may send more.
func prescan(b []byte) error {
	if len(b) == 0 {
		return errEmpty
	}
	n, b, ok := mapLen(b)
	if !ok {
		return errNoMap
	}
	if n > len(b)/2 {
		return errFields
	}
	for range n {
		size, ok := stringSize(b)
		if !ok {
			return errKey
		}
		if size > len(b) {
			return errTruncated
		}
		b = b[size:]
		if size, ok = valueSize(b); !ok {
			return errValue
		}
		if size > len(b) {
			return errTruncated
		}
		b = b[size:]
	}
	if len(b) != 0 {
		return errTrailing
	}
	return nil
}

// mapLen reads a map's header. Maps of more than 65535 fields are refused.
func mapLen(b []byte) (n int, rest []byte, ok bool) {
	switch {
	case b[0]&0xf0 == 0x80:
		return int(b[0] & 0x0f), b[1:], true
	case b[0] == 0xde && len(b) >= 3:
		return int(binary.BigEndian.Uint16(b[1:])), b[3:], true
	}
	return 0, nil, false
}

// truncated is a size that fits no input.
const truncated = 1 << 30

// stringSize is how many bytes the string at the front of b says it has, its
// length prefix included. ok is false when there is no string of at most
// 65535 bytes.
func stringSize(b []byte) (size int, ok bool) {
	if len(b) == 0 {
		return truncated, true
	}
	switch c := b[0]; {
	case c&0xe0 == 0xa0:
		return 1 + int(c&0x1f), true
	case c == 0xd9:
		if len(b) < 2 {
			return truncated, true
		}
		return 2 + int(b[1]), true
	case c == 0xda:
		if len(b) < 3 {
			return truncated, true
		}
		return 3 + int(binary.BigEndian.Uint16(b[1:])), true
	}
	return 0, false
}

// valueSize is stringSize for any value that a header may hold.
func valueSize(b []byte) (size int, ok bool) {
	if len(b) == 0 {
		return truncated, true
	}
	switch c := b[0]; {
	case c < 0x80 || c >= 0xe0 || c == 0xc0 || c == 0xc2 || c == 0xc3: // small numbers, nil, booleans
		return 1, true
	case c == 0xcc || c == 0xd0:
		return 2, true
	case c == 0xcd || c == 0xd1:
		return 3, true
	case c == 0xce || c == 0xd2 || c == 0xca:
		return 5, true
	case c == 0xcf || c == 0xd3 || c == 0xcb:
		return 9, true
	}
	return stringSize(b)
}
