package relay

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RaiseFileLimit raises the limit of open descriptors to the hard limit, and
// that to what the kernel allows where the process may (CAP_SYS_RESOURCE). It
// returns the limit that holds afterwards. A connection costs two
// descriptors, so main calls this before it serves.
func RaiseFileLimit() (uint64, error) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	most, err := nrOpen()
	if err != nil {
		return lim.Cur, err
	}
	if lim.Max < most {
		raised := unix.Rlimit{Cur: most, Max: most}
		err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised)
		if err == nil {
			return most, nil
		}
		if !errors.Is(err, unix.EPERM) {
			return lim.Cur, fmt.Errorf("raising the limit of open files to %d: %w", most, err)
		}
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return 0, fmt.Errorf("raising the limit of open files to %d: %w", lim.Max, err)
	}
	return lim.Cur, nil
}

// nrOpen is the kernel's bound of any process's limit.
func nrOpen() (uint64, error) {
	text, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return 0, fmt.Errorf("reading the bound of open files: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the bound of open files: %w", err)
	}
	return n, nil
}
