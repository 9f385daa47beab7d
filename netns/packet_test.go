//go:build linux

package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// answer is what the UDP servers of these tests send back.
func answer(client netip.AddrPort, question []byte) []byte {
	return fmt.Appendf(nil, "%s to %v", question, client.Addr().Unmap())
}

// serve calls loop with a UDP socket of n on addr until the test ends, when
// the socket is closed.
func serve(t testing.TB, n *netns.Namespace, addr string, loop func(*net.UDPConn) error) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
	}}
	network := "udp4"
	if addr[0] == '[' {
		network = "udp"
	}
	var c net.PacketConn
	netnstest.Do(t, n, func() (err error) {
		c, err = config.ListenPacket(context.Background(), network, addr)
		return err
	})
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		for {
			if err := loop(c.(*net.UDPConn)); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}()
}

// echo answers one datagram, from whatever address the kernel chooses.
func echo(c *net.UDPConn) error {
	b := make([]byte, 65536)
	k, from, err := c.ReadFromUDPAddrPort(b)
	if err == nil {
		_, err = c.WriteToUDPAddrPort(answer(from, b[:k]), from)
	}
	return err
}

// echoFrom answers one datagram from the address it was sent to.
func echoFrom(c *net.UDPConn) error {
	b, control := make([]byte, 65536), make([]byte, 256)
	k, cn, _, from, err := c.ReadMsgUDPAddrPort(b, control)
	if err == nil {
		messages, _ := unix.ParseSocketControlMessage(control[:cn])
		for _, m := range messages {
			if m.Header.Type == unix.IP_PKTINFO {
				copy(m.Data[:4], []byte{0, 0, 0, 0}) // any interface
				_, _, err = c.WriteMsgUDPAddrPort(answer(from, b[:k]), control[:cn], from)
			}
		}
	}
	return err
}

func packetFlow(t testing.TB, s *netns.Source, port uint16) net.Conn {
	t.Helper()
	fd, to, err := s.PacketSocket(port)
	if err != nil {
		t.Fatal(err)
	}
	c, err := connect(t, fd, to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask sends a datagram and returns the answer.
func ask(t testing.TB, c net.Conn) (string, error) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("answer")); err != nil {
		return "", err
	}
	b := make([]byte, 64)
	k, err := c.Read(b)
	return string(b[:k]), err
}

func TestPacketServerSeesTheRecipient(t *testing.T) {
	for _, test := range []struct {
		name           string
		recipient, own netip.Addr
		sees           netip.Addr
	}{
		{"both have addresses", recipientAddr, sourceAddr, recipientAddr},
		{"a recipient without address", netip.Addr{}, sourceAddr, strangerAddr},
		{"a source without address", recipientAddr, netip.Addr{}, recipientAddr},
		{"neither has an address", netip.Addr{}, netip.Addr{}, strangerAddr},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, _ := pair(t)
			d := prepare(t, n)
			s := source(t, d, test.recipient, test.own)
			own := test.own
			if !own.IsValid() {
				own = localhost
			}
			for i, server := range []struct {
				addr string
				loop func(*net.UDPConn) error
			}{
				{"0.0.0.0", echo},
				{"[::]", echo},
				{own.String(), echo},
				{"0.0.0.0", echoFrom},
			} {
				port := uint16(53 + i)
				serve(t, n, fmt.Sprintf("%s:%d", server.addr, port), server.loop)
				c := packetFlow(t, s, port)
				defer c.Close()
				got, err := ask(t, c)
				if want := fmt.Sprintf("answer to %v", test.sees); got != want {
					t.Errorf("server %d on %s: %q, %v; want %q", i, server.addr, got, err, want)
				}
			}
			c := packetFlow(t, s, 99)
			defer c.Close()
			if got, err := ask(t, c); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("asking where no server is = %q, %v; want ECONNREFUSED", got, err)
			}
		})
	}
}

// While there is a flow over the link, the recipient and the source also talk
// past it, both ways, and with the very port that the link is for.
func TestOtherPacketsAreUnaffected(t *testing.T) {
	n, r := pair(t)
	serve(t, n, "0.0.0.0:53", echo)
	serve(t, r, "0.0.0.0:53", echo)
	link := packetFlow(t, source(t, prepare(t, n), recipientAddr, sourceAddr), 53)
	defer link.Close()
	if got, err := ask(t, link); got != "answer to 10.77.0.3" {
		t.Fatalf("over the link: %q, %v", got, err)
	}
	for _, test := range []struct {
		name string
		from *netns.Namespace
		to   string
		want string
	}{
		{"recipient to source", r, "10.77.0.2:53", "answer to 10.77.0.3"},
		{"source to recipient", n, "10.77.0.3:53", "answer to 10.77.0.2"},
		{"source to itself", n, "10.77.0.2:53", "answer to 10.77.0.2"},
		{"source to its loopback", n, "127.0.0.1:53", "answer to 127.0.0.1"},
	} {
		c, err := dialIn(t, test.from, "udp4", test.to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := ask(t, c); got != test.want {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	if got, err := ask(t, link); got != "answer to 10.77.0.3" {
		t.Errorf("over the link again: %q, %v", got, err)
	}
}

// packetRules are the rules for the recipient's answers.
func packetRules(t *testing.T, n *netns.Namespace) string {
	t.Helper()
	var found []string
	for _, line := range strings.Split(ip(t, n, "-4", "rule"), "\n") {
		if strings.Contains(line, "ipproto udp") {
			found = append(found, line)
		}
	}
	return strings.Join(found, "\n")
}

func TestOneRuleForAllPorts(t *testing.T) {
	n, _ := pair(t)
	s := source(t, prepare(t, n), recipientAddr, sourceAddr)
	for _, step := range []struct {
		port uint16
		want string
	}{
		{53, "sport 53 dport 61000-65534"},
		{53, "sport 53 dport 61000-65534"},
		{40, "sport 40-53 dport 61000-65534"},
		{45, "sport 40-53 dport 61000-65534"},
		{65534, "sport 40-65534 dport 61000-65534"},
		{65535, "dport 61000-65534"}, // no range of a rule can hold 65535
	} {
		fd, _, err := s.PacketSocket(step.port)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		want := "77: from all to 10.77.0.3 ipproto udp " + step.want + " lookup 27755"
		if got := packetRules(t, n); got != want {
			t.Errorf("with port %d:\n%s\nwant\n%s", step.port, got, want)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got := packetRules(t, n); got != "" {
		t.Errorf("after Close:\n%s", got)
	}
}

// Two recipients can have one address in a source's eyes.
func TestRecipientsWithoutAddressShareARoute(t *testing.T) {
	n, _ := pair(t)
	serve(t, n, "0.0.0.0:53", echo)
	d := prepare(t, n)
	a, b := source(t, d, netip.Addr{}, sourceAddr), source(t, d, netip.Addr{}, sourceAddr)
	for _, s := range []*netns.Source{a, b} {
		c := packetFlow(t, s, 53)
		defer c.Close()
		if got, err := ask(t, c); got != "answer to 192.0.0.8" {
			t.Errorf("%q, %v", got, err)
		}
	}
	a.Close()
	a.Close() // counts once
	c := packetFlow(t, b, 53)
	defer c.Close()
	if got, err := ask(t, c); got != "answer to 192.0.0.8" {
		t.Errorf("after one of the two is closed: %q, %v", got, err)
	}
}

func TestManyFlows(t *testing.T) {
	n, _ := pair(t)
	serve(t, n, "0.0.0.0:53", echo)
	s := source(t, prepare(t, n), recipientAddr, sourceAddr)
	const flows = 5000 // more than there are ports kept for them
	ports := make(map[string]bool)
	for i := range flows {
		c := packetFlow(t, s, 53)
		defer c.Close()
		if got, err := ask(t, c); got != "answer to 10.77.0.3" {
			t.Fatalf("flow %d: %q, %v", i, got, err)
		}
		ports[c.LocalAddr().String()] = true
	}
	if len(ports) != flows {
		t.Errorf("%d flows have %d addresses", flows, len(ports))
	}
	want := "77: from all to 10.77.0.3 ipproto udp sport 53 lookup 27755"
	if got := packetRules(t, n); got != want {
		t.Errorf("with %d flows:\n%s\nwant\n%s", flows, got, want)
	}
}
