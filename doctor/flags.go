package doctor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadFlags fills in how the engine that listens at a unix socket was
// started. Its API does not tell, but its process does. What cannot be found
// out is said in FlagsUnknown.
func (e *Engine) ReadFlags(socket string) {
	e.ManagesRules, e.UserlandProxy = true, true // what dockerd does if nothing is said
	pid, err := daemonOf(socket)
	if err == nil {
		err = e.readProcess(fmt.Sprintf("/proc/%d", pid))
	}
	if err != nil {
		e.FlagsUnknown = err.Error()
	}
}

// readProcess reads the configuration file, then the command line. dockerd
// does not start if both say something about the same flag.
func (e *Engine) readProcess(proc string) error {
	cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return fmt.Errorf("reading the engine's command line: %w", err)
	}
	words := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	file, given := flagValue(words, "config-file")
	if !given {
		file = "/etc/docker/daemon.json"
	}
	text, err := os.ReadFile(filepath.Join(proc, "root", file))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the engine's configuration: %w", err)
	}
	var config struct {
		IPTables      *bool `json:"iptables"`
		UserlandProxy *bool `json:"userland-proxy"`
	}
	if text = bytes.TrimSpace(text); len(text) > 0 {
		if err := json.Unmarshal(text, &config); err != nil {
			return fmt.Errorf("reading the engine's configuration %q: %w", file, err)
		}
	}
	for _, f := range []struct {
		name string
		file *bool
		to   *bool
	}{
		{"iptables", config.IPTables, &e.ManagesRules},
		{"userland-proxy", config.UserlandProxy, &e.UserlandProxy},
	} {
		if f.file != nil {
			*f.to = *f.file
		}
		if value, given := boolFlag(words, f.name); given {
			*f.to = value
		}
	}
	return nil
}

// flagValue finds --name=value or --name value.
func flagValue(words []string, name string) (value string, given bool) {
	for i, w := range words {
		if v, ok := strings.CutPrefix(w, "--"+name+"="); ok {
			value, given = v, true
		} else if w == "--"+name && i+1 < len(words) {
			value, given = words[i+1], true
		}
	}
	return value, given
}

// boolFlag finds --name or --name=value; a value never stands on its own.
func boolFlag(words []string, name string) (value, given bool) {
	for _, w := range words {
		if w == "--"+name {
			value, given = true, true
		} else if v, ok := strings.CutPrefix(w, "--"+name+"="); ok {
			if b, err := strconv.ParseBool(v); err == nil {
				value, given = b, true
			}
		}
	}
	return value, given
}

// daemonOf is the dockerd that listens at a socket. With socket activation it
// is systemd that does; then it is the only dockerd there is, or nobody knows.
func daemonOf(socket string) (pid int, err error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, fmt.Errorf("asking who the engine is: %w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, fmt.Errorf("asking who the engine is: %w", failed)
	}
	if isDaemon(strconv.Itoa(int(peer.Pid))) {
		return int(peer.Pid), nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	found := 0
	for _, entry := range entries {
		if isDaemon(entry.Name()) {
			found++
			pid, _ = strconv.Atoi(entry.Name())
		}
	}
	if found != 1 {
		return 0, fmt.Errorf("%q is not dockerd's own, and %d dockerd run", socket, found)
	}
	return pid, nil
}

func isDaemon(pid string) bool {
	name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	return err == nil && string(name) == "dockerd\n"
}
