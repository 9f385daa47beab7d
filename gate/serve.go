package gate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

const (
	defaultWriteTimeout = 5 * time.Second

	// After freeStrays connections of others, each one more costs a pause:
	// whoever connects in a loop must not keep the ambassador busy.
	freeStrays = 64
	strayPause = 100 * time.Microsecond
)

// Gate gives one start of one recipient its word.
type Gate struct {
	// Word returns what the init is told. It is called when the init has come,
	// so that it is told how things are then, and so that a gate costs nothing
	// where no init ever comes, as that of a recipient that runs already.
	// Required.
	Word func() Word

	// Verify says whether the process that connected is the recipient's
	// init. pid and uid are as this process sees them. Anything in the
	// container can connect, so it is asked for every connection. Required.
	Verify func(pid, uid int) bool

	// WriteTimeout bounds one attempt to write the word; zero is 5 s. The init
	// reads at once, unless the container was paused just then. One that got
	// half of the word asks again.
	WriteTimeout time.Duration

	Log *slog.Logger // nil logs nothing
}

// Serve accepts connections until the init has its word, and returns nil
// then. Others are closed without a byte, and nothing is read from anyone. It
// returns the context's error when ctx ends first. It closes ln, a listening
// unix socket which the caller made inside the recipient's namespace.
func (g *Gate) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	log := g.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	strays := 0
	for pause := time.Duration(0); ; {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accepting at the gate: %w", err)
			}
			// Out of descriptors, most likely. Others give some back.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			log.Warn("accepting at the gate", "error", err, "pause", pause)
			sleep(ctx, pause)
			continue
		}
		pause = 0
		given, err := g.give(ctx, conn)
		if given {
			return nil
		}
		log.Debug("gate closed to a connection", "error", err)
		if strays++; strays > freeStrays {
			sleep(ctx, strayPause)
		}
	}
}

// give writes the word if conn is the init's, and closes conn.
func (g *Gate) give(ctx context.Context, conn net.Conn) (given bool, err error) {
	defer conn.Close()
	peer, err := peerOf(conn)
	if err != nil {
		return false, err
	}
	if !g.Verify(peer.pid, peer.uid) {
		return false, fmt.Errorf("process %d of user %d is not the init", peer.pid, peer.uid)
	}
	word, err := g.Word().encode()
	if err != nil {
		return false, err
	}
	conn.SetWriteDeadline(time.Now().Add(cmp.Or(g.WriteTimeout, defaultWriteTimeout)))
	defer context.AfterFunc(ctx, func() { conn.SetWriteDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Write(word); err != nil {
		return false, fmt.Errorf("writing to process %d: %w", peer.pid, err)
	}
	return true, nil
}
