// Package checkpoint turns snapshots into bytes and files and back. A snapshot
// is a list of named sections keyed by global parameter ranges, never by
// shard, each with its own CRC-32C that is checked at every read. Files appear
// under their name only when they are complete and synced.
package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"tributary/layout"
)

// ErrCorrupt is wrapped by every error about damaged or truncated bytes.
var ErrCorrupt = errors.New("damaged snapshot")

const (
	magic       = "TRIBSNP1"
	kindF32     = 1
	kindF64     = 2
	kindRaw     = 3
	maxName     = 1 << 10
	maxSections = 1 << 20
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// Encode writes sections: magic, their number, then for each its kind, range,
// name, length and numbers (little-endian), closed by a CRC-32C of all that.
func Encode(sections []layout.Section) []byte {
	size := len(magic) + 4
	for i := range sections {
		size += 1 + 8 + 8 + 2 + len(sections[i].Name) + 8 + payloadLen(&sections[i]) + 4
	}
	b := make([]byte, 0, size)
	b = append(b, magic...)
	b = le.AppendUint32(b, uint32(len(sections)))
	for i := range sections {
		b = appendSection(b, &sections[i])
	}
	return b
}

func payloadLen(s *layout.Section) int { return 4*len(s.F32) + 8*len(s.F64) + len(s.Raw) }

func appendSection(b []byte, s *layout.Section) []byte {
	start := len(b)
	kind := byte(kindRaw)
	switch {
	case s.F32 != nil:
		kind = kindF32
	case s.F64 != nil:
		kind = kindF64
	}
	b = append(b, kind)
	b = le.AppendUint64(b, uint64(s.Lo))
	b = le.AppendUint64(b, uint64(s.Hi))
	b = le.AppendUint16(b, uint16(len(s.Name)))
	b = append(b, s.Name...)
	b = le.AppendUint64(b, uint64(payloadLen(s)))
	for _, x := range s.F32 {
		b = le.AppendUint32(b, math.Float32bits(x))
	}
	for _, x := range s.F64 {
		b = le.AppendUint64(b, math.Float64bits(x))
	}
	b = append(b, s.Raw...)
	return le.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// Decode reads what Encode wrote. It never panics and allocates no more than a
// small multiple of len(b).
func Decode(b []byte) ([]layout.Section, error) {
	if len(b) < len(magic)+4 || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it does not begin as a snapshot (%d bytes)", ErrCorrupt, len(b))
	}
	n := int(le.Uint32(b[len(magic):]))
	b = b[len(magic)+4:]
	if n > maxSections || n > len(b) {
		return nil, fmt.Errorf("%w: %d sections in %d bytes", ErrCorrupt, n, len(b))
	}
	var out []layout.Section
	for i := range n {
		s, rest, err := decodeSection(b)
		if err != nil {
			return nil, fmt.Errorf("section %d of %d: %w", i+1, n, err)
		}
		out = append(out, s)
		b = rest
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last section", ErrCorrupt, len(b))
	}
	return out, nil
}

func decodeSection(b []byte) (s layout.Section, rest []byte, err error) {
	const fixed = 1 + 8 + 8 + 2
	if len(b) < fixed {
		return s, nil, fmt.Errorf("%w: truncated", ErrCorrupt)
	}
	name := int(le.Uint16(b[17:]))
	if name > maxName || len(b) < fixed+name+8 {
		return s, nil, fmt.Errorf("%w: truncated", ErrCorrupt)
	}
	size := le.Uint64(b[fixed+name:])
	head := fixed + name + 8
	if size > uint64(len(b)-head) || uint64(len(b)-head)-size < 4 {
		return s, nil, fmt.Errorf("%w: truncated", ErrCorrupt)
	}
	end := head + int(size)
	if crc32.Checksum(b[:end], castagnoli) != le.Uint32(b[end:]) {
		return s, nil, fmt.Errorf("%w: checksum of %q is wrong", ErrCorrupt, b[fixed:fixed+name])
	}
	s.Name = string(b[fixed : fixed+name])
	lo, hi := le.Uint64(b[1:]), le.Uint64(b[9:])
	if lo > hi || hi > math.MaxInt64 {
		return s, nil, fmt.Errorf("%w: range of %q", ErrCorrupt, s.Name)
	}
	s.Lo, s.Hi = int(lo), int(hi)
	data := b[head:end]
	switch {
	case b[0] == kindF32 && size%4 == 0:
		s.F32 = make([]float32, size/4)
		for i := range s.F32 {
			s.F32[i] = math.Float32frombits(le.Uint32(data[4*i:]))
		}
	case b[0] == kindF64 && size%8 == 0:
		s.F64 = make([]float64, size/8)
		for i := range s.F64 {
			s.F64[i] = math.Float64frombits(le.Uint64(data[8*i:]))
		}
	case b[0] == kindRaw:
		s.Raw = append([]byte{}, data...)
	default:
		return s, nil, fmt.Errorf("%w: kind %d with %d bytes", ErrCorrupt, b[0], size)
	}
	return s, b[end+4:], nil
}
