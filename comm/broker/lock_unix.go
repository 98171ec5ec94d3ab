//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package broker

import (
	"os"
	"syscall"
)

// lockFile takes an exclusive lock that ends with f or with the process. It
// does not wait.
func lockFile(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}
