package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Socket is the file of a unix socket: who may write to it may connect.
type Socket struct {
	Path  string
	Mode  fs.FileMode // 0 is 0600
	Group int         // who the file belongs to besides its user; 0 is the process's own group
}

// ErrServed says that another process listens at a path.
var ErrServed = errors.New("another process listens there")

// Listen listens at s.Path. A file that nobody listens at any more is replaced.
func (s Socket) Listen() (net.Listener, error) {
	ln, err := s.listen()
	if err != nil {
		return nil, fmt.Errorf("listening on %q: %w", s.Path, bare(err))
	}
	return ln, nil
}

func (s Socket) listen() (net.Listener, error) {
	if err := s.vacate(); err != nil {
		return nil, err
	}
	// The file has the permissions that the socket has before: nobody gets in
	// until it is known who may.
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		if e := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := lc.Listen(context.Background(), "unix", s.Path)
	if err != nil {
		return nil, err
	}
	ln := conn.(*net.UnixListener)
	file, err := s.permit()
	if err != nil {
		ln.Close()
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	return &fileListener{UnixListener: ln, path: s.Path, file: file}, nil
}

// vacate removes a file that nobody listens at.
func (s Socket) vacate() error {
	info, err := os.Lstat(s.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errNoSocketFile
	}
	conn, err := net.Dial("unix", s.Path)
	switch {
	case err == nil:
		conn.Close()
		return ErrServed
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(s.Path)
	}
	return err
}

var errNoSocketFile = errors.New("there is a file that is no socket")

// permit gives the file its permissions.
func (s Socket) permit() (fs.FileInfo, error) {
	if s.Group != 0 {
		if err := os.Chown(s.Path, -1, s.Group); err != nil {
			return nil, fmt.Errorf("giving it to group %d: %w", s.Group, bare(err))
		}
	}
	mode := s.Mode
	if mode == 0 {
		mode = 0o600
	}
	if err := os.Chmod(s.Path, mode); err != nil {
		return nil, err
	}
	return os.Lstat(s.Path)
}

// fileListener removes its file when it is closed.
type fileListener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	once sync.Once
}

func (l *fileListener) Close() error {
	// Somebody else's by now, if it was replaced.
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

// bare is the error without the path, which is told already.
func bare(err error) error {
	var path *fs.PathError
	var call *os.SyscallError
	var network *net.OpError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &call):
		return call.Err
	case errors.As(err, &network):
		return network.Err
	}
	return err
}

// peer says in a log which process is at the other end of a unix socket, as
// the kernel has it. The process id is 0 where it is not seen from here.
func peer(conn net.Conn) slog.Attr {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return slog.Any("from", conn.RemoteAddr())
	}
	var cred *unix.Ucred
	raw, err := u.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		})
	}
	if err != nil || cred == nil {
		return slog.String("from", "an unknown process")
	}
	return slog.Group("from", "uid", cred.Uid, "gid", cred.Gid, "pid", cred.Pid)
}
