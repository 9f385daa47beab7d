package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is what /proc/PID/stat says of one process.
type process struct {
	pid, above int // above is the process that started it
	name       string
	cpu        time.Duration // its own, and that of children it has waited for
}

// hertz is the unit of times in /proc: USER_HZ, 100 on every architecture
// that Go runs Linux on.
const hertz = 100

func parseStat(text []byte) (p process, err error) {
	// The name is in parentheses, and may hold spaces and parentheses.
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("parsing a process's state %q: no name", text)
	}
	p.name = string(text[open+1 : end])
	fields := bytes.Fields(text[end+1:])
	number := func(field int) (n int) { // as proc(5) counts them
		if err == nil && field-3 < len(fields) {
			n, err = strconv.Atoi(string(fields[field-3]))
		}
		return n
	}
	if p.pid, err = strconv.Atoi(string(bytes.TrimSpace(text[:open]))); err != nil {
		return p, fmt.Errorf("parsing a process's state: %w", err)
	}
	p.above = number(4)
	ticks := number(14) + number(15) + number(16) + number(17)
	p.cpu = time.Duration(ticks) * time.Second / hertz
	if err != nil {
		return p, fmt.Errorf("parsing a process's state: %w", err)
	}
	return p, nil
}

// processes lists all of the host.
func processes() (map[int]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	all := make(map[int]process)
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		p, err := parseStat(text)
		if err != nil {
			return nil, err
		}
		all[p.pid] = p
	}
	return all, nil
}

// gone says that a process ended while it was looked at.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// family lists processes and all that they started.
func family(roots []int) ([]process, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	in := make(map[int]bool)
	for _, pid := range roots {
		in[pid] = true
	}
	var members []process
	for pid, p := range all {
		for at := pid; at > 1; at = all[at].above {
			if in[at] {
				members = append(members, p)
				break
			}
		}
	}
	return members, nil
}

// cpuTime is the processor time that processes, and all they started, have
// used so far, to a hundredth of a second.
func cpuTime(roots []int) (sum time.Duration, err error) {
	members, err := family(roots)
	for _, p := range members {
		sum += p.cpu
	}
	return sum, err
}

// holding is what processes, and all they started, hold at a moment.
type holding struct {
	memory      int64 // bytes in user space, shared pages divided among those who share them
	descriptors int
	pipes       int // of the descriptors
	processes   int
}

func held(roots []int) (h holding, err error) {
	members, err := family(roots)
	if err != nil {
		return h, err
	}
	for _, p := range members {
		memory, err := proportionalSetSize(p.pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return h, err
		}
		h.memory += memory
		h.processes++
		dir := fmt.Sprintf("/proc/%d/fd", p.pid)
		entries, _ := os.ReadDir(dir)
		h.descriptors += len(entries)
		for _, entry := range entries {
			if to, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil && strings.HasPrefix(to, "pipe:") {
				h.pipes++
			}
		}
	}
	return h, nil
}

func (h holding) less(before holding) holding {
	return holding{h.memory - before.memory, h.descriptors - before.descriptors, h.pipes - before.pipes, h.processes - before.processes}
}

func proportionalSetSize(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
			kilobytes, err := strconv.ParseInt(fields[1], 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("reading the memory of process %d: there is no Pss", pid)
}
