//go:build linux

package portmap_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/portmap"
)

// The owner of a link's ports is a string in these tests. A server tells a
// client who it is: the owner, or "own" if it is the recipient's.

var (
	webdb = netip.MustParseAddr("127.77.0.2")
	cache = netip.MustParseAddr("127.77.0.3")
)

func tcp(numbers ...uint16) []link.Port { return portsOf(link.TCP, numbers) }
func udp(numbers ...uint16) []link.Port { return portsOf(link.UDP, numbers) }

func portsOf(proto link.Proto, numbers []uint16) []link.Port {
	var ports []link.Port
	for _, n := range numbers {
		ports = append(ports, link.Port{Number: n, Proto: proto})
	}
	return ports
}

// sink serves clients the name of the owner of the port they came to.
type sink struct {
	t     testing.TB
	m     atomic.Pointer[portmap.Map[string]]
	fail  error // of Packets
	mu    sync.Mutex
	tcp   int // listeners being served
	udp   int
	stray int // connections without an owner
}

func (s *sink) count(n *int, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n += by
}

func (s *sink) Listen(fd int) (stop func() error, err error) {
	f := os.NewFile(uintptr(fd), "listener")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	s.count(&s.tcp, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		serveNames(l, func(local netip.AddrPort) string {
			owner, found := s.m.Load().Lookup(local, link.TCP)
			if !found {
				s.count(&s.stray, 1)
			}
			return owner
		})
	})
	return func() error {
		err := l.Close()
		wait.Wait()
		s.count(&s.tcp, -1)
		return err
	}, nil
}

// serveNames writes name(local address) to each connection, and closes it when
// the client has closed.
func serveNames(l net.Listener, name func(local netip.AddrPort) string) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		local := c.LocalAddr().(*net.TCPAddr).AddrPort()
		fmt.Fprintf(c, "%s %v", name(netip.AddrPortFrom(local.Addr().Unmap(), local.Port())), local)
		c.(*net.TCPConn).CloseWrite()
		wait.Go(func() {
			defer c.Close()
			io.Copy(io.Discard, c)
		})
	}
}

func (s *sink) Packets(recv, reply int) (stop func() error, err error) {
	if s.fail != nil {
		return nil, s.fail
	}
	f := os.NewFile(uintptr(recv), "packets")
	pc, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	s.count(&s.udp, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		data, control := make([]byte, 65536), make([]byte, 256)
		for {
			n, cn, _, client, err := pc.(*net.UDPConn).ReadMsgUDPAddrPort(data, control)
			if err != nil {
				return
			}
			s.answer(reply, data[:n], control[:cn], client)
		}
	})
	return func() error {
		err := pc.Close()
		wait.Wait()
		s.count(&s.udp, -1)
		return errors.Join(err, unix.Close(reply))
	}, nil
}

// answer sends a datagram back, with the name of the owner in front of it if
// it says "who?". If it says "go!", the answer is that nobody is there.
func (s *sink) answer(reply int, data, control []byte, client netip.AddrPort) {
	local, ok := originalDst(control)
	if !ok {
		s.t.Error("a datagram does not say where it was sent")
		return
	}
	owner, found := s.m.Load().Lookup(local, link.UDP)
	if !found {
		s.count(&s.stray, 1)
		return
	}
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	to := &unix.SockaddrInet4{Addr: client.Addr().As4()}
	var packet []byte
	switch string(data) {
	case "go!":
		packet = appendUnreachable(nil, local, client)
	case "who?":
		data = fmt.Appendf(nil, "%s %v", owner, local)
		fallthrough
	default:
		packet = append(appendDatagram(nil, local, client, len(data)), data...)
	}
	if err := unix.Sendto(reply, packet, 0, to); err != nil {
		s.t.Errorf("answering a datagram of %d bytes: %v", len(data), err)
	}
}

func originalDst(control []byte) (netip.AddrPort, bool) {
	messages, _ := unix.ParseSocketControlMessage(control)
	for _, m := range messages {
		if dst, err := unix.ParseOrigDstAddr(&m); err == nil {
			in4 := dst.(*unix.SockaddrInet4)
			return netip.AddrPortFrom(netip.AddrFrom4(in4.Addr), uint16(in4.Port)), true
		}
	}
	return netip.AddrPort{}, false
}

// serve opens a Map on n with a sink.
func serve(t testing.TB, n *netns.Namespace) (*portmap.Map[string], *sink) {
	t.Helper()
	return serveWith(t, func(s *sink) (*portmap.Map[string], error) {
		return portmap.Open[string](n, s, slog.New(slog.NewTextHandler(t.Output(), nil)))
	})
}

func serveWith(t testing.TB, open func(*sink) (*portmap.Map[string], error)) (*portmap.Map[string], *sink) {
	t.Helper()
	s := &sink{t: t}
	m, err := open(s)
	if err != nil {
		t.Fatal(err)
	}
	s.m.Store(m)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("closing the map: %v", err)
		}
		if s.tcp != 0 || s.udp != 0 {
			t.Errorf("after Close %d listeners and %d packet sockets are still served", s.tcp, s.udp)
		}
	})
	return m, s
}

func set(t testing.TB, m *portmap.Map[string], alias netip.Addr, ports []link.Port, owner string) {
	t.Helper()
	if err := m.Set(alias, ports, owner); err != nil {
		t.Fatal(err)
	}
}

// dialIn connects from n.
func dialIn(n *netns.Namespace, network, from, to string) (c net.Conn, err error) {
	err = n.Do(func() error {
		// Literal addresses: the package net starts no goroutine for them.
		d := net.Dialer{Timeout: 10 * time.Second, FallbackDelay: -1}
		d.SetMultipathTCP(false)
		if from != "" {
			if network[:3] == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
			} else {
				d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))
			}
		}
		c, err = d.DialContext(context.Background(), network, to)
		return err
	})
	return c, err
}

// dialMapped connects an AF_INET6 socket of n to an IPv4 address, as programs
// do that use such sockets for everything. The package net would not.
func dialMapped(n *netns.Namespace, network string, to netip.AddrPort) (c net.Conn, err error) {
	kind := unix.SOCK_STREAM
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	err = n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
	return c, err
}

// who connects to an address in n and returns what the server there says of
// itself, "refused", or the error.
func who(t testing.TB, n *netns.Namespace, network, to string) string {
	t.Helper()
	var c net.Conn
	var err error
	if network, mapped := strings.CutSuffix(network, " mapped"); mapped {
		c, err = dialMapped(n, network, netip.MustParseAddrPort(to))
	} else {
		c, err = dialIn(n, network, "", to)
	}
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if network[:3] == "udp" {
			c.Write([]byte("who?"))
		}
		b := make([]byte, 100)
		var k int
		if k, err = c.Read(b); err == nil {
			return string(b[:k])
		}
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		return "refused"
	}
	return err.Error()
}

func wantWho(t testing.TB, n *netns.Namespace, network, to, want string) {
	t.Helper()
	if got := who(t, n, network, to); got != want {
		t.Errorf("%s %s: %s, want %s", network, to, got, want)
	}
}

// ownServer runs a server of the recipient's own until it is closed.
func ownServer(t testing.TB, n *netns.Namespace, network, addr string) io.Closer {
	t.Helper()
	s, err := tryOwnServer(n, network, addr, true)
	if err != nil {
		t.Fatalf("the recipient's own server: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

type server struct {
	io.Closer
	wait *sync.WaitGroup
}

func (s server) Close() error {
	err := s.Closer.Close()
	s.wait.Wait()
	return err
}

// tryOwnServer is ownServer with the choice of SO_REUSEADDR.
func tryOwnServer(n *netns.Namespace, network, addr string, reuse bool) (io.Closer, error) {
	if addr[0] != '[' {
		network += "4" // or the package net would make 0.0.0.0 an IPv6 socket
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			if !reuse { // the package net sets it
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
			}
			if network[:3] == "udp" {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
		})
	}}
	config.SetMultipathTCP(false)
	s := server{wait: new(sync.WaitGroup)}
	err := n.Do(func() error {
		if network[:3] == "tcp" {
			l, err := config.Listen(context.Background(), network, addr)
			if err != nil {
				return err
			}
			s.Closer = l
			s.wait.Go(func() { serveNames(l, func(netip.AddrPort) string { return "own" }) })
			return nil
		}
		pc, err := config.ListenPacket(context.Background(), network, addr)
		if err != nil {
			return err
		}
		s.Closer = pc
		s.wait.Go(func() { serveOwnPackets(pc.(*net.UDPConn)) })
		return nil
	})
	return s, err
}

// serveOwnPackets answers from the address that was asked, which for a loopback
// address is not what the kernel would choose.
func serveOwnPackets(pc *net.UDPConn) {
	b, control := make([]byte, 100), make([]byte, 256)
	for {
		_, n, _, from, err := pc.ReadMsgUDPAddrPort(b, control)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		pc.WriteMsgUDPAddrPort([]byte("own"), control[:n], from)
	}
}
