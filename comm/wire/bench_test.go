package wire

import "testing"

// pushHeader is what a push carries: most headers are smaller.
func pushHeader() Header {
	return Header{
		Kind: Push, Job: "digits", Timeline: 3, View: 12, Shard: 2, Epoch: 7, Rank: 5, Worker: "worker-5", Incarnation: 4,
		Step: 123456, Pulled: 123455, Chunk: 17, Chunks: 64, Count: 1 << 18, Examples: 256, Loss: 0.731, CRC: 0xdeadbeef,
		Digest: 0x0123456789abcdef, Nanos: 1_234_567,
	}
}

func BenchmarkAppendHeader(b *testing.B) {
	b.ReportAllocs()
	h := pushHeader()
	var dst []byte
	for b.Loop() {
		dst = AppendHeader(dst[:0], &h)
	}
	b.ReportMetric(float64(len(dst)), "bytes")
}

func BenchmarkAppend1MiB(b *testing.B) {
	h, tail := pushHeader(), make([]byte, 1<<20)
	b.ReportAllocs()
	b.SetBytes(int64(len(tail)))
	var dst []byte
	for b.Loop() {
		dst = Append(dst[:0], &h, tail)
	}
}

func BenchmarkDecode(b *testing.B) {
	b.ReportAllocs()
	h := pushHeader()
	frame := Append(nil, &h, make([]byte, 1<<20))
	for b.Loop() {
		m, err := Decode(frame, nil)
		if err != nil {
			b.Fatal(err)
		}
		m.Release()
	}
}

func BenchmarkPrescan(b *testing.B) {
	h := pushHeader()
	frame := AppendHeader(nil, &h)
	n := int(frame[4]) | int(frame[5])<<8
	b.ReportAllocs()
	for b.Loop() {
		if err := prescan(frame[prefixLen : prefixLen+n]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChecksum1MiB(b *testing.B) {
	tail := make([]byte, 1<<20)
	b.SetBytes(int64(len(tail)))
	for b.Loop() {
		Checksum(tail)
	}
}

func BenchmarkAllFinite1MiB(b *testing.B) {
	x := make([]float32, 1<<18)
	b.SetBytes(1 << 20)
	for b.Loop() {
		AllFinite(x)
	}
}
