package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/descriptor"
	"github.com/linkrun/linkrun/socks"
	"github.com/linkrun/linkrun/tunnel"
)

// spliced is the way to a source on this host: the relay carries the connection
// as one of the link's.
type spliced struct {
	a      *Agent
	to     *carrier
	source int
}

var _ socks.Way = (*spliced)(nil)

func (c *carrier) spliceTo(ctx context.Context, a *Agent, port uint16) (socks.Way, error) {
	conn, err := c.to.dial(ctx, port)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	fd, err := descriptor.Duplicate(conn)
	if err != nil {
		return nil, err
	}
	return &spliced{a: a, to: c, source: fd}, nil
}

func (w *spliced) Carry(client int) {
	if err := w.a.relay.Pair(client, w.source, &w.to.relay); err != nil {
		w.a.logLost(w.to, err)
		unix.Close(client)
		unix.Close(w.source)
	}
}

func (w *spliced) Close() error { return unix.Close(w.source) }

// streamed is the way to a source on another host: a stream there.
type streamed struct {
	to     *carrier
	stream *tunnel.Stream
}

var _ socks.Way = (*streamed)(nil)

func (c *carrier) streamTo(ctx context.Context, port uint16) (socks.Way, error) {
	hosts := c.remote.a.Hosts
	if hosts == nil {
		return nil, unreachable(errNoHosts)
	}
	st, err := hosts.Ask(ctx, c.link.Host, c.remote.request(tunnel.TCP, port, 0))
	if err != nil {
		return nil, unreachable(err)
	}
	defer context.AfterFunc(ctx, st.Abort)()
	switch err := st.Answer(answerTime); {
	case ctx.Err() != nil:
		st.Abort()
		return nil, context.Cause(ctx)
	case err != nil:
		st.Abort()
		return nil, refusalOf(err)
	}
	return &streamed{c, st}, nil
}

// refusalOf is what a client of SOCKS is told of another host's refusal: what
// is a matter of permission there is one here.
func refusalOf(err error) error {
	var refusal *tunnel.Refusal
	switch {
	case !errors.As(err, &refusal):
		return unreachable(err)
	case refusal.Status == tunnel.Denied, refusal.Status == tunnel.NoSource, refusal.Status == tunnel.NoPort:
		return fmt.Errorf("%w: %w", socks.ErrNotAllowed, err)
	}
	return err
}

func (w *streamed) Carry(client int) {
	r := w.to.remote
	t, err := r.a.relay.Take(client, &w.to.relay)
	if err != nil {
		unix.Close(client)
		w.stream.Abort()
		r.a.logLost(w.to, err)
		return
	}
	conn, err := socketConn(client)
	if err != nil {
		w.stream.Abort()
		t.End(err)
		r.a.logLost(w.to, err)
		return
	}
	r.conns.Go(func() { r.pump(t, conn, w.stream, 0) })
}

func (w *streamed) Close() error {
	w.stream.Abort()
	return nil
}

func (a *Agent) logLost(c *carrier, err error) {
	a.log.Warn("a connection by SOCKS is lost", "alias", c.link.Alias, "err", err)
}

// socketConn makes a connection of a stream socket, which is closed with it, or
// at once if it fails.
func socketConn(fd int) (tunnel.Conn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close() // FileConn has a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("taking over a connection: %w", err)
	}
	conn, ok := c.(tunnel.Conn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("taking over a connection: it is one of %s", c.LocalAddr().Network())
	}
	return conn, nil
}
