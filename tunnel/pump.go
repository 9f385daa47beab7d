package tunnel

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a socket that can be closed in one direction: a *net.TCPConn or a
// *net.UnixConn.
type Conn interface {
	net.Conn
	syscall.Conn
	CloseWrite() error
}

// Pump moves bytes between a socket and a stream until both directions have
// ended. The end of a direction is passed on to the other side, and so is a
// reset, which comes after what was sent before it.
type Pump struct {
	Conn   Conn
	Stream *Stream
	// Buffers may be shared with others. nil is some of the pump's own.
	Buffers *Buffers

	// AwaitAnswer, if set, is how long the answer to the request of Ask may
	// take. What the socket sends goes on its way meanwhile.
	AwaitAnswer time.Duration
	// CloseTimeout ends a pump of which one direction has ended and the other
	// has been silent for this long. 0 is 5 minutes, negative: never.
	CloseTimeout time.Duration
	// IdleTimeout ends a pump over which no byte has moved for this long. 0
	// and negative: never.
	IdleTimeout time.Duration

	// ToStream and ToConn count the bytes moved, while they are. nil is
	// nobody's business.
	ToStream, ToConn *atomic.Uint64

	moved    atomic.Uint64 // bytes, both ways
	finished atomic.Int32  // directions
	wasReset atomic.Bool   // the stream, or it was lost
	allTold  atomic.Bool   // the stream has ended, and the socket knows
}

// Run returns when everything has ended and both are closed. The error is the
// first that ended a direction, nil if both have come to their end. It owns
// Conn and Stream.
func (p *Pump) Run() error {
	if p.Buffers == nil {
		p.Buffers = new(Buffers)
	}
	raw, err := p.Conn.SyscallConn()
	if err != nil {
		p.Stream.Abort()
		p.Conn.Close()
		return err
	}
	resetIfKilled(p.Conn)
	p.Stream.AfterReset(p.streamReset)
	expiry := newExpiry(p.IdleTimeout, cmp.Or(p.CloseTimeout, defaultClose), &p.moved, &p.finished, p.Cut)
	var up error
	var direction sync.WaitGroup
	direction.Go(func() {
		up = p.toStream(raw)
		p.finished.Add(1)
	})
	down := p.toConn()
	p.finished.Add(1)
	direction.Wait()
	err = cmp.Or(expiry.stop(), first(up, down))
	if err == nil {
		p.end()
		return p.Stream.Close()
	}
	p.Cut()
	return err
}

// Cut resets both sides at once. Run returns then.
func (p *Pump) Cut() {
	p.Stream.Abort()
	resetConn(p.Conn)
}

// first is the error that came first of those of two directions: the one that
// fails takes the other along.
func first(up, down error) error {
	if up == nil || down != nil && (errors.Is(up, net.ErrClosed) || errors.Is(up, os.ErrDeadlineExceeded)) {
		return down
	}
	return up
}

// resetGrace is how long the reader of a socket has to take what was sent to
// it before a reset, and how long the rest of what a socket has sent is waited
// for when it takes no more.
const resetGrace = time.Second

// streamReset has a reset of the stream, or the loss of it, get past a socket
// that does not read what was sent before, and one that has nothing to say.
func (p *Pump) streamReset() {
	p.wasReset.Store(true)
	p.Conn.SetWriteDeadline(time.Now().Add(resetGrace))
	if p.allTold.Load() {
		resetConn(p.Conn)
	}
}

// streamEnded passes on the end of the stream.
func (p *Pump) streamEnded() error {
	err := p.Conn.CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) {
		err = nil // the socket was reset, as reading from it tells
	}
	p.allTold.Store(true)
	if p.wasReset.Load() {
		resetConn(p.Conn)
	}
	return err
}

// resetIfKilled has the peer of c see a reset if this process ends without
// closing c, or closes it without further ado. The kernel closes what a killed
// process had open, and as a rule that looks like a proper end: the peer would
// take for a whole what is not.
func resetIfKilled(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

// end closes the socket, of which both directions have come to their end.
func (p *Pump) end() {
	if tcp, ok := p.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(-1) // what is on its way still arrives
	}
	p.Conn.Close()
}

// resetConn has the peer of c see a reset.
func resetConn(c net.Conn) {
	resetIfKilled(c)
	c.Close()
}

// toStream moves what the socket sends. It borrows a buffer when there is
// something to read, so an idle connection has none.
func (p *Pump) toStream(raw syscall.RawConn) error {
	var (
		size  int
		buf   *buffer
		n     int
		errno error
		renew time.Time
	)
	read := func(fd uintptr) bool {
		buf = p.Buffers.borrow(size)
		for {
			n, errno = unix.Read(int(fd), buf.bytes)
			if errno != unix.EINTR {
				break
			}
		}
		if errno == unix.EAGAIN {
			p.Buffers.giveBack(buf)
			return false
		}
		return true
	}
	for {
		if err := raw.Read(read); err != nil {
			if p.wasReset.Load() {
				err = p.Stream.explain(err)
			}
			p.Stream.Abort()
			return err
		}
		if n <= 0 {
			p.Buffers.giveBack(buf)
			if errno == nil {
				return p.Stream.CloseWrite()
			}
			p.Stream.Abort() // comes after what was sent
			return os.NewSyscallError("read", errno)
		}
		if now := time.Now(); now.After(renew) {
			// The socket is not read while the stream takes nothing. To learn
			// of its reset all the same, the wait is cut in slices.
			p.Stream.SetWriteDeadline(now.Add(2 * resetCheck))
			renew = now.Add(resetCheck)
		}
		err := p.write(raw, buf.bytes[:n])
		p.Buffers.giveBack(buf)
		if err != nil {
			return err
		}
		count(p.ToStream, n)
		p.moved.Add(uint64(n))
		switch {
		case n == len(buf.bytes):
			size = min(size+1, len(bufferSizes)-1)
		case size > 0 && n <= bufferSizes[size-1]:
			size--
		}
	}
}

// resetCheck is how often a socket is looked at while the stream takes nothing.
const resetCheck = time.Second

func (p *Pump) write(raw syscall.RawConn, data []byte) error {
	for {
		n, err := p.Stream.Write(data)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		data = data[n:]
		if broken(raw) {
			p.Stream.Abort()
			return syscall.ECONNRESET
		}
		p.Stream.SetWriteDeadline(time.Now().Add(resetCheck))
	}
}

// broken tells whether a socket was reset.
func broken(raw syscall.RawConn) bool {
	var is bool
	err := raw.Control(func(fd uintptr) {
		set := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(set, 0)
		is = err == nil && n > 0 && set[0].Revents&unix.POLLERR != 0
	})
	return is || err != nil
}

// toConn moves what the stream sends. A buffer is borrowed when there is
// something to read, of the size it takes.
func (p *Pump) toConn() error {
	if p.AwaitAnswer > 0 {
		if err := p.Stream.Answer(p.AwaitAnswer); err != nil {
			p.Stream.Abort()
			resetConn(p.Conn)
			return err
		}
	}
	for {
		if err := p.Stream.wait(); err != nil {
			if err == io.EOF {
				return p.streamEnded()
			}
			resetConn(p.Conn)
			return err
		}
		buf := p.Buffers.borrow(sizeFor(p.Stream.waiting()))
		n, err := p.Stream.Read(buf.bytes)
		if err == nil {
			_, err = p.Conn.Write(buf.bytes[:n])
		}
		p.Buffers.giveBack(buf)
		if err != nil {
			// The socket takes no more. What it has sent before it broke is
			// still read; it breaks on reading right after.
			p.Conn.SetReadDeadline(time.Now().Add(resetGrace))
			return err
		}
		count(p.ToConn, n)
		p.moved.Add(uint64(n))
	}
}

func count(c *atomic.Uint64, n int) {
	if c != nil {
		c.Add(uint64(n))
	}
}
