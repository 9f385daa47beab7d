package socks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A client that says nothing, or stops somewhere, is waited for until the
// deadline and no longer, however often it sends a byte.
func TestSlowClientIsGivenUp(t *testing.T) {
	for name, sent := range map[string]string{
		"nothing":        "",
		"half greeting":  greeting[:2],
		"no request":     greeting,
		"half a request": greeting + connect + named("webdb", 80)[:4],
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, &Server{Timeout: 100 * time.Millisecond})
			c := b.dial(t)
			io.WriteString(c, sent)
			if _, err := io.ReadAll(c); err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Error(err)
			}
			b.wants(t)
		})
	}
}

// The oldest handshakes go when there are too many. All others are served, and
// what the slow ones had is given back.
func TestSlowClientsCostNothing(t *testing.T) {
	const limit, slow = 8, 100
	b := newBed(t, &Server{Limit: limit, Timeout: time.Hour})
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	var clients []*net.TCPConn
	for range slow {
		if c := b.dialOrReset(t); c != nil {
			io.WriteString(c, greeting)
			clients = append(clients, c)
		}
	}
	poll(t, func() error {
		if n := b.handled.Load(); n < slow {
			return fmt.Errorf("%d connections were accepted", n)
		}
		b.Server.mu.Lock()
		defer b.Server.mu.Unlock()
		if b.underWay.Len() != limit || b.givenUp > 0 {
			return fmt.Errorf("%d handshakes are under way, %d given up", b.underWay.Len(), b.givenUp)
		}
		return nil
	})
	for range 20 {
		if got := b.exchange(t, greeting+connect+ipv4+"ping"); got != accepted+connected+"ping" {
			t.Fatalf("beside slow clients, the answer is %q", got)
		}
	}
	for _, c := range clients {
		c.Close()
	}
	poll(t, func() error {
		if n := runtime.NumGoroutine(); n > goroutines {
			return fmt.Errorf("%d goroutines, before %d", n, goroutines)
		}
		if n := descriptors(t); n > files {
			return fmt.Errorf("%d descriptors, before %d", n, files)
		}
		return nil
	})
}

// However many come at once, the goroutines stay within twice the limit.
func TestFloodIsBounded(t *testing.T) {
	const limit = 4
	stuck := make(chan struct{})
	s := &Server{Limit: limit, Connect: func(context.Context, string, uint16) (Way, error) {
		<-stuck // does not even mind its context
		return nil, ErrNotAllowed
	}}
	b := newBed(t, s)
	t.Cleanup(func() { close(stuck) })
	before := runtime.NumGoroutine()
	for range 10 * limit {
		if c := b.dialOrReset(t); c != nil {
			io.WriteString(c, greeting+connect+ipv4)
		}
		if n := runtime.NumGoroutine() - before; n > 2*limit {
			t.Errorf("%d goroutines for a limit of %d", n, limit)
		}
	}
	poll(t, func() error {
		b.Server.mu.Lock()
		defer b.Server.mu.Unlock()
		if b.underWay.Len() != limit || b.givenUp > limit {
			return fmt.Errorf("%d handshakes are under way and %d given up, want %d and at most as many", b.underWay.Len(), b.givenUp, limit)
		}
		return nil
	})
}

// Connecting takes no longer than the handshake may, and the client gets to
// know.
func TestSlowSource(t *testing.T) {
	b := newBed(t, &Server{Timeout: 50 * time.Millisecond, Connect: func(ctx context.Context, _ string, _ uint16) (Way, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}})
	if got, want := b.exchange(t, greeting+connect+ipv4), accepted+refusal(hostUnreachable); got != want {
		t.Errorf("the answer is %q, want %q", got, want)
	}
}

// A refused client that does not hang up is not waited for.
func TestRefusedClientThatStays(t *testing.T) {
	b := newBed(t, &Server{Connect: func(context.Context, string, uint16) (Way, error) { return nil, ErrNotAllowed }})
	c := b.dial(t)
	io.WriteString(c, greeting+connect+ipv4)
	poll(t, func() error {
		b.Server.mu.Lock()
		defer b.Server.mu.Unlock()
		if n := b.underWay.Len(); n > 0 {
			return fmt.Errorf("%d handshakes are under way", n)
		}
		return nil
	})
	if got, err := io.ReadAll(c); err != nil || string(got) != accepted+refusal(notAllowed) {
		t.Errorf("the answer is %q, %v", got, err)
	}
}

// The way to a source is closed if the client went away while it was opened.
func TestClientGoesAway(t *testing.T) {
	connecting, gone := make(chan struct{}), make(chan struct{})
	way := &echo{closed: make(chan struct{})}
	b := newBed(t, &Server{Connect: func(context.Context, string, uint16) (Way, error) {
		close(connecting)
		<-gone
		return way, nil
	}})
	c := b.dial(t)
	io.WriteString(c, greeting+connect+ipv4)
	<-connecting
	c.SetLinger(0)
	c.Close()
	poll(t, func() error { // the reset is there when nothing can be written
		return b.resetArrived()
	})
	close(gone)
	select {
	case <-way.closed:
	case <-time.After(soon):
		t.Error("the way to the source stays open")
	}
}

// resetArrived looks at the one handshake there is.
func (b *bed) resetArrived() (err error) {
	b.Server.mu.Lock()
	defer b.Server.mu.Unlock()
	h := b.underWay.Front().Value.(*handshake)
	controlErr := h.control(func(fd int) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		unix.Poll(p, 0)
		if p[0].Revents&unix.POLLHUP == 0 {
			err = errors.New("the client's reset has not arrived")
		}
	})
	return errors.Join(controlErr, err)
}

// kept is a Way that takes the socket and does nothing with it.
type kept struct{ fds chan int }

func (k kept) Carry(fd int) { k.fds <- fd }
func (kept) Close() error   { return nil }

// A connection that is carried costs this package nothing any more: no
// goroutine, and no descriptor but the one handed on.
func TestCarriedCostsNothing(t *testing.T) {
	const n = 50
	fds := make(chan int, n)
	b := newBed(t, &Server{Connect: func(context.Context, string, uint16) (Way, error) { return kept{fds}, nil }})
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	for range n {
		c := b.dial(t)
		io.WriteString(c, greeting+connect+ipv4)
		if _, err := io.ReadFull(c, make([]byte, len(accepted+connected))); err != nil {
			t.Fatal(err)
		}
	}
	var taken []int
	for range n {
		taken = append(taken, <-fds)
	}
	poll(t, func() error {
		if now := runtime.NumGoroutine(); now > goroutines {
			return fmt.Errorf("%d goroutines, before %d", now, goroutines)
		}
		if now := descriptors(t); now > files+2*n { // the clients' and the ones handed on
			return fmt.Errorf("%d descriptors, before %d", now, files)
		}
		return nil
	})
	for _, fd := range taken {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("the socket handed on has flags %#x, %v: not non-blocking", flags, err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the socket handed on is inherited by programs: %#x, %v", flags, err)
		}
		unix.Close(fd)
	}
}

// Close ends what is under way, and nothing is begun after it.
func TestClose(t *testing.T) {
	b := newBed(t, &Server{Timeout: time.Hour})
	c := b.dial(t)
	io.WriteString(c, greeting)
	if _, err := io.ReadFull(c, make([]byte, len(accepted))); err != nil {
		t.Fatal(err)
	}
	b.Server.Close()
	for range 2 {
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the client sees %v, want a reset", err)
		}
		if c = b.dialOrReset(t); c == nil {
			break
		}
	}
}
