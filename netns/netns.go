//go:build linux

// Package netns enters network namespaces, for as long as it takes to make a
// socket or to set a rule there, and hands out what it made. It moves no data
// and knows neither containers nor links.
//
// A socket stays in the namespace in which it was made, whoever uses it later
// and on whatever thread. So nothing but this package needs the right to enter
// a namespace, and nothing but [Namespace.Do] does enter one.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// ErrNotNamespace says that a path exists and is no network namespace. Docker
// bind-mounts a namespace over an empty file; a process in another mount
// namespace than the engine's sees the empty file.
var ErrNotNamespace = errors.New("not a network namespace")

// Namespace is a network namespace, held open: it exists at least until Close,
// with or without a process in it. Its methods may be called from any number
// of goroutines. The zero Namespace is a closed one.
type Namespace struct {
	file     *os.File
	dev, ino uint64
}

// Open opens the namespace at path, such as /proc/PID/ns/net or an engine's
// SandboxKey. The caller closes it. If there is something else at path the
// error is ErrNotNamespace.
func Open(path string) (*Namespace, error) {
	// O_NONBLOCK: a FIFO at path must not hold us until somebody writes to it.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening namespace %q: %w", path, err)
	}
	n, err := adopt(fd, path)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("opening namespace %q: %w", path, err)
	}
	return n, nil
}

// adopt makes a Namespace of fd after looking at what it really is. Without
// the look, setns(2) on an empty file says no more than "invalid argument".
func adopt(fd int, path string) (*Namespace, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%w (is the engine's mount namespace another one?)", ErrNotNamespace)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return nil, err
	}
	if kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%w but one of another kind", ErrNotNamespace)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return &Namespace{file: os.NewFile(uintptr(fd), path), dev: st.Dev, ino: st.Ino}, nil
}

// ID identifies the namespace while it is open: two Namespaces are the same
// one exactly if both numbers are equal. The kernel gives the numbers to
// another namespace once this one is gone.
func (n *Namespace) ID() (dev, ino uint64) {
	return n.dev, n.ino
}

// FD returns the descriptor of the namespace, for system calls that want one.
// It belongs to n and is good until Close; -1 afterwards.
func (n *Namespace) FD() int {
	fd := -1
	_ = n.control(func(f int) error { fd = f; return nil })
	return fd
}

// Close lets the namespace go. Sockets made in it live on, and keep it alive.
func (n *Namespace) Close() error {
	if n == nil || n.file == nil {
		return os.ErrInvalid
	}
	return n.file.Close()
}

// control calls fn with the descriptor, which stays open meanwhile even if
// another goroutine calls Close: or else fn might enter whatever gets that
// descriptor number next.
func (n *Namespace) control(fn func(fd int) error) error {
	if n == nil || n.file == nil {
		return os.ErrInvalid
	}
	conn, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if conn.Control(func(fd uintptr) { failed = fn(int(fd)) }) != nil {
		return os.ErrClosed // the only way to fail, and not called so by the package os
	}
	return failed
}

// PanicError is what Do panics with when fn did: the value of fn's panic, and
// the stack of the goroutine it happened on.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string {
	return fmt.Sprintf("panic in a namespace: %v\n\n%s", p.Value, p.Stack)
}

// Unwrap returns the value of the panic if it is an error.
func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// outcome is how a visit to a namespace ended. fn ended the visit by
// runtime.Goexit if it neither returned nor panicked.
type outcome struct {
	err      error
	panicked *PanicError
	returned bool
}

// Do calls fn on a thread that is in the namespace, and returns when fn has,
// with fn's error. It is the only place of this program that enters a
// namespace. What fn reads under /proc/thread-self and /proc/sys/net is the
// namespace's, too.
//
// fn must not start goroutines, nor call what may (a dial by host name does):
// they would run on threads that are elsewhere. A panic in fn panics in the
// caller, with a *PanicError.
func (n *Namespace) Do(fn func() error) error {
	done := make(chan outcome, 1)
	go n.visit(fn, done)
	out := <-done
	switch {
	case out.panicked != nil:
		panic(out.panicked)
	case !out.returned:
		runtime.Goexit()
	}
	return out.err
}

// visit is Do's goroutine. The thread it locks is given back to the scheduler
// only when it is certainly back where it came from: a goroutine that ends
// with its thread locked takes the thread along.
func (n *Namespace) visit(fn func() error, done chan<- outcome) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// /proc/PID/ns/net of the whole process is that of its first thread,
		// which also cannot end before the process does. While this goroutine
		// sits on it, another one is bound to get another thread.
		other := make(chan outcome, 1)
		go n.visit(fn, other)
		out := <-other
		runtime.UnlockOSThread()
		done <- out
		return
	}

	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		done <- outcome{returned: true, err: fmt.Errorf("opening this thread's namespace: %w", err)}
		return
	}
	var out outcome
	defer func() {
		if !out.returned {
			if value := recover(); value != nil {
				out.panicked = &PanicError{Value: value, Stack: debug.Stack()}
			}
		}
		if enter(home) == nil {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
		done <- out
	}()
	if out.err = n.control(enter); out.err != nil {
		out.err = fmt.Errorf("entering namespace: %w", out.err)
	} else {
		out.err = fn()
	}
	out.returned = true
}

func enter(fd int) error {
	return unix.Setns(fd, unix.CLONE_NEWNET)
}
