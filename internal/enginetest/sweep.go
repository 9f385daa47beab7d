package enginetest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// An engine's name is that of its network namespace, its folder and its
// control group, and says which process it belongs to:
//
//	linkrun-test-<pid>-<start time of pid>-<count>
//
// so that whoever finds one can tell whether it is in use, also when a test
// was killed and the number of its process was given to another.
const prefix = "linkrun-test-"

const netnsDir = "/run/netns"

var count atomic.Int64 // of the engines this process started

func newName() string {
	pid := os.Getpid()
	return fmt.Sprintf("%s%d-%s-%d", prefix, pid, startTime(pid), count.Add(1))
}

// startTime is when a process started, in clock ticks since boot, or "".
func startTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field, the name, may hold spaces and parentheses.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return fields[19] // field 22 of proc(5)
}

// inUse says whether the process that a name says it belongs to still runs.
func inUse(name string) bool {
	part := strings.Split(strings.TrimPrefix(name, prefix), "-")
	if len(part) != 3 {
		return false
	}
	pid, err := strconv.Atoi(part[0])
	return err == nil && startTime(pid) == part[1]
}

// folder is deliberately not in TMPDIR: the path of a unix socket has 107
// characters at most.
func folder(name string) string { return filepath.Join("/tmp", name) }

// sweepAll removes what is left of engines whose test was killed. Two that do
// it at once do not disturb each other: what is gone is as good as removed.
func sweepAll() error {
	names := map[string]bool{}
	for _, dir := range []string{netnsDir, folder("")} {
		found, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
		if err != nil {
			return err
		}
		for _, path := range found {
			names[filepath.Base(path)] = true
		}
	}
	var errs []error
	for name := range names {
		if !inUse(name) {
			errs = append(errs, sweep(name))
		}
	}
	return errors.Join(errs...)
}

// sweep ends every process of an engine, and removes everything it left: shim
// sockets, mounts, the network namespace, control groups, and the folder.
func sweep(name string) error {
	if err := until(20*time.Second, func() error {
		if left := killMembers(name, false); len(left) > 0 {
			return fmt.Errorf("processes %v of the engine are not gone", left)
		}
		return nil
	}); err != nil {
		return err // unmounting below them would fail for no good reason
	}
	var errs []error
	keep := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, path := range shimSockets(name) {
		keep(os.Remove(path))
	}
	for _, path := range slices.Backward(mountsBelow(folder(name))) {
		if err := run("umount", path); err != nil && slices.Contains(mountsBelow(folder(name)), path) {
			keep(err)
		}
	}
	if _, err := os.Stat(filepath.Join(netnsDir, name)); err == nil {
		if err := run("ip", "netns", "del", name); err != nil {
			if _, gone := os.Stat(filepath.Join(netnsDir, name)); gone == nil {
				keep(err)
			}
		}
	}
	for _, dir := range controlGroups(name) {
		keep(os.Remove(dir))
	}
	keep(os.RemoveAll(folder(name)))
	return errors.Join(errs...)
}

// killMembers kills the processes of an engine, or only its containers', and
// says which there were.
func killMembers(name string, containersOnly bool) (killed []int) {
	ns, _ := os.Stat(filepath.Join(netnsDir, name))
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		// The handle stays with this process; should the number be given to
		// another one between the question and the kill, that one is safe.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if inGroup(pid, name) || !containersOnly && inNetNS(pid, ns) {
			if p.Signal(syscall.SIGKILL) == nil {
				killed = append(killed, pid)
			}
		}
		p.Release()
	}
	return killed
}

// inGroup says whether a process is in a container of the engine.
func inGroup(pid int, name string) bool {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(groups), "/"+name+"/")
}

// inNetNS says whether a process is in the engine's network namespace: its
// daemons, shims and proxies are, and what a test ran there.
func inNetNS(pid int, ns os.FileInfo) bool {
	of, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && ns != nil && os.SameFile(of, ns)
}

// shimSockets are the sockets, in a folder all engines of the host share, of
// the shims that were killed. A shim that ends by itself removes its own.
func shimSockets(name string) (paths []string) {
	files, _ := filepath.Glob(filepath.Join(folder(name), "run/containerd/io.containerd.runtime.v2.task/*/*/address"))
	for _, file := range files {
		if address, err := os.ReadFile(file); err == nil {
			paths = append(paths, strings.TrimPrefix(string(address), "unix://"))
		}
	}
	return paths
}

// mountsBelow lists the mount points below a folder in the order they were
// mounted.
func mountsBelow(dir string) (points []string) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points
}

// controlGroups lists the engine's control groups in every hierarchy, inner
// ones first.
func controlGroups(name string) (dirs []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		top, _ := filepath.Glob(pattern + name)
		for _, dir := range top {
			filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
		}
	}
	slices.Reverse(dirs)
	return dirs
}
