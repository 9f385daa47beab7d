// Package descriptor gets at the descriptors of connections, for those who do
// without package net. It closes none.
package descriptor

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Duplicate returns a descriptor of the caller's own for c's socket. It stays
// when c is closed.
func Duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var dupErr error
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, os.NewSyscallError("fcntl", dupErr)
	}
	return fd, nil
}
