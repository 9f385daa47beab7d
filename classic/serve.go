package classic

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
)

// Server listens on ports and forwards them. Its zero values are ready to use
// but for Engine.
type Server struct {
	// Listen is the address to listen on, IPv4. The zero Addr is all.
	Listen netip.Addr
	// Engine carries the connections. It is running, and the caller's to close.
	Engine *relay.Engine
	// Drain is how long connections may take to end by themselves once it is
	// to stop. 0 is not at all.
	Drain time.Duration
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger
}

// served is a port that is listened on.
type served struct {
	link *relay.Link
	stop func() error
}

// Run forwards until ctx ends, and calls ready once all ports are listened on.
// It returns when all connections have ended. The error is that a port cannot
// be listened on.
func (s *Server) Run(ctx context.Context, forwards []Forward, ready func()) error {
	var all []served
	defer func() {
		for _, p := range all {
			p.stop()
		}
		s.drain(all)
	}()
	for _, f := range forwards {
		p, err := s.serve(f)
		if err != nil {
			return fmt.Errorf("listening on port %v, which %s names: %w", f.Port, f.Variable, err)
		}
		all = append(all, p)
		s.log().Info("forwarding", "port", f.Port.String(), "to", f.To, "variable", f.Variable)
	}
	ready()
	<-ctx.Done()
	return nil
}

func (s *Server) serve(f Forward) (p served, err error) {
	p.link = &relay.Link{Source: source{f.To}}
	route := func(netip.AddrPort) *relay.Link { return p.link }
	kind := unix.SOCK_STREAM
	if f.Port.Proto == link.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := s.bind(kind, f.Port.Number)
	if err != nil {
		return p, err
	}
	if kind == unix.SOCK_DGRAM {
		l, err := s.Engine.ServePackets(fd, -1, route)
		if err != nil {
			unix.Close(fd)
			return p, err
		}
		p.stop = l.Close
		return p, nil
	}
	if p.stop, err = s.accept(fd, route); err != nil {
		unix.Close(fd)
	}
	return p, err
}

// bind makes a socket for a port.
func (s *Server) bind(kind int, port uint16) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if kind == unix.SOCK_STREAM { // connections of an earlier process may still linger
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	address := unix.SockaddrInet4{Port: int(port)}
	if s.Listen.IsValid() {
		address.Addr = s.Listen.As4()
	}
	if err == nil {
		err = unix.Bind(fd, &address)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// accept has the engine accept connections from fd, which it owns if there is
// no error.
func (s *Server) accept(fd int, route func(netip.AddrPort) *relay.Link) (stop func() error, err error) {
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, err
	}
	l, err := s.Engine.Serve(fd, route)
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

// drain gives connections time to end by themselves, and resets the rest.
func (s *Server) drain(all []served) {
	left := func() (n int64) {
		for _, p := range all {
			n += p.link.Stats().Open
		}
		return n
	}
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(s.Drain); left() > 0 && time.Now().Before(end); {
		<-ticker.C
	}
	if n := left(); n > 0 {
		s.log().Warn("cut connections that did not end in time", "connections", n, "waited", s.Drain)
	}
	for _, p := range all {
		p.link.Cut()
	}
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// source makes the sockets to an address.
type source struct{ to netip.AddrPort }

var _ relay.Source = source{}

func (s source) Socket(uint16) (int, netip.AddrPort, error)       { return s.socket(unix.SOCK_STREAM) }
func (s source) PacketSocket(uint16) (int, netip.AddrPort, error) { return s.socket(unix.SOCK_DGRAM) }

func (s source) socket(kind int) (int, netip.AddrPort, error) {
	family := unix.AF_INET
	if !s.to.Addr().Unmap().Is4() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, s.to, fmt.Errorf("making a socket for %v: %w", s.to, err)
	}
	return fd, s.to, nil
}

// ErrNone says that no variable of a link was found.
var ErrNone = errors.New("there is no variable of a link, like DB_PORT_5432_TCP=tcp://172.17.0.2:5432")
