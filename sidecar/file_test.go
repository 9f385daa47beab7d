package sidecar

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What is at a path before and after somebody listens there.
func TestSocketFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, mode := range []fs.FileMode{0, 0o660, 0o666} {
		ln, err := Socket{Path: path, Mode: mode}.Listen()
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if want := max(mode, 0o600); info.Mode() != want|fs.ModeSocket {
			t.Errorf("mode %v makes a file of %v", mode, info.Mode())
		}
		if _, err := (Socket{Path: path}).Listen(); !errors.Is(err, ErrServed) {
			t.Errorf("listening twice gives %v, want %v", err, ErrServed)
		}
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		ln.Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file after closing: %v", err)
		}
	}
}

// A process that was killed leaves its file.
func TestSocketFileLeftBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	ln, err := Socket{Path: path}.Listen()
	if err != nil {
		t.Fatal(err)
	}
	// Its successor's file is not its own to remove.
	os.Remove(path)
	other, err := Socket{Path: path}.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file of the other: %v", err)
	}
}

func TestSocketFileMistakes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		file:                                    errNoSocketFile,
		filepath.Join(dir, "no", "s"):           fs.ErrNotExist,
		filepath.Join(file, "s"):                syscall.ENOTDIR,
		dir:                                     errNoSocketFile,
		"/" + strings.Repeat("long", 30) + "/s": syscall.EINVAL,
	} {
		_, err := Socket{Path: path}.Listen()
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
		if err != nil && strings.Count(err.Error(), path) != 1 {
			t.Errorf("%q does not name the path once: %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := (Socket{Path: filepath.Join(dir, "s"), Group: 1 << 30}).Listen(); err == nil && os.Geteuid() != 0 {
		t.Error("a group of others was taken")
	}
}
