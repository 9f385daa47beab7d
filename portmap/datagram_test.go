//go:build linux

package portmap_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns/netnstest"
)

// A client may do with its socket what it wants: the answers look as if they
// came from a server at the alias.
func TestDatagramClients(t *testing.T) {
	n := netnstest.New(t)
	netnstest.Address(t, n, "lo", netip.MustParsePrefix("10.77.0.3/32"))
	m, _ := serve(t, n)
	set(t, m, webdb, udp(53, 54), "db")
	for _, from := range []string{"", "127.0.0.1:4000", "127.0.0.2:4000", "10.77.0.3:4000", "0.0.0.0:4000"} {
		c, err := dialIn(n, "udp", from, "127.77.0.2:53")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("who?"))
		b := make([]byte, 64)
		if k, err := c.Read(b); string(b[:k]) != "db 127.77.0.2:53" {
			t.Errorf("a client bound to %q reads %q, %v", from, b[:k], err)
		}
		c.Close()
	}

	// Not connected, one client to two servers.
	var pc net.PacketConn
	netnstest.Do(t, n, func() (err error) {
		pc, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	})
	defer pc.Close()
	pc.SetDeadline(time.Now().Add(10 * time.Second))
	for _, server := range []string{"127.77.0.2:53", "127.77.0.2:54"} {
		pc.WriteTo([]byte("who?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(server)))
		b := make([]byte, 64)
		k, from, err := pc.ReadFrom(b)
		if err != nil || string(b[:k]) != "db "+server || from.String() != server {
			t.Errorf("%s answers %q from %v, %v", server, b[:k], from, err)
		}
	}
}

func TestDatagramSizes(t *testing.T) {
	n := netnstest.New(t)
	m, _ := serve(t, n)
	set(t, m, webdb, udp(53), "db")
	c, err := dialIn(n, "udp", "", "127.77.0.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want, got := make([]byte, maxPayload), make([]byte, 65536)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	for _, size := range []int{0, 1, 5, 1471, 1472, 1473, 9000, maxPayload - 1, maxPayload} {
		if _, err := c.Write(want[:size]); err != nil {
			t.Fatalf("sending %d bytes: %v", size, err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if k, err := c.Read(got); err != nil || !bytes.Equal(got[:k], want[:size]) {
			t.Errorf("of %d bytes %d came back, %v", size, k, err)
		}
	}
}

func TestDatagramRefused(t *testing.T) {
	n := netnstest.New(t)
	m, _ := serve(t, n)
	set(t, m, webdb, udp(53), "db")
	c, err := dialIn(n, "udp", "", "127.77.0.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	other, err := dialIn(n, "udp", "", "127.77.0.2:53")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	other.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 64)
	c.Write([]byte("go!"))
	if k, err := c.Read(b); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the client reads %q, %v; want ECONNREFUSED", b[:k], err)
	}
	for _, c := range []net.Conn{other, c} { // it was for that datagram, not for ever
		c.Write([]byte("who?"))
		if k, err := c.Read(b); err != nil || string(b[:k]) != "db 127.77.0.2:53" {
			t.Errorf("afterwards a client reads %q, %v", b[:k], err)
		}
	}
}

// BenchmarkReply compares sending an answer from the raw socket with sending it
// from a UDP socket that is bound to the port.
func BenchmarkReply(b *testing.B) {
	n := netnstest.New(b)
	client := open(b, func() (int, error) { return n.ListenPackets(netip.MustParseAddrPort("127.0.0.1:4000")) })
	bound := open(b, func() (int, error) { return n.ListenPackets(netip.MustParseAddrPort("127.77.0.2:53")) })
	raw := open(b, n.RawPackets)
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 4000}
	from := netip.MustParseAddrPort("127.77.0.2:53")
	drain := func() {
		for {
			if _, _, err := unix.Recvfrom(client, make([]byte, 1), unix.MSG_TRUNC); err != nil {
				return
			}
		}
	}
	for _, size := range []int{64, 1400, 60000} {
		payload := make([]byte, size)
		b.Run(fmt.Sprintf("bound/%d", size), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := unix.Sendto(bound, payload, 0, to); err != nil {
					b.Fatal(err)
				}
				if i%16 == 0 {
					drain()
				}
			}
		})
		packet := make([]byte, 0, ipHeader+udpHeader)
		b.Run(fmt.Sprintf("raw/%d", size), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				header := appendDatagram(packet[:0], from, netip.MustParseAddrPort("127.0.0.1:4000"), size)
				if _, err := unix.SendmsgBuffers(raw, [][]byte{header, payload}, nil, to, 0); err != nil {
					b.Fatal(err)
				}
				if i%16 == 0 {
					drain()
				}
			}
		})
	}
}

func open(t testing.TB, make func() (int, error)) int {
	t.Helper()
	fd, err := make()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
