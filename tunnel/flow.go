package tunnel

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PacketConn is a connected socket that keeps packets apart: a *net.UDPConn,
// or a *net.UnixConn of the network "unixpacket".
type PacketConn interface {
	net.Conn
	syscall.Conn
}

// Flow moves datagrams between a socket and a stream, each a datagram on the
// other side, until one of both ends. Like a network it loses what does not
// get through.
type Flow struct {
	Conn   PacketConn
	Stream *Stream
	// Buffers may be shared with others. nil is some of the flow's own.
	Buffers *Buffers

	// AwaitAnswer is as in Pump.
	AwaitAnswer time.Duration
	// IdleTimeout ends a flow in which no datagram has moved for this long. 0
	// and negative: never.
	IdleTimeout time.Duration

	moved  atomic.Uint64
	halves atomic.Int32 // stays 0: no half of a flow is over before the other
	end    sync.Once
	why    error
}

// Run returns when the flow has ended and both sides are closed. The error is
// why, nil if one of them was closed. It owns Conn and Stream.
func (f *Flow) Run() error {
	if f.Buffers == nil {
		f.Buffers = new(Buffers)
	}
	raw, err := f.Conn.SyscallConn()
	if err != nil {
		f.over(err)
		return err
	}
	d := NewDatagrams(f.Stream)
	expiry := newExpiry(f.IdleTimeout, 0, &f.moved, &f.halves, f.Cut)
	var up sync.WaitGroup
	up.Go(func() { f.over(f.toStream(d, raw)) })
	f.over(f.toConn(d))
	up.Wait()
	if err := expiry.stop(); err != nil {
		return err
	}
	return f.why
}

// Cut ends the flow at once. Run returns then.
func (f *Flow) Cut() { f.over(net.ErrClosed) }

// over ends both directions: without one there is no flow.
func (f *Flow) over(err error) {
	f.end.Do(func() {
		f.why = err
		if err == nil {
			f.Stream.Close()
		} else {
			f.Stream.Abort()
		}
		f.Conn.Close()
	})
}

// toStream moves what the socket receives. Like a pump it borrows a buffer only
// when there is something to read.
func (f *Flow) toStream(d *Datagrams, raw syscall.RawConn) error {
	for {
		var buf *buffer
		var n int
		var errno error
		err := raw.Read(func(fd uintptr) bool {
			buf = f.Buffers.borrow(len(bufferSizes) - 1)
			n, errno = unix.Read(int(fd), buf.bytes)
			if errno == unix.EAGAIN {
				f.Buffers.giveBack(buf)
				return false
			}
			if n == 0 && errno == nil && hungUp(int(fd)) {
				errno = io.EOF
			}
			return true
		})
		if err != nil {
			return err
		}
		if errno == nil {
			_, errno = d.Write(buf.bytes[:n])
			f.moved.Add(1)
		}
		f.Buffers.giveBack(buf)
		switch errno {
		case nil, unix.EINTR:
		case io.EOF:
			return nil
		default:
			return errno
		}
	}
}

// hungUp tells a packet without anything in it from the end, which a
// "unixpacket" socket reads as the same.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return n == 1 && err == nil && p[0].Revents&unix.POLLHUP != 0
}

// toConn moves what the stream brings.
func (f *Flow) toConn(d *Datagrams) error {
	if f.AwaitAnswer > 0 {
		if err := f.Stream.Answer(f.AwaitAnswer); err != nil {
			return err
		}
	}
	for {
		var head [2]byte
		if _, err := io.ReadFull(d.in, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if err := f.deliver(d, n); err != nil {
			return err
		}
		f.moved.Add(1)
	}
}

// deliver passes on one datagram of n bytes, unless it is longer than UDP can
// have over IPv4.
func (f *Flow) deliver(d *Datagrams, n int) error {
	size := sizeFor(int64(n))
	if n > bufferSizes[size] {
		_, err := d.in.Discard(n)
		return err
	}
	buf := f.Buffers.borrow(size)
	defer f.Buffers.giveBack(buf)
	if _, err := io.ReadFull(d.in, buf.bytes[:n]); err != nil {
		return err
	}
	_, err := f.Conn.Write(buf.bytes[:n])
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return nil
	}
	return err
}
