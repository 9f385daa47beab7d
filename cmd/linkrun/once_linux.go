package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// newMemoryFile makes a file that is inherited over exec, and returns the path
// it has in every process that inherits it. Nobody closes it: there is no
// os.File, which would be closed when it is collected.
func newMemoryFile(name string) (string, error) {
	fd, err := unix.MemfdCreate(name, 0)
	if err != nil {
		return "", os.NewSyscallError("memfd_create", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil
}
