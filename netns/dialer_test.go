//go:build linux

package netns_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

var (
	sourceAddr    = netip.MustParseAddr("10.77.0.2")
	recipientAddr = netip.MustParseAddr("10.77.0.3")
	strangerAddr  = netip.MustParseAddr("192.0.0.8")
	localhost     = netip.MustParseAddr("127.0.0.1")
)

// pair makes a source and a recipient with a cable between them.
func pair(t testing.TB) (source, recipient *netns.Namespace) {
	t.Helper()
	source, recipient = netnstest.New(t), netnstest.New(t)
	netnstest.Connect(t, "eth0", source, netip.PrefixFrom(sourceAddr, 24), recipient, netip.PrefixFrom(recipientAddr, 24))
	return source, recipient
}

func prepare(t testing.TB, n *netns.Namespace) *netns.Dialer {
	t.Helper()
	d, err := n.PrepareSource()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("closing the dialer: %v", err)
		}
	})
	return d
}

func source(t testing.TB, d *netns.Dialer, recipient, own netip.Addr) *netns.Source {
	t.Helper()
	s, err := d.Source(recipient, own)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serveAddrs runs a TCP server in n that writes the addresses of each
// connection, the client's and its own, and closes when the client has.
func serveAddrs(t testing.TB, n *netns.Namespace, addr string) {
	t.Helper()
	network := "tcp4" // or the package net would make 0.0.0.0 an IPv6 socket
	if addr[0] == '[' {
		network = "tcp"
	}
	var l net.Listener
	netnstest.Do(t, n, func() (err error) {
		l, err = net.Listen(network, addr)
		return err
	})
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		var wait sync.WaitGroup
		defer wait.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			remote := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			local := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			fmt.Fprintf(c, "%v %v", remote, local)
			wait.Go(func() {
				defer c.Close()
				io.Copy(io.Discard, c)
			})
		}
	}()
}

// connect finishes what the owner of a fresh socket has to do.
func connect(t testing.TB, fd int, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	if err == unix.EINPROGRESS {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for n := 0; n == 0; {
			if n, err = unix.Poll(p, 10_000); err == unix.EINTR {
				n = 0
			} else if n == 0 || err != nil {
				t.Fatalf("connecting to %v: no answer within ten seconds (%v)", to, err)
			}
		}
		errno, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		err = nil
		if errno != 0 {
			err = unix.Errno(errno)
		}
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	if err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c, nil
}

func dial(t testing.TB, s *netns.Source, port uint16) (net.Conn, error) {
	t.Helper()
	fd, to, err := s.Socket(port)
	if err != nil {
		t.Fatal(err)
	}
	return connect(t, fd, to)
}

// ip returns what ip(8) of iproute2 says in n: lines, sorted.
func ip(t testing.TB, n *netns.Namespace, args ...string) string {
	t.Helper()
	ns := fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), n.FD())
	out, err := exec.Command("nsenter", append([]string{ns, "ip"}, args...)...).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "FIB table does not exist") {
		t.Fatalf("ip %v: %v\n%s", args, err, out)
	} else if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// state is everything that preparing a source changes in its namespace.
func state(t testing.TB, n *netns.Namespace) string {
	t.Helper()
	var sysctls strings.Builder
	netnstest.Do(t, n, func() error {
		for _, name := range []string{"tcp_fwmark_accept", "fwmark_reflect"} {
			b, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&sysctls, "\n%s %s", name, strings.TrimSpace(string(b)))
		}
		return nil
	})
	return ip(t, n, "-4", "rule") + "\n" + ip(t, n, "-4", "route", "show", "table", "27755") + sysctls.String()
}

const (
	untouched = `0: from all lookup local
32766: from all lookup main
32767: from all lookup default

tcp_fwmark_accept 0
fwmark_reflect 0`

	prepared = `0: from all lookup local
32766: from all lookup main
32767: from all lookup default
77: from all fwmark 0x6c6b lookup 27755
local default dev lo scope host congctl reno
tcp_fwmark_accept 1
fwmark_reflect 1`

	withPackets = `0: from all lookup local
32766: from all lookup main
32767: from all lookup default
77: from all fwmark 0x6c6b lookup 27755
77: from all to 10.77.0.3 ipproto udp sport 53 dport 61000-65534 lookup 27755
local 10.77.0.3 dev lo scope host src 10.77.0.2
local default dev lo scope host congctl reno
tcp_fwmark_accept 1
fwmark_reflect 1`
)

func wantState(t testing.TB, n *netns.Namespace, when, want string) {
	t.Helper()
	if got := state(t, n); got != want {
		t.Errorf("%s:\n%s\nwant\n%s", when, got, want)
	}
}

func TestPrepareSourceLeavesNothing(t *testing.T) {
	s, _ := pair(t)
	wantState(t, s, "before", untouched)
	fds := entries(t, "fd")

	first := prepare(t, s)
	wantState(t, s, "prepared", prepared)
	second := prepare(t, s)
	wantState(t, s, "prepared twice", prepared)

	from := source(t, first, recipientAddr, sourceAddr)
	fd, _, err := from.PacketSocket(53)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, s, "with a UDP flow", withPackets)
	unix.Close(fd)
	if err := from.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, s, "without the recipient", prepared)

	if err := second.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, s, "with the first dialer only", prepared)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, s, "afterwards", untouched)
	if now := entries(t, "fd"); now != fds {
		t.Errorf("%d descriptors are open, %d were before", now, fds)
	}
	if err := first.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

// A process that was killed leaves rules behind. The next one uses them, and
// removes them all in the end.
func TestPrepareSourceAfterACrash(t *testing.T) {
	s, _ := pair(t)
	for _, args := range []string{
		"rule add fwmark 0x6c6b lookup 27755 pref 77",
		"rule add to 10.77.0.9 ipproto udp sport 1-9 lookup 27755 pref 77",
		"route add local default dev lo table 27755",
		"route add local 10.77.0.9 dev lo table 27755 src 10.77.0.2",
		// And one that is not ours.
		"rule add to 10.77.0.9 lookup 27755 pref 78",
	} {
		ip(t, s, strings.Fields(args)...)
	}
	d := prepare(t, s)
	serveAddrs(t, s, "0.0.0.0:80")
	if c, err := dial(t, source(t, d, recipientAddr, sourceAddr), 80); err != nil {
		t.Error(err)
	} else {
		// Our end closes first, and is in TIME_WAIT now: no reason to stay.
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	netnstest.Until(t, "the connection to be over", func() bool { return !established(t, s) })
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, s, "afterwards",
		strings.Replace(untouched, "default\n", "default\n78: from all to 10.77.0.9 lookup 27755\n", 1))
}

// established reports whether any TCP connection in n is open.
func established(t testing.TB, n *netns.Namespace) bool {
	t.Helper()
	open := false
	netnstest.Do(t, n, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(b), "\n")[1:] {
			f := strings.Fields(line)
			open = open || len(f) > 3 && f[3] != "0A" && f[3] != "06"
		}
		return nil
	})
	return open
}

func TestServerSeesTheRecipient(t *testing.T) {
	for _, test := range []struct {
		name           string
		recipient, own netip.Addr
		sees, at       netip.Addr
	}{
		{"both have addresses", recipientAddr, sourceAddr, recipientAddr, sourceAddr},
		{"written as IPv6", netip.AddrFrom16(recipientAddr.As16()), netip.AddrFrom16(sourceAddr.As16()), recipientAddr, sourceAddr},
		{"a recipient without address", netip.Addr{}, sourceAddr, strangerAddr, sourceAddr},
		{"an IPv6-only recipient", netip.MustParseAddr("fd00::3"), sourceAddr, strangerAddr, sourceAddr},
		{"a recipient with the source's address", sourceAddr, sourceAddr, strangerAddr, sourceAddr},
		{"a recipient with another address of the source", netip.MustParseAddr("10.78.0.2"), sourceAddr, strangerAddr, sourceAddr},
		{"a recipient with a loopback address", localhost, sourceAddr, strangerAddr, sourceAddr},
		{"a recipient with no host's address", netip.IPv4Unspecified(), sourceAddr, strangerAddr, sourceAddr},
		{"a source without address", recipientAddr, netip.Addr{}, recipientAddr, localhost},
		{"an IPv6-only source", recipientAddr, netip.MustParseAddr("fd00::2"), recipientAddr, localhost},
		{"neither has an address", netip.Addr{}, netip.Addr{}, strangerAddr, localhost},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, _ := pair(t)
			netnstest.Address(t, n, "eth0", netip.MustParsePrefix("10.78.0.2/24"))
			d := prepare(t, n)
			serveAddrs(t, n, "0.0.0.0:80")
			serveAddrs(t, n, "[::]:81")
			s := source(t, d, test.recipient, test.own)
			if s.Addr() != test.sees {
				t.Errorf("Addr = %v, want %v", s.Addr(), test.sees)
			}
			for _, port := range []uint16{80, 81} {
				c, err := dial(t, s, port)
				if err != nil {
					t.Fatalf("port %d: %v", port, err)
				}
				got := make([]byte, 64)
				k, err := c.Read(got)
				if want := fmt.Sprint(test.sees, " ", test.at); string(got[:k]) != want {
					t.Errorf("port %d: the server says %q, %v; want %q", port, got[:k], err, want)
				}
				c.Close()
			}
			if _, err := dial(t, s, 82); err != unix.ECONNREFUSED {
				t.Errorf("connecting where nobody listens = %v, want ECONNREFUSED", err)
			}
		})
	}
}

// Strict reverse path filtering and connection tracking see a recipient's
// address come from lo.
func TestServerSeesTheRecipientBehindFilters(t *testing.T) {
	n, _ := pair(t)
	netnstest.Do(t, n, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0)
	})
	// What the engine sets up in a container of a user-defined network, for
	// its name server.
	ns := fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), n.FD())
	out, err := exec.Command("nsenter", ns, "iptables", "-w", "-t", "nat", "-A", "OUTPUT",
		"-d", "127.0.0.11", "-p", "udp", "--dport", "53", "-j", "DNAT", "--to-destination", "127.0.0.11:34567").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d := prepare(t, n)
	serveAddrs(t, n, "0.0.0.0:80")
	s := source(t, d, recipientAddr, sourceAddr)
	c, err := dial(t, s, 80)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, 64)
	if k, err := c.Read(got); string(got[:k]) != "10.77.0.3 10.77.0.2" {
		t.Errorf("the server says %q, %v", got[:k], err)
	}
	if _, err := dial(t, s, 82); err != unix.ECONNREFUSED {
		t.Errorf("connecting where nobody listens = %v, want ECONNREFUSED", err)
	}
}

// dialIn connects from n itself, like any program there.
func dialIn(t testing.TB, n *netns.Namespace, network, addr string) (c net.Conn, err error) {
	t.Helper()
	err = n.Do(func() error {
		// One literal address: the package net starts no goroutine for that.
		d := net.Dialer{Timeout: 10 * time.Second, FallbackDelay: -1}
		d.SetMultipathTCP(false)
		c, err = d.DialContext(context.Background(), network, addr)
		return err
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

// While the recipient is connected over a link, everything else between the
// two goes its ordinary way.
func TestOtherTrafficIsUnaffected(t *testing.T) {
	n, r := pair(t)
	d := prepare(t, n)
	serveAddrs(t, n, "0.0.0.0:80")
	serveAddrs(t, r, "0.0.0.0:80")
	link, err := dial(t, source(t, d, recipientAddr, sourceAddr), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	for _, test := range []struct {
		name string
		from *netns.Namespace
		to   string
		want string
	}{
		{"recipient to source", r, "10.77.0.2:80", "10.77.0.3 10.77.0.2"},
		{"source to recipient", n, "10.77.0.3:80", "10.77.0.2 10.77.0.3"},
		{"source to itself", n, "10.77.0.2:80", "10.77.0.2 10.77.0.2"},
		{"source to its loopback", n, "127.0.0.1:80", "127.0.0.1 127.0.0.1"},
	} {
		c, err := dialIn(t, test.from, "tcp4", test.to)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		got := make([]byte, 64)
		if k, err := c.Read(got); string(got[:k]) != test.want {
			t.Errorf("%s: the server says %q, %v; want %q", test.name, got[:k], err, test.want)
		}
		c.Close()
	}
	for _, from := range []*netns.Namespace{n, r} {
		if _, err := dialIn(t, from, "tcp4", "10.77.0.3:81"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dialing a closed port = %v, want ECONNREFUSED", err)
		}
	}
}

// Connections outlive the Dialer they came from: the routing stays for them.
func TestCloseKeepsOpenConnectionsAlive(t *testing.T) {
	n, _ := pair(t)
	serveAddrs(t, n, "0.0.0.0:80")
	d := prepare(t, n)
	c, err := dial(t, source(t, d, recipientAddr, sourceAddr), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, n, "with an open connection", prepared)
	if got, err := io.ReadAll(io.LimitReader(c, 19)); string(got) != "10.77.0.3 10.77.0.2" {
		t.Errorf("read %q, %v from a connection older than Close", got, err)
	}
}

// A recipient that closes first leaves its port in TIME_WAIT for a minute.
// Such ports can be used again much sooner.
func TestPortsAreReusedSoon(t *testing.T) {
	n, _ := pair(t)
	netnstest.Do(t, n, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40009"), 0)
	})
	d := prepare(t, n)
	serveAddrs(t, n, "0.0.0.0:80")
	s := source(t, d, recipientAddr, sourceAddr)
	for range 30 {
		netnstest.Until(t, "a free port", func() bool {
			c, err := dial(t, s, 80)
			if err == unix.EADDRNOTAVAIL {
				return false
			}
			if err != nil {
				t.Fatal(err)
			}
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
			c.Close()
			return true
		})
	}
}

// The connections have ports of the source's namespace. They must not be in
// the way of a server there.
func TestServerCanBindAConnectionsPort(t *testing.T) {
	n, _ := pair(t)
	d := prepare(t, n)
	serveAddrs(t, n, "0.0.0.0:80")
	c, err := dial(t, source(t, d, recipientAddr, sourceAddr), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := c.LocalAddr().(*net.TCPAddr).Port
	serveAddrs(t, n, fmt.Sprintf("0.0.0.0:%d", port)) // package net sets SO_REUSEADDR
}

func TestDialerAfterClose(t *testing.T) {
	n, _ := pair(t)
	d := prepare(t, n)
	s := source(t, d, recipientAddr, sourceAddr)
	d.Close()
	if fd, _, err := s.Socket(80); fd != -1 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("Socket after Close = %d, %v; want os.ErrClosed", fd, err)
	}
	if fd, _, err := s.PacketSocket(80); fd != -1 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("PacketSocket after Close = %d, %v; want os.ErrClosed", fd, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	wantState(t, n, "afterwards", untouched)
}

// A stock of sockets must not keep a dead source's namespace alive.
func TestCloseLetsTheNamespaceGo(t *testing.T) {
	n, r := pair(t)
	d := prepare(t, n)
	s := source(t, d, recipientAddr, sourceAddr)
	for _, get := range []func(uint16) (int, netip.AddrPort, error){s.Socket, s.PacketSocket} {
		fd, _, err := get(80)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	if err := errors.Join(s.Close(), d.Close(), n.Close()); err != nil {
		t.Error(err)
	}
	netnstest.Until(t, "the other end of the cable to be gone", func() bool {
		return !strings.Contains(ip(t, r, "link"), "eth0")
	})
}
