//go:build linux

package netns_test

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// usualControl is what connections have if nobody says otherwise. Where that
// is reno as well, these tests do not tell much.
func usualControl(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func congestionControl(t testing.TB, c net.Conn) (name string) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		name, failed = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return name
}

// listen returns a function that accepts the next connection.
func listen(t testing.TB, n *netns.Namespace, addr string) func() net.Conn {
	t.Helper()
	var l net.Listener
	netnstest.Do(t, n, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return func() net.Conn {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func dialPlainly(t testing.TB, n *netns.Namespace, to string) (c net.Conn) {
	t.Helper()
	netnstest.Do(t, n, func() (err error) {
		c, err = net.Dial("tcp4", to)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSourcesConnectionsAreNotPaced(t *testing.T) {
	n, recipient := pair(t)
	accept := listen(t, n, "0.0.0.0:80")
	c, err := dial(t, source(t, prepare(t, n), recipientAddr, sourceAddr), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if client, server := congestionControl(t, c), congestionControl(t, accept()); client != "reno" || server != "reno" {
		t.Errorf("%q at the ambassador's end, %q at the server's", client, server)
	}
	// What is not of links is not touched, be it on the same port.
	usual := usualControl(t)
	c = dialPlainly(t, recipient, sourceAddr.String()+":80")
	if client, server := congestionControl(t, c), congestionControl(t, accept()); client != usual || server != usual {
		t.Errorf("without a link: %q at the client's end, %q at the server's, want %q", client, server, usual)
	}
}

func TestRouteAliases(t *testing.T) {
	n, usual := netnstest.New(t), usualControl(t)
	accept := listen(t, n, "0.0.0.0:80")
	check := func(when, to, want string) {
		t.Helper()
		c := dialPlainly(t, n, to+":80")
		if got := congestionControl(t, c); got != want {
			t.Errorf("%s: %q for a connection to %s, want %q", when, got, to, want)
		}
		accept()
		if from := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); from != localhost {
			t.Errorf("%s: the client's address is %v for a connection to %s", when, from, to)
		}
	}
	before := ip(t, n, "route", "show", "table", "all")
	aliases := netip.MustParsePrefix("127.77.0.0/16")
	check("before", "127.77.0.2", usual)
	undo, err := n.RouteAliases(aliases)
	if err != nil {
		t.Fatal(err)
	}
	check("routed", "127.77.0.2", "reno")
	check("routed", "127.77.255.254", "reno")
	check("routed", "127.78.0.2", usual)
	again, err := n.RouteAliases(aliases) // as after an ambassador was killed
	if err != nil {
		t.Fatal(err)
	}
	check("routed again", "127.77.0.2", "reno")
	for range 2 {
		if err := undo(); err != nil {
			t.Error(err)
		}
	}
	if err := again(); err != nil {
		t.Error(err)
	}
	check("after", "127.77.0.2", usual)
	if after := ip(t, n, "route", "show", "table", "all"); after != before {
		t.Errorf("routes after:\n%s\nbefore:\n%s", after, before)
	}
}
