package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"
	"pgregory.net/rapid"
)

// anyHeader draws headers that a receiver accepts. It goes over the struct, so
// that a new field cannot be forgotten.
func anyHeader() *rapid.Generator[Header] {
	return rapid.Custom(func(t *rapid.T) Header {
		var h Header
		v := reflect.ValueOf(&h).Elem()
		for i := range v.NumField() {
			f, name := v.Field(i), v.Type().Field(i).Name
			if rapid.Bool().Draw(t, name+" is zero") {
				continue
			}
			switch f.Kind() {
			case reflect.String:
				f.SetString(rapid.StringN(0, 64, MaxTextBytes).Draw(t, name))
			case reflect.Float64:
				f.SetFloat(rapid.Float64Range(-1e300, 1e300).Draw(t, name))
			default:
				f.SetUint(rapid.Uint64Max(math.MaxUint64>>(64-f.Type().Bits())).Draw(t, name))
			}
		}
		h.Kind = Kind(rapid.IntRange(1, int(NumKinds)-1).Draw(t, "kind"))
		h.Job = rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(t, "job")
		h.Worker = rapid.StringMatching(`[A-Za-z0-9_-]{0,64}`).Draw(t, "worker")
		h.Examples = math.Abs(h.Examples) // also turns −0 into the 0 that arrives
		if h.Loss == 0 {
			h.Loss = 0
		}
		return h
	})
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := anyHeader().Draw(t, "header")
		tail := rapid.SliceOf(rapid.Byte()).Draw(t, "tail")
		before, tailBefore := h, bytes.Clone(tail)

		frame := Append([]byte("xyz"), &h, tail)
		if string(frame[:3]) != "xyz" {
			t.Fatal("Append changed what dst held")
		}
		frame = frame[3:]
		if got := Size(&h, tail); got != len(frame) {
			t.Fatalf("Size = %d, the frame has %d bytes", got, len(frame))
		}
		head := AppendHeader(nil, &h)
		if len(head)%8 != 0 || !bytes.Equal(append(head, tail...), frame) {
			t.Fatalf("AppendHeader and the tail are not the frame; the tail starts at %d", len(head))
		}
		m, err := Decode(frame, nil)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header != h || h != before {
			t.Fatalf("sent %+v\n got %+v", before, m.Header)
		}
		if !bytes.Equal(m.Tail, tailBefore) || !bytes.Equal(tail, tailBefore) {
			t.Fatal("the tail changed on the way")
		}
		if len(tail) > 0 && &m.Tail[0] != &frame[len(frame)-len(tail)] {
			t.Fatal("the tail was copied")
		}
	})
}

// TestTwin compares the fields written by hand with the library's reflection
// over the tags of Header.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := anyHeader().Draw(t, "header")
		var want bytes.Buffer
		enc := msgpack.NewEncoder(&want)
		enc.UseCompactInts(true)
		if err := enc.Encode(&h); err != nil {
			t.Fatal(err)
		}
		got := head(AppendHeader(nil, &h))
		if !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("by hand      %x\nby the library %x", got, want.Bytes())
		}
		var back Header
		if err := msgpack.Unmarshal(got, &back); err != nil || back != h {
			t.Fatalf("the library reads %+v, %v; want %+v", back, err, h)
		}
	})
}

// head is the msgpack part of a frame.
func head(frame []byte) []byte {
	return frame[prefixLen : prefixLen+binary.LittleEndian.Uint32(frame[4:])]
}

// frameOf wraps a header in an otherwise correct envelope.
func frameOf(header string) []byte {
	f := []byte{magic0, magic1, version, 0}
	f = binary.LittleEndian.AppendUint32(f, uint32(len(header)))
	f = append(f, header...)
	return append(f, make([]byte, padding(len(header)))...)
}

// Pieces of headers: {"k": 1, "j": "a", ...}.
const (
	start2 = "\x82\xa1k\x01\xa1j"
	start3 = "\x83\xa1k\x01\xa1j\xa1a"
)

func TestDecodeRefuses(t *testing.T) {
	good := string(frameOf("\x82\xa1k\x01\xa1j\xa1a"))
	if _, err := Decode([]byte(good), nil); err != nil {
		t.Fatalf("the frame that the cases below damage is refused itself: %v", err)
	}
	float := func(key string, x float64) string {
		return start3 + "\xa1" + key + "\xcb" + string(binary.BigEndian.AppendUint64(nil, math.Float64bits(x)))
	}
	long := strings.Repeat("n", MaxTokenBytes+1)
	for _, c := range []struct {
		name, frame string
		want        Code
	}{
		{"nothing", "", ErrBadMessage},
		{"shorter than a prefix", good[:7], ErrBadMessage},
		{"wrong magic", "x" + good[1:], ErrBadMessage},
		{"another version", good[:2] + "\x02" + good[3:], ErrBadMessage},
		{"flags", good[:3] + "\x01" + good[4:], ErrBadMessage},
		{"header ends early", good[:12], ErrBadMessage},
		{"padding missing", good[:len(good)-1], ErrBadMessage},
		{"padding not zero", good[:len(good)-1] + "\x01", ErrBadMessage},
		{"header too long", string(frameOf(strings.Repeat("\x00", MaxHeaderBytes+1))), ErrBadMessage},
		{"header of 4 GiB", "Tb\x01\x00\xff\xff\xff\xff" + strings.Repeat("\x00", 64), ErrBadMessage},
		{"empty header", string(frameOf("")), ErrBadMessage},
		{"header is a number", string(frameOf("\x01")), ErrBadMessage},
		{"header is an array", string(frameOf("\x91\x01")), ErrBadMessage},
		{"header is nil", string(frameOf("\xc0")), ErrBadMessage},
		{"no fields", string(frameOf("\x80")), ErrBadMessage},
		{"more fields than bytes", string(frameOf("\xde\xff\xff\xa1k\x01")), ErrBadMessage},
		{"bytes after the header", string(frameOf("\x81\xa1k\x01\x00")), ErrBadMessage},
		{"key is a number", string(frameOf("\x81\x01\x01")), ErrBadMessage},
		{"key ends early", string(frameOf("\x81\xa5k\x01")), ErrBadMessage},
		{"value is missing", string(frameOf(start3 + "\xa1c")), ErrBadMessage},
		{"value is an array", string(frameOf(start3 + "\xa1c\x91\x01")), ErrBadMessage},
		{"value is a map", string(frameOf(start3 + "\xa1c\x81\xa1a\x01")), ErrBadMessage},
		{"value is binary", string(frameOf(start3 + "\xa2tx\xc4\x01a")), ErrBadMessage},
		{"value is an extension", string(frameOf(start3 + "\xa1c\xd4\x01\x01")), ErrBadMessage},
		{"number for text", string(frameOf(start3 + "\xa2tx\x01")), ErrBadMessage},
		{"text for a number", string(frameOf(start3 + "\xa1c\xa11")), ErrBadMessage},
		{"fraction for a whole number", string(frameOf(float("c", 1.5))), ErrBadMessage},
		{"boolean for a number", string(frameOf(start3 + "\xa1c\xc3")), ErrBadMessage},
		{"negative number", string(frameOf(start3 + "\xa2st\xff")), ErrBadMessage},
		{"negative number of 8 bytes", string(frameOf(start3 + "\xa2st\xd3\xff\xff\xff\xff\xff\xff\xff\xff")), ErrBadMessage},
		{"kind 257", string(frameOf("\x82\xa1k\xcd\x01\x01\xa1j\xa1a")), ErrBadMessage},
		{"rank above 32 bits", string(frameOf(start3 + "\xa2rk\xcf\x00\x00\x00\x01\x00\x00\x00\x00")), ErrBadMessage},
		{"kind 0", string(frameOf("\x82\xa1k\x00\xa1j\xa1a")), ErrBadMessage},
		{"unknown kind", string(frameOf("\x82\xa1k\x7f\xa1j\xa1a")), ErrBadMessage},
		{"no job", string(frameOf("\x81\xa1k\x01")), ErrBadMessage},
		{"job with a dot", string(frameOf(start2 + "\xa3a.b")), ErrBadMessage},
		{"job with a wildcard", string(frameOf(start2 + "\xa1*")), ErrBadMessage},
		{"worker with a space", string(frameOf(start3 + "\xa2wk\xa1 ")), ErrBadMessage},
		{"worker too long", string(frameOf(start3 + "\xa2wk\xd9" + string(rune(len(long))) + long)), ErrBadMessage},
		{"text too long", string(frameOf(start3 + "\xa2tx\xda\x10\x01" + strings.Repeat("t", MaxTextBytes+1))), ErrBadMessage},
		{"loss NaN", string(frameOf(float("l", math.NaN()))), ErrNotFinite},
		{"loss Inf", string(frameOf(float("l", math.Inf(-1)))), ErrNotFinite},
		{"examples NaN", string(frameOf(float("x", math.NaN()))), ErrNotFinite},
		{"examples Inf", string(frameOf(float("x", math.Inf(1)))), ErrNotFinite},
		{"negative examples", string(frameOf(float("x", -1))), ErrBadMessage},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Decode([]byte(c.frame), func() { t.Error("released a frame that was refused") })
			if m != nil || !errors.Is(err, c.want) {
				t.Errorf("Decode = %+v, %v; want %v", m, err, c.want)
			}
		})
	}
}

func TestDecodeAccepts(t *testing.T) {
	for _, c := range []struct {
		name, header string
		want         Header
	}{
		{"smallest", "\x82\xa1k\x01\xa1j\xa1a", Header{Kind: Push, Job: "a"}},
		{"map of 16 bits", "\xde\x00\x02\xa1k\x01\xa1j\xa1a", Header{Kind: Push, Job: "a"}},
		{"unknown field", start3 + "\xa6future\xc3", Header{Kind: Push, Job: "a"}},
		{"longer forms of numbers", start3 + "\xa2st\xcf\x00\x00\x00\x00\x00\x00\x00\x05", Header{Kind: Push, Job: "a", Step: 5}},
		{"positive number sent as signed", start3 + "\xa2st\xd1\x00\x05", Header{Kind: Push, Job: "a", Step: 5}},
		{"whole number for a fraction", start3 + "\xa1l\xff", Header{Kind: Push, Job: "a", Loss: -1}},
		{"float32 for float64", start3 + "\xa1l\xca\x3f\x80\x00\x00", Header{Kind: Push, Job: "a", Loss: 1}},
		{"nil for zero", start3 + "\xa2st\xc0", Header{Kind: Push, Job: "a"}},
		{"nil for no text", start3 + "\xa2tx\xc0", Header{Kind: Push, Job: "a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Decode(frameOf(c.header), nil)
			if err != nil || m.Header != c.want {
				t.Errorf("Decode = %+v, %v; want %+v", m, err, c.want)
			}
		})
	}
}

// TestHostileCostsNothing: five bytes make msgpack/v5 5.4.1 allocate what they
// claim to be followed by. Here they cost nothing at all.
func TestHostileCostsNothing(t *testing.T) {
	for _, hostile := range []string{
		"\xc6\xff\xff\xff\xff", // bin32
		"\xdd\xff\xff\xff\xff", // array32
		"\xdf\xff\xff\xff\xff", // map32
		"\xdb\xff\xff\xff\xff", // str32
		"\xc9\xff\xff\xff\xff", // ext32
		"\xde\xff\xff\xa1k",
	} {
		for name, frame := range map[string][]byte{
			"bare":       []byte(hostile),
			"as header":  frameOf(hostile),
			"as a field": frameOf("\x81\xa1k" + hostile),
			"as a key":   frameOf("\x81" + hostile),
		} {
			allocs := testing.AllocsPerRun(100, func() {
				if m, err := Decode(frame, nil); m != nil || !errors.Is(err, ErrBadMessage) {
					t.Errorf("%x %s: Decode = %+v, %v", hostile, name, m, err)
				}
			})
			if allocs != 0 {
				t.Errorf("%x %s: %v allocations, want none", hostile, name, allocs)
			}
		}
	}
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	h, tail := pushHeader(), make([]byte, 1024)
	dst := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { dst = Append(dst[:0], &h, tail) }); n >= 1 {
		t.Errorf("Append into enough room: %v allocations, want none", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Decode(dst, nil); err != nil {
			t.Error(err)
		}
	}); n >= 2 {
		t.Errorf("Decode: %v allocations, want only the message", n)
	}
}

func TestTextIsCut(t *testing.T) {
	for _, text := range []string{
		strings.Repeat("x", MaxTextBytes),
		strings.Repeat("x", MaxTextBytes+1),
		"x" + strings.Repeat("é", MaxTextBytes),
		strings.Repeat("\x80", 2*MaxTextBytes), // not text at all
		strings.Repeat("x", 1<<20),
	} {
		h := Header{Kind: Ack, Job: "a", Code: ErrHalted, Text: text}
		m, err := Decode(Append(nil, &h, nil), nil)
		if err != nil {
			t.Errorf("text of %d bytes: %v", len(text), err)
			continue
		}
		if !strings.HasPrefix(text, m.Text) || len(m.Text) < min(len(text), MaxTextBytes-4) {
			t.Errorf("text of %d bytes arrives as %d", len(text), len(m.Text))
		}
	}
}

func TestErr(t *testing.T) {
	for code := OK; code < numCodes; code++ {
		for _, text := range []string{"", "shard 3 is at step 9"} {
			h := Header{Kind: Ack, Job: "a", Code: code, Text: text}
			m, err := Decode(Append(nil, &h, nil), nil)
			if err != nil {
				t.Fatal(err)
			}
			err = m.Err()
			if code == OK {
				if err != nil {
					t.Errorf("code 0: Err() = %v", err)
				}
				continue
			}
			if !errors.Is(err, code) || errors.Is(err, code+1) || !strings.Contains(err.Error(), text) {
				t.Errorf("code %d with text %q: Err() = %v", code, text, err)
			}
		}
	}
	if err := (&Header{Code: 200}).Err(); !errors.Is(err, Code(200)) || err.Error() == "" {
		t.Errorf("a code of a newer peer: Err() = %v", err)
	}
}

func TestRelease(t *testing.T) {
	h, n := pushHeader(), 0
	m, err := Decode(Append(nil, &h, []byte("tail")), func() { n++ })
	if err != nil {
		t.Fatal(err)
	}
	m.Release()
	m.Release()
	if n != 1 || m.Tail != nil {
		t.Errorf("after two Releases: released %d times, tail %q; want once, none", n, m.Tail)
	}
}

func FuzzDecode(f *testing.F) {
	h := pushHeader()
	f.Add(Append(nil, &h, []byte("tail")))
	f.Add(frameOf("\x82\xa1k\x01\xa1j\xa1a"))
	f.Add(frameOf("\xdd\xff\xff\xff\xff"))
	f.Add(frameOf("\x81\xa1k\xc6\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		m, err := Decode(frame, nil)
		if err != nil {
			if !errors.Is(err, ErrBadMessage) && !errors.Is(err, ErrNotFinite) {
				t.Fatalf("error without a code: %v", err)
			}
			return
		}
		again, err := Decode(Append(nil, &m.Header, m.Tail), nil)
		if err != nil {
			t.Fatalf("%+v was accepted, but not when sent on: %v", m.Header, err)
		}
		if again.Header != m.Header || !bytes.Equal(again.Tail, m.Tail) {
			t.Fatalf("got %+v, sent on %+v", m.Header, again.Header)
		}
	})
}

// FuzzPrescan: whatever passes is safe for the library, which reads it to the
// last byte at a cost bounded by the input.
func FuzzPrescan(f *testing.F) {
	h := pushHeader()
	f.Add(head(AppendHeader(nil, &h)))
	f.Add([]byte("\x81\xa1k\x01"))
	f.Add([]byte("\xdf\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxHeaderBytes || prescan(b) != nil {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		r := bytes.NewReader(b)
		err := msgpack.NewDecoder(r).Skip()
		runtime.ReadMemStats(&after)
		if err != nil || r.Len() != 0 {
			t.Fatalf("prescan passed %x, but the library says %v with %d bytes left", b, err, r.Len())
		}
		// 64 KiB are for the test's own machinery.
		if cost, limit := after.TotalAlloc-before.TotalAlloc, uint64(64<<10+64*len(b)); cost > limit {
			t.Fatalf("%d bytes of input cost %d of memory", len(b), cost)
		}
	})
}

func ExampleHeader_Err() {
	h := Header{Kind: Ack, Job: "digits", Code: ErrLate, Text: "step 7 is closed"}
	err := h.Err()
	fmt.Println(err, errors.Is(err, ErrLate))
	// Output: late: step 7 is closed true
}
