package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/linkrun/linkrun/internal/places"
)

// Listener takes connections of other hosts as far as the end of their
// handshake. Strangers have no more of it than a place among MaxHandshakes.
type Listener struct {
	// TLS says who is let in.
	TLS *tls.Config
	// Handle gets every connection whose handshake went well, in a goroutine of
	// its own, and owns it.
	Handle func(*Secured)
	// MaxHandshakes is how many may be under way. For one more, the oldest has
	// to go: a stranger who opens connections and says nothing does not keep
	// others out. 0 is 256.
	MaxHandshakes int
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger

	underway places.Places
}

// Listen listens on addr for connections that Serve is to accept. They are
// plain TCP, not the multipath variant, which takes fewer socket options.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", addr)
}

// Serve accepts from ln until ctx ends, closes it, and returns when all
// handlers have. The error is nil, or why ln cannot be accepted from any more.
func (l *Listener) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	defer ln.Close()
	var pause time.Duration
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// For want of descriptors or memory, as a rule. It passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.log().Warn("accepting a connection; trying again", "err", err, "in", pause)
			wait(ctx, pause)
			continue
		}
		pause = 0
		leave := l.underway.Take(cmp.Or(l.MaxHandshakes, 256), conn)
		handlers.Go(func() { l.handshake(ctx, conn, leave) })
	}
}

func (l *Listener) handshake(ctx context.Context, conn net.Conn, leave func()) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := Tune(tcp); err != nil {
			l.log().Warn("accepting a connection", "from", conn.RemoteAddr(), "err", err)
		}
	}
	secured, err := SecureServer(ctx, conn, l.TLS)
	leave()
	if err != nil {
		l.log().Warn("a connection came to nothing", "from", conn.RemoteAddr(), "err", err)
		return
	}
	l.Handle(secured)
}

func (l *Listener) log() *slog.Logger {
	if l.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.Log
}

// wait waits for d, or for ctx to end.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
