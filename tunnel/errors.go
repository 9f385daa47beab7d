package tunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

var (
	// ErrReset says that the other end aborted the stream.
	ErrReset = fmt.Errorf("the stream was reset: %w", syscall.ECONNRESET)
	// ErrLost says that the session ended before the stream did. What was
	// received is not all there was.
	ErrLost = errors.New("the session was lost")
	// ErrClosed says that this end closed the session.
	ErrClosed = fmt.Errorf("the session is closed: %w", net.ErrClosed)
	// ErrSilent says that the peer has not been heard of for Config.DeadAfter.
	ErrSilent = fmt.Errorf("the peer is silent: %w", os.ErrDeadlineExceeded)
	// ErrDraining says that a session opens no streams any more.
	ErrDraining = errors.New("the session is about to end")
	// ErrExhausted says that a session has given out its numbers for streams.
	ErrExhausted = errors.New("the session has no numbers for streams left")
	// ErrOverrun says that the stream was reset because it held more unread
	// bytes than any other when Memory.Buffered was reached.
	ErrOverrun = fmt.Errorf("the stream was not read and ran out of memory: %w", syscall.ENOBUFS)
	// ErrEnded says that the peer has ended the session.
	ErrEnded = fmt.Errorf("the peer has ended the session: %w", io.EOF)
	// ErrViolation says that the peer broke the protocol.
	ErrViolation = errors.New("the peer broke the protocol")
)

func violation(what string) error { return fmt.Errorf("%w: %s", ErrViolation, what) }

// lost is ErrLost with the reason why.
func lost(cause error) error {
	if cause == nil {
		return ErrLost
	}
	return fmt.Errorf("%w: %w", ErrLost, cause)
}
