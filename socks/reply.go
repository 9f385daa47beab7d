package socks

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reply is the second byte of the answer to a request (RFC 1928, section 6).
type reply byte

const (
	generalFailure      reply = 1
	notAllowed          reply = 2
	networkUnreachable  reply = 3
	hostUnreachable     reply = 4
	connectionRefused   reply = 5
	commandNotSupported reply = 7
)

// ErrNotAllowed says that a client may not go where it wants to: it is told
// "not allowed by ruleset". Of other errors of Server.Connect, ECONNREFUSED,
// ENETUNREACH and EHOSTUNREACH have an answer of their own, to be out of time is
// "host unreachable", and the rest "general failure".
var ErrNotAllowed = errors.New("not allowed")

func replyTo(err error) reply {
	switch {
	case errors.Is(err, ErrNotAllowed):
		return notAllowed
	case errors.Is(err, unix.ECONNREFUSED):
		return connectionRefused
	case errors.Is(err, unix.ENETUNREACH):
		return networkUnreachable
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ETIMEDOUT),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return hostUnreachable
	}
	return generalFailure
}
