package e2e

import "syscall"

// ownGroup puts a child into a process group of its own, which dies with this
// process: a test that runs out of time is not left to clean up.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
