//go:build linux

package netns_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// checkFlags asserts what every descriptor this package hands out has to be.
func checkFlags(t *testing.T, fd int) {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	if flags&unix.FD_CLOEXEC == 0 {
		t.Error("the socket would stay open in other programs")
	}
	flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("the socket blocks")
	}
}

func checkOption(t *testing.T, fd, level, name, want int) {
	t.Helper()
	if got, err := unix.GetsockoptInt(fd, level, name); err != nil || got != want {
		t.Errorf("option %d/%d = %d, %v; want %d", level, name, got, err, want)
	}
}

func localPort(t *testing.T, fd int) int {
	t.Helper()
	addr, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return addr.(*unix.SockaddrInet4).Port
}

func TestListenTCP(t *testing.T) {
	n := netnstest.New(t)
	fd, err := n.ListenTCP(netip.MustParseAddrPort("127.77.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	checkFlags(t, fd)
	// MPTCP would be IPPROTO_MPTCP, 262.
	checkOption(t, fd, unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP)
	checkOption(t, fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1)
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	// Of a listener, this is the bound of its backlog.
	if info.Sacked < 4096 {
		t.Errorf("the backlog is %d, want 4096 at least", info.Sacked)
	}

	addr := &unix.SockaddrInet4{Addr: [4]byte{127, 77, 0, 1}, Port: localPort(t, fd)}
	netnstest.Do(t, n, func() error {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(c)
		return unix.Connect(c, addr)
	})
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	if err := unix.Connect(c, addr); err != unix.ECONNREFUSED {
		t.Errorf("connecting in another namespace = %v, want ECONNREFUSED", err)
	}

	netnstest.Until(t, "the connection to be there", func() bool {
		accepted, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return false
		}
		defer unix.Close(accepted)
		checkOption(t, accepted, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		checkOption(t, accepted, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		return true
	})
}

func TestListenPacketsTellsTheDestination(t *testing.T) {
	n := netnstest.New(t)
	fd, err := n.ListenPackets(netip.MustParseAddrPort("0.0.0.0:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	checkFlags(t, fd)
	checkOption(t, fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 2*4<<20) // the kernel doubles it
	port := localPort(t, fd)
	netnstest.Do(t, n, func() error {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(c)
		return unix.Sendto(c, []byte("hello"), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 77, 0, 2}, Port: port})
	})
	netnstest.Until(t, "the datagram", func() bool {
		data, control := make([]byte, 16), make([]byte, 256)
		dn, cn, _, _, err := unix.Recvmsg(fd, data, control, 0)
		if err != nil {
			return false
		}
		messages, err := unix.ParseSocketControlMessage(control[:cn])
		if err != nil {
			t.Fatal(err)
		}
		var dst unix.Sockaddr
		pktinfo := false
		for _, m := range messages {
			switch m.Header.Type {
			case unix.IP_ORIGDSTADDR:
				dst, err = unix.ParseOrigDstAddr(&m)
			case unix.IP_PKTINFO:
				pktinfo = true
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if got, ok := dst.(*unix.SockaddrInet4); !ok || got.Addr != [4]byte{127, 77, 0, 2} || got.Port != port {
			t.Errorf("the destination is %+v, want 127.77.0.2:%d", dst, port)
		}
		if !pktinfo || string(data[:dn]) != "hello" {
			t.Errorf("got %q, with IP_PKTINFO: %v", data[:dn], pktinfo)
		}
		return true
	})
}

func TestRawPacketsReceivesNothing(t *testing.T) {
	n := netnstest.New(t)
	raw, err := n.RawPackets()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	checkFlags(t, raw)
	fd, err := n.ListenPackets(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: localPort(t, fd)}); err != nil {
		t.Fatal(err)
	}
	netnstest.Until(t, "the datagram", func() bool {
		_, _, err := unix.Recvfrom(fd, make([]byte, 16), 0)
		return err == nil
	})
	if _, _, err := unix.Recvfrom(raw, make([]byte, 64), 0); err != unix.EAGAIN {
		t.Errorf("the raw socket was given somebody else's datagram (%v)", err)
	}
}

func TestListenUnixIsInTheNamespace(t *testing.T) {
	n := netnstest.New(t)
	fd, err := n.ListenUnix("linkrun.test")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	checkFlags(t, fd)
	connect := func() error {
		c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(c)
		return unix.Connect(c, &unix.SockaddrUnix{Name: "@linkrun.test"})
	}
	netnstest.Do(t, n, connect)
	if err := connect(); err != unix.ECONNREFUSED {
		t.Errorf("connecting in another namespace = %v, want ECONNREFUSED", err)
	}
}

func TestEphemeralPorts(t *testing.T) {
	n := netnstest.New(t)
	netnstest.Do(t, n, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("2001 3002"), 0)
	})
	first, last, err := n.EphemeralPorts()
	if first != 2001 || last != 3002 || err != nil {
		t.Errorf("EphemeralPorts = %d, %d, %v; want 2001, 3002", first, last, err)
	}
}

func TestSocketErrors(t *testing.T) {
	n := netnstest.New(t)
	held, err := n.ListenTCP(netip.MustParseAddrPort("127.0.0.1:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	name, err := n.ListenUnix("taken")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(name)
	var closed netns.Namespace
	fds := entries(t, "fd")
	for _, test := range []struct {
		err  func() (int, error)
		text string
	}{
		{func() (int, error) { return n.ListenTCP(netip.MustParseAddrPort("127.0.0.1:80")) },
			"listening on 127.0.0.1:80/tcp: bind: address already in use"},
		{func() (int, error) { return n.ListenTCP(netip.MustParseAddrPort("192.0.2.1:80")) },
			"listening on 192.0.2.1:80/tcp: bind: cannot assign requested address"},
		{func() (int, error) { return n.ListenPackets(netip.MustParseAddrPort("[::1]:80")) },
			"listening on [::1]:80/udp: binding [::1]:80: not an IPv4 address"},
		{func() (int, error) { return n.ListenUnix("taken") },
			`listening on unix address "@taken": bind: address already in use`},
		{closed.RawPackets,
			"opening a raw socket: entering namespace: invalid argument"},
	} {
		if fd, err := test.err(); fd != -1 || err == nil || err.Error() != test.text {
			t.Errorf("got %d, %v\nwant error %s", fd, err, test.text)
		}
	}
	if now := entries(t, "fd"); now != fds {
		t.Errorf("the errors left %d descriptors open", now-fds)
	}
	if _, err := n.ListenTCP(netip.MustParseAddrPort("127.0.0.1:80")); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("%v does not wrap EADDRINUSE", err)
	}
}
