package vec

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Few machines that run these tests have AVX-512. So the assembly is also read
// as text and run by a machine made for the purpose, at both widths, which
// shows what the instructions are meant to do wherever the tests run.

// machine runs the functions of the assembly file.
type machine struct {
	vec   [32][64]byte
	mask  [8]uint16
	gpr   map[string]uint64
	frame map[string]uint64
	mem   [][]byte // memory begins at a multiple of segment
	order int      // of the operands last compared: −1, 0 or 1
}

const segment = 1 << 32

// place puts data into memory and returns its address.
func (m *machine) place(data []byte) uint64 {
	m.mem = append(m.mem, data)
	return uint64(len(m.mem)) * segment
}

func (m *machine) at(addr uint64, n int) []byte {
	off := int(addr % segment)
	return m.mem[addr/segment-1][off : off+n]
}

// address is that of an operand such as 32(AX)(SI*4).
func (m *machine) address(op string) uint64 {
	disp, rest, _ := strings.Cut(op, "(")
	addr := uint64(0)
	if disp != "" {
		addr = parseInt(disp)
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(rest, ")"), ")(") {
		reg, scale, scaled := strings.Cut(part, "*")
		v := m.gpr[reg]
		if scaled {
			v *= parseInt(scale)
		}
		addr += v
	}
	return addr
}

func parseInt(s string) uint64 {
	v, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		panic(err)
	}
	return uint64(v)
}

func isMemory(op string) bool { return strings.HasSuffix(op, ")") && !strings.HasSuffix(op, "(FP)") }

// number is an operand of a scalar instruction.
func (m *machine) number(op string) uint64 {
	switch {
	case op[0] == '$':
		return parseInt(op[1:])
	case strings.HasSuffix(op, "(FP)"):
		name, _, _ := strings.Cut(op, "+")
		v, ok := m.frame[name]
		if !ok {
			panic("no parameter " + op)
		}
		return v
	case isMemory(op):
		return binary.LittleEndian.Uint64(m.at(m.address(op), 8))
	}
	return m.gpr[op]
}

var registerBytes = map[byte]int{'X': 16, 'Y': 32, 'Z': 64}

// bytes are the first n bytes of a vector operand.
func (m *machine) bytes(op string, n int) []byte {
	switch {
	case strings.HasSuffix(op, "(FP)"):
		return binary.LittleEndian.AppendUint32(nil, uint32(m.number(op)))
	case isMemory(op):
		return m.at(m.address(op), n)
	}
	return m.vec[parseInt(op[1:])][:n]
}

// write stores a vector; in a register, what lies above it becomes 0.
func (m *machine) write(op string, data []byte) {
	if isMemory(op) {
		copy(m.at(m.address(op), len(data)), data)
		return
	}
	r := &m.vec[parseInt(op[1:])]
	clear(r[:])
	copy(r[:], data)
}

// lanes applies f to the 32-bit lanes of the sources.
func (m *machine) lanes(dst string, srcs []string, f func(lane int, v []uint32) uint32) {
	n := registerBytes[dst[0]]
	out := make([]byte, 0, n)
	for lane := range n / 4 {
		v := make([]uint32, len(srcs))
		for i, s := range srcs {
			v[i] = binary.LittleEndian.Uint32(m.bytes(s, n)[4*lane:])
		}
		out = binary.LittleEndian.AppendUint32(out, f(lane, v))
	}
	m.write(dst, out)
}

// Operands stand in the reverse of the order of the processor's manual: in
// OP y, x, z the second one comes first.
var floatOps = map[string]func(x, y float32) float32{
	"VADDPS": func(x, y float32) float32 { return x + y },
	"VSUBPS": func(x, y float32) float32 { return x - y },
	"VMULPS": func(x, y float32) float32 { return float32(x * y) },
	"VDIVPS": func(x, y float32) float32 { return x / y },
	"VMAXPS": func(x, y float32) float32 {
		if x > y {
			return x
		}
		return y
	},
	"VMINPS": func(x, y float32) float32 {
		if x < y {
			return x
		}
		return y
	},
}

var bitOps = map[string]func(x, y uint32) uint32{
	"VPAND": func(x, y uint32) uint32 { return x & y }, "VPANDD": func(x, y uint32) uint32 { return x & y },
	"VPOR": func(x, y uint32) uint32 { return x | y }, "VPORD": func(x, y uint32) uint32 { return x | y },
	"VPXOR": func(x, y uint32) uint32 { return x ^ y }, "VPXORD": func(x, y uint32) uint32 { return x ^ y },
	"VPADDD": func(x, y uint32) uint32 { return x + y }, "VPSUBD": func(x, y uint32) uint32 { return x - y },
	"VPMAXSD": func(x, y uint32) uint32 { return uint32(max(int32(x), int32(y))) },
}

var compareOps = map[string]func(x, y float32) bool{
	"$0x11": func(x, y float32) bool { return x < y },
	"$0x1e": func(x, y float32) bool { return x > y },
	"$0x03": func(x, y float32) bool { return x != x || y != y },
}

var jumps = map[string]func(order int) bool{
	"JMP": func(int) bool { return true }, "JEQ": func(o int) bool { return o == 0 }, "JNE": func(o int) bool { return o != 0 },
	"JLT": func(o int) bool { return o < 0 }, "JLE": func(o int) bool { return o <= 0 }, "JGE": func(o int) bool { return o >= 0 },
}

func compare(x, y uint64) int { return max(-1, min(1, int(int64(x)-int64(y)))) }

// step runs an instruction that is no jump.
func (m *machine) step(op string, a []string) {
	last := a[len(a)-1]
	f32, bits := math.Float32frombits, math.Float32bits
	if f, ok := floatOps[op]; ok {
		m.lanes(last, a[:2], func(_ int, v []uint32) uint32 { return bits(f(f32(v[1]), f32(v[0]))) })
		return
	}
	if f, ok := bitOps[op]; ok {
		m.lanes(last, []string{a[0], a[1], last}, func(lane int, v []uint32) uint32 {
			if len(a) == 4 && m.mask[parseInt(a[2][1:])]>>lane&1 == 0 {
				return v[2]
			}
			return f(v[1], v[0])
		})
		return
	}
	switch op {
	case "VMOVUPS", "VMOVAPS", "VMOVUPD", "VMOVDQU":
		n := registerBytes[last[0]]
		if isMemory(last) {
			n = registerBytes[a[0][0]]
		}
		m.write(last, slices.Clone(m.bytes(a[0], n)))
	case "VBROADCASTSS", "VPBROADCASTD":
		m.write(last, slices.Repeat(slices.Clone(m.bytes(a[0], 4)), registerBytes[last[0]]/4))
	case "VMOVD":
		m.write(last, binary.LittleEndian.AppendUint32(nil, uint32(m.gpr[a[0]])))
	case "VSQRTPS":
		m.lanes(last, a[:1], func(_ int, v []uint32) uint32 { return bits(float32(math.Sqrt(float64(f32(v[0]))))) })
	case "VPSLLD":
		m.lanes(last, a[1:2], func(_ int, v []uint32) uint32 { return v[0] << m.number(a[0]) })
	case "VPSRLD":
		m.lanes(last, a[1:2], func(_ int, v []uint32) uint32 { return v[0] >> m.number(a[0]) })
	case "VCMPPS":
		f := compareOps[a[0]]
		if last[0] != 'K' {
			m.lanes(last, a[1:3], func(_ int, v []uint32) uint32 {
				if f(f32(v[1]), f32(v[0])) {
					return math.MaxUint32
				}
				return 0
			})
			return
		}
		k := &m.mask[parseInt(last[1:])]
		*k = 0
		for lane := range 16 {
			x, y := m.bytes(a[2], 64)[4*lane:], m.bytes(a[1], 64)[4*lane:]
			if f(f32(binary.LittleEndian.Uint32(x)), f32(binary.LittleEndian.Uint32(y))) {
				*k |= 1 << lane
			}
		}
	case "VBLENDVPS":
		m.lanes(last, a[:3], func(_ int, v []uint32) uint32 {
			if v[0]>>31 == 1 {
				return v[1]
			}
			return v[2]
		})
	case "VBLENDMPS":
		k := m.mask[parseInt(a[2][1:])]
		m.lanes(last, a[:2], func(lane int, v []uint32) uint32 {
			if k>>lane&1 == 1 {
				return v[0]
			}
			return v[1]
		})
	case "VCVTPS2PD":
		var out []byte
		src := m.bytes(a[0], registerBytes[last[0]]/2)
		for i := 0; i < len(src); i += 4 {
			out = binary.LittleEndian.AppendUint64(out, math.Float64bits(float64(f32(binary.LittleEndian.Uint32(src[i:])))))
		}
		m.write(last, out)
	case "VADDPD", "VMULPD":
		var out []byte
		n := registerBytes[last[0]]
		x, y := m.bytes(a[1], n), m.bytes(a[0], n)
		for i := 0; i < n; i += 8 {
			u, v := math.Float64frombits(binary.LittleEndian.Uint64(x[i:])), math.Float64frombits(binary.LittleEndian.Uint64(y[i:]))
			r := u + v
			if op == "VMULPD" {
				r = float64(u * v)
			}
			out = binary.LittleEndian.AppendUint64(out, math.Float64bits(r))
		}
		m.write(last, out)
	case "VPMOVZXWD":
		var out []byte
		src := m.bytes(a[0], registerBytes[last[0]]/2)
		for i := 0; i < len(src); i += 2 {
			out = append(out, src[i], src[i+1], 0, 0)
		}
		m.write(last, out)
	case "VPMOVDW", "VPACKUSDW":
		src := slices.Clone(m.bytes(a[0], registerBytes[a[0][0]]))
		if op == "VPACKUSDW" { // of two registers of 16 bytes
			src = append(slices.Clone(m.bytes(a[1], 16)), src...)
		}
		var out []byte
		for i := 0; i < len(src); i += 4 {
			if op == "VPACKUSDW" && src[i+2]|src[i+3] != 0 {
				panic("a number of more than 16 bits")
			}
			out = append(out, src[i], src[i+1])
		}
		m.write(last, out)
	case "VEXTRACTI128":
		m.write(last, slices.Clone(m.bytes(a[1], 32)[16*m.number(a[0]):][:16]))
	case "MOVQ", "MOVL":
		m.gpr[last] = m.number(a[0])
	case "XORQ":
		m.gpr[last] ^= m.number(a[0])
	case "ADDQ":
		m.gpr[last] += m.number(a[0])
	case "INCQ":
		m.gpr[last]++
	case "SUBQ":
		m.order = compare(m.gpr[last], m.number(a[0]))
		m.gpr[last] -= m.number(a[0])
	case "CMPQ":
		m.order = compare(m.number(a[0]), m.number(a[1]))
	default:
		panic("unknown instruction " + op)
	}
}

// function is one of the assembly file.
type function struct {
	params []string // name and type
	lines  []string
	labels map[string]int
}

func assemblyFile(t *testing.T) map[string]*function {
	text, err := os.ReadFile("kernels_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*function{}
	var f *function
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "// func "):
			name, params, _ := strings.Cut(strings.TrimPrefix(line, "// func "), "(")
			f = &function{params: strings.Split(strings.TrimSuffix(params, ")"), ", "), labels: map[string]int{}}
			all[name] = f
		case line == "" || line[0] == '#' || strings.HasPrefix(line, "//") || strings.HasPrefix(line, "TEXT"):
		case strings.HasSuffix(line, ":"):
			f.labels[line[:len(line)-1]] = len(f.lines)
		default:
			f.lines = append(f.lines, line)
		}
	}
	return all
}

func (f *function) run(m *machine) {
	for pc := 0; ; pc++ {
		op, rest, _ := strings.Cut(f.lines[pc], " ")
		args := strings.Split(strings.TrimSpace(rest), ", ")
		jump, isJump := jumps[op]
		switch {
		case op == "RET":
			return
		case op == "VZEROUPPER" || op == "PREFETCHT0":
		case isJump && jump(m.order):
			pc = f.labels[args[0]] - 1
		case !isJump:
			m.step(op, args)
		}
	}
}

// Both widths of every function leave the same memory behind.
func TestWidthsAgree(t *testing.T) {
	all := assemblyFile(t)
	tested := 0
	for _, name := range slices.Sorted(maps.Keys(all)) {
		base, ok := strings.CutSuffix(name, "AVX2")
		if !ok {
			continue
		}
		tested++
		t.Run(base, func(t *testing.T) {
			for _, n := range []int{0, 16, 32, 48, 64, 80, 128, 144, 272} {
				for _, oneOf := range []int{2, 1000} {
					for more := range uint64(2) {
						seed := uint64(n*oneOf) + more
						narrow, wide := simulate(all[name], n, oneOf, more, seed), simulate(all[base+"AVX512"], n, oneOf, more, seed)
						for i := range narrow.mem {
							if j := firstDifference(narrow.mem[i], wide.mem[i]); j >= 0 {
								t.Fatalf("%d elements: parameter %d differs at byte %d", n, i, j)
							}
						}
					}
				}
			}
		})
	}
	if tested < 40 {
		t.Errorf("only %d functions", tested)
	}
}

// firstDifference looks at float32, of which any two NaN are the same; the
// float64 of sums are compared as two of them.
func firstDifference(a, b []byte) int {
	for i := 0; i+4 <= len(a); i += 4 {
		x, y := math.Float32frombits(binary.LittleEndian.Uint32(a[i:])), math.Float32frombits(binary.LittleEndian.Uint32(b[i:]))
		if !sameBits(x, y) {
			return i
		}
	}
	return -1
}

// simulate runs f on n elements of memory made from a seed.
func simulate(f *function, n, oneOf int, more, seed uint64) *machine {
	r := rand.New(rand.NewPCG(seed, 9))
	m := &machine{gpr: map[string]uint64{}, frame: map[string]uint64{}}
	floats := func(n int) []byte {
		var b []byte
		for range n {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(number(r, oneOf)))
		}
		return b
	}
	const k, start = 3, 16
	for _, p := range f.params {
		name, typ, _ := strings.Cut(p, " ")
		switch typ {
		case "int":
			m.frame[name] = map[string]uint64{"n": uint64(n), "k": k, "start": start, "more": more}[name]
		case "float32":
			m.frame[name] = uint64(math.Float32bits(number(r, 8*oneOf)))
		case "*float64", "*uint32":
			m.frame[name] = m.place(make([]byte, max(64, 8*n))) // lanes, or sums
		case "**float32", "**uint16":
			var ptrs []byte
			for range k {
				ptrs = binary.LittleEndian.AppendUint64(ptrs, m.place(floats(start+n)))
			}
			m.frame[name] = m.place(ptrs)
		case "*float32", "*uint16":
			m.frame[name] = m.place(floats(max(n, 16)))
		default:
			panic("parameter of type " + typ)
		}
	}
	f.run(m)
	for i, p := range f.params {
		if p == "lanes *uint32" { // as many as the width has: what they come to
			top, sum := uint32(0), uint32(0)
			for j := 0; j < 64; j += 4 {
				v := binary.LittleEndian.Uint32(m.mem[i-1][j:])
				top, sum = max(top, v), sum+v
			}
			m.mem[i-1] = binary.LittleEndian.AppendUint32(nil, top)
			if len(f.params) == 4 { // countPositive
				m.mem[i-1] = binary.LittleEndian.AppendUint32(nil, sum)
			}
		}
	}
	return m
}

// The machine of these tests computes what the functions of the package do.
func TestWidthsComputeTheLoops(t *testing.T) {
	all := assemblyFile(t)
	for _, l := range loops {
		name := strings.ToLower(l.name[:1]) + l.name[1:]
		switch l.name {
		case "Select":
			name = "choose"
		case "SGD", "SGDMomentum", "SGDNesterov":
			name = "sgd" + l.name[3:]
		case "Clamp", "SoftThreshold", "DecodeHalf", "EncodeHalf", "Dot", "Sum", "MaxAbs", "CountPositive":
			continue // not called with what the tests hand over
		}
		for _, suffix := range []string{"AVX2", "AVX512"} {
			f := all[name+suffix]
			if f == nil {
				t.Errorf("no function %s%s", name, suffix)
				continue
			}
			r := rand.New(rand.NewPCG(10, 11))
			for _, oneOf := range []int{2, 1000} {
				s := make([][]float32, l.slices)
				m := &machine{gpr: map[string]uint64{}, frame: map[string]uint64{"n": 80}}
				for i := range s {
					s[i] = numbers(r, 80, oneOf)
					var b []byte
					for _, x := range s[i] {
						b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
					}
					param, _, _ := strings.Cut(f.params[i], " ")
					m.frame[param] = m.place(b)
				}
				c := numbers(r, l.scalars, 1000)
				var coef []byte
				for i, x := range c {
					coef = binary.LittleEndian.AppendUint32(coef, math.Float32bits(x))
					if at := l.slices + 1 + i; at < len(f.params) {
						param, _, _ := strings.Cut(f.params[at], " ")
						m.frame[param] = uint64(math.Float32bits(x))
					}
				}
				if strings.HasPrefix(f.params[len(f.params)-1], "coef") {
					m.frame["coef"] = m.place(coef)
				}
				f.run(m)
				force(t, Portable)
				l.run(s, c)
				for i := range s {
					for j, x := range s[i] {
						if got := math.Float32frombits(binary.LittleEndian.Uint32(m.mem[i][4*j:])); !sameBits(got, x) {
							t.Fatalf("%s: slice %d, element %d: %v, want %v", fmt.Sprint(name, suffix), i, j, got, x)
						}
					}
				}
			}
		}
	}
}
