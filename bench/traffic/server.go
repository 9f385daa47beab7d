package traffic

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Server answers clients, on TCP and on UDP. Close it.
type Server struct {
	tcp, udp, stop int
	polls          [2]*poll // of the threads
	threads        sync.WaitGroup
	err            [2]error
}

// Listen starts a server at an IPv4 address and port; port 0 is one that is
// free for both.
func Listen(at netip.AddrPort) (*Server, error) {
	if err := raiseFileLimit(); err != nil {
		return nil, err
	}
	s := &Server{tcp: -1, udp: -1, stop: -1}
	if err := s.open(at); err != nil {
		s.closeDescriptors()
		return nil, fmt.Errorf("listening at %v: %w", at, err)
	}
	s.threads.Go(func() { s.err[0] = s.serveStreams(s.polls[0]) })
	s.threads.Go(func() { s.err[1] = s.servePackets(s.polls[1]) })
	return s, nil
}

func (s *Server) open(at netip.AddrPort) (err error) {
	if s.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if s.tcp, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if s.udp, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := errors.Join(
		unix.SetsockoptInt(s.tcp, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(s.tcp, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1), // inherited
		unix.Bind(s.tcp, sockaddr(at)),
		unix.Listen(s.tcp, 4096),
	); err != nil {
		return err
	}
	if at, err = localAddr(s.tcp); err != nil {
		return err
	}
	roomy(s.udp)
	if err := unix.Bind(s.udp, sockaddr(at)); err != nil {
		return err
	}
	for i, fd := range []int{s.tcp, s.udp} {
		if s.polls[i], err = newPoll(); err != nil {
			return err
		}
		if err := errors.Join(s.polls[i].watch(fd, unix.EPOLLIN), s.polls[i].watch(s.stop, unix.EPOLLIN)); err != nil {
			return err
		}
	}
	return nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)), nil
}

// Addr is where the server listens.
func (s *Server) Addr() (netip.AddrPort, error) { return localAddr(s.tcp) }

// Wait returns when the context ends, or with what made the server fail.
func (s *Server) Wait(ctx context.Context) error {
	failed := make(chan struct{})
	go func() { s.threads.Wait(); close(failed) }()
	select {
	case <-ctx.Done():
		return nil
	case <-failed:
		return errors.Join(s.err[:]...)
	}
}

// Close resets every connection and returns when all threads have ended.
func (s *Server) Close() error {
	unix.Write(s.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	s.threads.Wait()
	s.closeDescriptors()
	return errors.Join(s.err[:]...)
}

func (s *Server) closeDescriptors() {
	for _, fd := range []int{s.tcp, s.udp, s.stop} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, p := range s.polls {
		if p != nil {
			p.close()
		}
	}
}

// streams is the state of the thread that serves TCP.
type streams struct {
	poll  *poll
	conns []*serverConn // by descriptor
	block [blockSize]byte
	reply []byte // zeros, as many as the longest reply so far
}

// serverConn is one connection to a server.
type serverConn struct {
	fd      int
	request request
	buf     [RequestSize]byte
	got     int    // bytes of a request
	unsent  []byte // of a reply
	writing bool   // the poll waits for room

	account       account
	since, warmed time.Time // wantSink, wantBulk: the first byte, and the end of the warm-up
}

func (s *Server) serveStreams(p *poll) error {
	runtime.LockOSThread()
	t := &streams{poll: p}
	defer t.closeAll()
	for {
		events, err := p.wait(-1)
		if err != nil {
			return err
		}
		for _, ev := range events {
			switch int(ev.Fd) {
			case s.stop:
				return nil
			case s.tcp:
				if err := t.accept(s.tcp); err != nil {
					return err
				}
			default:
				if c := t.conns[ev.Fd]; !t.serve(c) {
					t.close(c)
				}
			}
		}
	}
}

func (t *streams) accept(listener int) error {
	for {
		fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN {
			return nil
		}
		if err == unix.ECONNABORTED || err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("accepting a connection: %w", err)
		}
		for len(t.conns) <= fd {
			t.conns = append(t.conns, nil)
		}
		t.conns[fd] = &serverConn{fd: fd}
		if err := t.poll.watch(fd, unix.EPOLLIN); err != nil {
			return fmt.Errorf("watching a connection: %w", err)
		}
	}
}

func (t *streams) close(c *serverConn) {
	unix.Close(c.fd)
	t.conns[c.fd] = nil
}

func (t *streams) closeAll() {
	for _, c := range t.conns {
		if c != nil {
			t.close(c)
		}
	}
}

// serve does what a connection is ready for. It is false when the connection
// is to be closed.
func (t *streams) serve(c *serverConn) bool {
	switch {
	case len(c.unsent) > 0:
		return t.send(c)
	case c.request.want == wantSink || c.request.want == wantBulk:
		return t.move(c)
	}
	n, err := unix.Read(c.fd, c.buf[c.got:])
	if err != nil {
		return again(err)
	}
	if c.got += n; n == 0 || c.got < RequestSize {
		return n > 0
	}
	c.got = 0
	if c.request, err = parseRequest(&c.buf); err != nil {
		return false
	}
	switch c.request.want {
	case wantReply, wantLast:
		for len(t.reply) < int(c.request.reply) {
			t.reply = append(t.reply, make([]byte, blockSize)...)
		}
		c.unsent = t.reply[:c.request.reply]
		return t.send(c)
	case wantBulk:
		c.since = time.Now()
		return t.waitForRoom(c, true)
	}
	return true
}

// send writes what it can of a reply.
func (t *streams) send(c *serverConn) bool {
	n, err := unix.Write(c.fd, c.unsent)
	if err != nil && !again(err) {
		return false
	}
	c.unsent = c.unsent[max(n, 0):]
	if len(c.unsent) == 0 && c.request.want != wantReply {
		return false
	}
	return t.waitForRoom(c, len(c.unsent) > 0)
}

// waitForRoom has the connection served when it can be written to, or, as at
// first, when there is something to read.
func (t *streams) waitForRoom(c *serverConn, room bool) bool {
	if c.writing == room {
		return true
	}
	c.writing = room
	if room {
		return t.poll.change(c.fd, unix.EPOLLOUT) == nil
	}
	return t.poll.change(c.fd, unix.EPOLLIN) == nil
}

// move moves bulk as long as it goes, but not so long that others wait.
func (t *streams) move(c *serverConn) bool {
	for range blocksAtATime {
		n, alive := 0, false
		if c.request.want == wantSink {
			n, alive = t.sink(c)
		} else {
			n, alive = t.fill(c)
		}
		if !alive || n < blockSize {
			return alive
		}
	}
	return true
}

// sink reads one block, and at the end of the stream sends the account of it.
func (t *streams) sink(c *serverConn) (n int, alive bool) {
	n, err := unix.Read(c.fd, t.block[:])
	if err != nil {
		return 0, again(err)
	}
	now := time.Now()
	if n == 0 {
		c.account.end(now, c.since, c.warmed)
		c.unsent = c.account.append(nil)
		return 0, t.send(c)
	}
	c.account.total += uint64(n)
	switch {
	case c.since.IsZero():
		c.since = now
	case !c.warmed.IsZero():
		c.account.bytes += uint64(n)
	case now.Sub(c.since) >= c.request.warmup:
		c.warmed = now
	}
	return n, true
}

// fill writes one block, until the time is over.
func (t *streams) fill(c *serverConn) (n int, alive bool) {
	if time.Since(c.since) > c.request.warmup+c.request.duration {
		return 0, false
	}
	n, err := unix.Write(c.fd, t.block[:])
	return n, err == nil || again(err)
}
