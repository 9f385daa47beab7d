//go:build linux

package portmap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/netns/netnstest"
	"github.com/linkrun/linkrun/portmap"
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
	want, got := make([]byte, portmap.MaxPayload), make([]byte, 65536)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	for _, size := range []int{0, 1, 5, 1471, 1472, 1473, 9000, portmap.MaxPayload - 1, portmap.MaxPayload} {
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

// The packets are what their headers say, whoever looks at them.
func FuzzPackets(f *testing.F) {
	f.Add([]byte{127, 77, 0, 2}, []byte{127, 0, 0, 1}, uint16(53), uint16(40000), uint16(512))
	f.Add([]byte{127, 77, 255, 254}, []byte{10, 0, 0, 1}, uint16(1), uint16(65535), uint16(0))
	f.Add([]byte{255, 255, 255, 255}, []byte{255, 255, 255, 255}, uint16(65535), uint16(65535), uint16(portmap.MaxPayload))
	f.Fuzz(func(t *testing.T, alias, client []byte, p, q, size uint16) {
		if len(alias) != 4 || len(client) != 4 || size > portmap.MaxPayload {
			t.Skip()
		}
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte(alias)), p)
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(client)), q)
		prefix := []byte("kept")

		b := portmap.AppendDatagram(prefix, from, to, int(size))
		if len(b) != len(prefix)+portmap.DatagramHeader || !bytes.HasPrefix(b, prefix) {
			t.Fatalf("AppendDatagram appends %d bytes", len(b)-len(prefix))
		}
		packet := append(b[len(prefix):], make([]byte, size)...)
		if err := checkPacket(packet, from, to, unix.IPPROTO_UDP); err != nil {
			t.Error(err)
		}

		packet = portmap.AppendUnreachable(prefix, from, to)[len(prefix):]
		if err := checkPacket(packet, from, to, unix.IPPROTO_ICMP); err != nil {
			t.Error(err)
		}
		icmp := packet[20:]
		if icmp[0] != 3 || icmp[1] != 3 || sum(icmp) != 0xffff {
			t.Errorf("the message is % x", icmp)
		}
		if err := checkPacket(icmp[8:], to, from, unix.IPPROTO_UDP); err != nil {
			t.Errorf("the datagram in the message: %v", err)
		}
		if sum(icmp[8:28]) != 0xffff {
			t.Error("the checksum of the datagram in the message is wrong")
		}
	})
}

func checkPacket(b []byte, from, to netip.AddrPort, proto byte) error {
	if b[0] != 0x45 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || b[9] != proto {
		return fmt.Errorf("the header of %d bytes is % x", len(b), b[:20])
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	if src != from.Addr() || dst != to.Addr() {
		return fmt.Errorf("from %v to %v, want %v to %v", src, dst, from, to)
	}
	if proto != unix.IPPROTO_UDP {
		return nil
	}
	b = b[20:]
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if sport != from.Port() || dport != to.Port() || int(binary.BigEndian.Uint16(b[4:])) != len(b) || b[6] != 0 || b[7] != 0 {
		return fmt.Errorf("the UDP header is % x", b[:8])
	}
	return nil
}

func sum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
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
		packet := make([]byte, 0, portmap.DatagramHeader)
		b.Run(fmt.Sprintf("raw/%d", size), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				header := portmap.AppendDatagram(packet[:0], from, netip.MustParseAddrPort("127.0.0.1:4000"), size)
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
