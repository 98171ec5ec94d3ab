package vec

import "golang.org/x/sys/cpu"

//go:generate go run -C gen . -dir ..

// best is the best path of this processor and operating system.
func best() Path {
	switch {
	case cpu.X86.HasAVX512F && cpu.X86.HasAVX2:
		return AVX512
	case cpu.X86.HasAVX2:
		return AVX2
	}
	return Portable
}
