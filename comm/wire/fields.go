package wire

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"sync"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"

	"tributary/optim"
)

// The header's fields are written and read by hand with the library's
// primitives. Its reflection does the same from the tags of [Header], at four
// times the price of encoding and with 32 allocations, and it silently cuts
// numbers that are too large for their field; a test compares the two.

// encoder turns headers into msgpack. It is pooled and used by one goroutine
// at a time.
type encoder struct {
	buf bytes.Buffer
	enc *msgpack.Encoder
	n   int // fields written
}

var encoders = sync.Pool{New: func() any {
	e := &encoder{}
	e.enc = msgpack.NewEncoder(&e.buf)
	return e
}}

// encode returns a map's header, which counts the fields, and the fields. Both
// are valid until the next call. Zero fields do not travel, except Kind.
func (e *encoder) encode(h *Header) (count, fields []byte) {
	e.buf.Reset()
	e.n = 1
	e.must(e.enc.EncodeString("k"))
	e.must(e.enc.EncodeUint(uint64(h.Kind)))
	e.string("j", h.Job)
	e.uint("tl", h.Timeline)
	e.uint("vw", h.View)
	e.uint("sh", uint64(h.Shard))
	e.uint("ep", h.Epoch)
	e.uint("rk", uint64(h.Rank))
	e.string("wk", h.Worker)
	e.uint("in", h.Incarnation)
	e.uint("st", h.Step)
	e.uint("ph", uint64(h.Phase))
	e.uint("ps", uint64(h.Pass))
	e.uint("pv", h.Pulled)
	e.uint("ro", uint64(h.Role))
	e.uint("pt", uint64(h.Point))
	e.uint("c", uint64(h.Chunk))
	e.uint("cs", uint64(h.Chunks))
	e.uint("e", uint64(h.Encoding))
	e.uint("n", uint64(h.Count))
	e.float("x", h.Examples)
	e.float("l", h.Loss)
	e.uint("cr", uint64(h.CRC))
	e.uint("d", h.Digest)
	e.uint("lv", uint64(h.Level))
	e.uint("er", uint64(h.Code))
	e.string("tx", cut(h.Text))
	e.uint("cd", uint64(h.Credit))
	e.uint("rt", uint64(h.RetryMillis))
	e.uint("sq", h.Seq)
	e.uint("lo", h.Lo)
	e.uint("hi", h.Hi)
	e.uint("ns", h.Nanos)
	end := e.buf.Len()
	e.must(e.enc.EncodeMapLen(e.n))
	return e.buf.Bytes()[end:], e.buf.Bytes()[:end]
}

func (e *encoder) uint(key string, v uint64) {
	if v != 0 {
		e.n++
		e.must(e.enc.EncodeString(key))
		e.must(e.enc.EncodeUint(v))
	}
}

func (e *encoder) float(key string, v float64) {
	if v != 0 {
		e.n++
		e.must(e.enc.EncodeString(key))
		e.must(e.enc.EncodeFloat64(v))
	}
}

func (e *encoder) string(key, v string) {
	if v != "" {
		e.n++
		e.must(e.enc.EncodeString(key))
		e.must(e.enc.EncodeString(v))
	}
}

// must panics on an error that cannot be: all writes go to memory.
func (e *encoder) must(err error) {
	if err != nil {
		panic(err)
	}
}

// cut shortens a text to what may travel, between two characters: an error
// whose text is too long is better told in part than not at all.
func cut(s string) string {
	if len(s) <= MaxTextBytes {
		return s
	}
	n := MaxTextBytes
	for n > MaxTextBytes-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// decoder turns msgpack into headers. It is pooled and used by one goroutine at
// a time. The first error sticks.
type decoder struct {
	head []byte
	r    bytes.Reader
	dec  *msgpack.Decoder
	err  error
	// Names repeat from message to message, so the last ones are kept.
	job, worker string
}

var decoders = sync.Pool{New: func() any {
	d := &decoder{}
	d.dec = msgpack.NewDecoder(&d.r) // reads r directly, without a buffer of its own
	return d
}}

// decode reads a header that prescan has accepted.
func (d *decoder) decode(head []byte, h *Header) error {
	d.head, d.err = head, nil
	d.r.Reset(head)
	defer func() { d.head = nil; d.r.Reset(nil) }() // the frame is not ours to keep
	d.dec.ResetReader(&d.r)
	n, err := d.dec.DecodeMapLen()
	d.fail(err)
	for i := 0; i < n && d.err == nil; i++ {
		key := d.bytes()
		if d.field(key, h); d.err != nil {
			return fmt.Errorf("%w: header field %.16q: %v", ErrBadMessage, key, d.err)
		}
	}
	if d.err != nil {
		return fmt.Errorf("%w: header: %v", ErrBadMessage, d.err)
	}
	return nil
}

func (d *decoder) field(key []byte, h *Header) {
	switch string(key) {
	case "k":
		h.Kind = Kind(d.uint(math.MaxUint8))
	case "j":
		h.Job = d.name(&d.job)
	case "tl":
		h.Timeline = d.uint(math.MaxUint64)
	case "vw":
		h.View = d.uint(math.MaxUint64)
	case "sh":
		h.Shard = d.uint32()
	case "ep":
		h.Epoch = d.uint(math.MaxUint64)
	case "rk":
		h.Rank = d.uint32()
	case "wk":
		h.Worker = d.name(&d.worker)
	case "in":
		h.Incarnation = d.uint(math.MaxUint64)
	case "st":
		h.Step = d.uint(math.MaxUint64)
	case "ph":
		h.Phase = uint8(d.uint(math.MaxUint8))
	case "ps":
		h.Pass = uint8(d.uint(math.MaxUint8))
	case "pv":
		h.Pulled = d.uint(math.MaxUint64)
	case "ro":
		h.Role = optim.Role(d.uint(math.MaxUint8))
	case "pt":
		h.Point = optim.Point(d.uint(math.MaxUint8))
	case "c":
		h.Chunk = d.uint32()
	case "cs":
		h.Chunks = d.uint32()
	case "e":
		h.Encoding = Encoding(d.uint(math.MaxUint8))
	case "n":
		h.Count = d.uint32()
	case "x":
		h.Examples = d.float()
	case "l":
		h.Loss = d.float()
	case "cr":
		h.CRC = d.uint32()
	case "d":
		h.Digest = d.uint(math.MaxUint64)
	case "lv":
		h.Level = Level(d.uint(math.MaxUint8))
	case "er":
		h.Code = Code(d.uint(math.MaxUint8))
	case "tx":
		if b := d.bytes(); len(b) > MaxTextBytes {
			d.fail(fmt.Errorf("text of %d bytes", len(b)))
		} else {
			h.Text = string(b)
		}
	case "cd":
		h.Credit = d.uint32()
	case "rt":
		h.RetryMillis = d.uint32()
	case "sq":
		h.Seq = d.uint(math.MaxUint64)
	case "lo":
		h.Lo = d.uint(math.MaxUint64)
	case "hi":
		h.Hi = d.uint(math.MaxUint64)
	case "ns":
		h.Nanos = d.uint(math.MaxUint64)
	default:
		d.fail(d.dec.Skip())
	}
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// uint reads a number from 0 to limit. The library takes −1 for 2⁶⁴−1; some
// encoders write small positive numbers as signed, so the sign must be looked
// at.
func (d *decoder) uint(limit uint64) uint64 {
	if d.r.Len() == 0 {
		d.fail(io.ErrUnexpectedEOF)
		return 0
	}
	var (
		v    uint64
		err  error
		code = d.head[len(d.head)-d.r.Len()]
	)
	if code >= 0xd0 && code <= 0xd3 || code >= 0xe0 {
		var i int64
		if i, err = d.dec.DecodeInt64(); i < 0 {
			d.fail(fmt.Errorf("%d is negative", i))
		}
		v = uint64(i)
	} else {
		v, err = d.dec.DecodeUint64()
	}
	d.fail(err)
	if v > limit {
		d.fail(fmt.Errorf("%d is above %d", v, limit))
	}
	return v
}

func (d *decoder) uint32() uint32 { return uint32(d.uint(math.MaxUint32)) }

func (d *decoder) float() float64 {
	v, err := d.dec.DecodeFloat64()
	d.fail(err)
	return v
}

// bytes views a string in the header.
func (d *decoder) bytes() []byte {
	n, err := d.dec.DecodeBytesLen()
	d.fail(err)
	at := len(d.head) - d.r.Len()
	if n <= 0 || err != nil || n > len(d.head)-at {
		return nil // prescan has seen to the length; nil travels as −1
	}
	if _, err := d.r.Seek(int64(n), io.SeekCurrent); err != nil {
		d.fail(err)
		return nil
	}
	return d.head[at : at+n]
}

// name reads a short string, without allocating when it is *last.
func (d *decoder) name(last *string) string {
	b := d.bytes()
	if string(b) == *last {
		return *last
	}
	s := string(b)
	if len(s) <= MaxTokenBytes {
		*last = s
	}
	return s
}
