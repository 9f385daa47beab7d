package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// accept gives every connection of ln to handle, which is quick, until ctx
// ends or ln does not listen any more. It closes ln.
func accept(ctx context.Context, ln net.Listener, log *slog.Logger, handle func(net.Conn)) error {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = 0
			handle(conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed), errors.Is(err, unix.EINVAL): // EINVAL: it was shut down
			return err
		default:
			// For want of descriptors or memory, as a rule. It passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			log.Warn("accepting a connection; trying again", "err", err, "in", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}
