package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// The pauses between two attempts to get the word: short at first, since an
// ambassador needs a few milliseconds, and never long enough to be noticed.
const (
	firstPause = 200 * time.Microsecond
	lastPause  = 20 * time.Millisecond
)

// ErrSilent says that no word came in time.
var ErrSilent = errors.New("no word from the ambassador")

// SignalError says that a signal ended the wait.
type SignalError struct{ Signal syscall.Signal }

func (e *SignalError) Error() string { return fmt.Sprintf("ended by signal: %v", e.Signal) }

// ExitCode is the status a shell reports for a process ended by that signal.
func (e *SignalError) ExitCode() int { return 128 + int(e.Signal) }

// Wait gets the word at address, trying until ctx ends. Meanwhile it catches
// the signals that stop a container and returns a *SignalError: as process 1
// of its pid namespace, the caller would outlive them (pid_namespaces(7)).
// When no word came, the error wraps ErrSilent and the last attempt's reason.
// A word with an Error is returned like any other.
func Wait(ctx context.Context, address string) (Word, error) {
	return wait(ctx, address, isAmbassador)
}

func wait(ctx context.Context, address string, trusted func(process) error) (Word, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	release := catchSignals(cancel)
	w, err := poll(ctx, address, trusted)
	if s := release(); s != nil {
		return Word{}, s
	}
	return w, err
}

// isAmbassador knows the ambassador by where it is: outside of this
// container's pid namespace, where pids read as 0. With --pid=host it is not
// outside, and has to be root.
func isAmbassador(peer process) error {
	if peer.pid != 0 && peer.uid != 0 {
		return fmt.Errorf("process %d of user %d is not the ambassador", peer.pid, peer.uid)
	}
	return nil
}

// stopSignals are those which end a process by default and serve to stop a
// container, 37 (SIGRTMIN+3) being systemd's.
var stopSignals = [...]syscall.Signal{
	syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, 37,
}

// catchSignals calls cancel when a signal comes. The function it returns
// leaves the signals as they were, for the program to come, and returns the
// first one caught, if any.
func catchSignals(cancel func()) (release func() *SignalError) {
	caught := make(chan os.Signal, 1)
	for _, s := range stopSignals {
		if !signal.Ignored(s) {
			signal.Notify(caught, s)
		}
	}
	var first *SignalError
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range caught {
			if first == nil {
				first = &SignalError{Signal: s.(syscall.Signal)}
			}
			cancel()
		}
	}()
	return func() *SignalError {
		signal.Stop(caught)
		close(caught)
		<-done
		return first
	}
}

func poll(ctx context.Context, address string, trusted func(process) error) (Word, error) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		w, err := ask(ctx, address, trusted)
		if err == nil {
			return w, nil
		}
		sleep(ctx, pause)
		if ctx.Err() != nil {
			return Word{}, fmt.Errorf("%w: %w", ErrSilent, err)
		}
	}
}

// ask makes one attempt.
func ask(ctx context.Context, address string, trusted func(process) error) (Word, error) {
	// Not with the context: this does not block, a full backlog included, and
	// its error shall be the reason and not that time was up.
	conn, err := net.Dial("unix", address)
	if err != nil {
		return Word{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()

	peer, err := peerOf(conn)
	if err != nil {
		return Word{}, err
	}
	if err := trusted(peer); err != nil {
		return Word{}, err
	}
	return read(conn)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
