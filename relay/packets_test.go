package relay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packetBed is an engine with one packet listener that leads to one UDP
// server.
type packetBed struct {
	t        testing.TB
	engine   *Engine
	link     *Link
	server   *net.UDPConn
	to       *testSource
	listener *PacketListener
	front    netip.AddrPort
}

// newPacketBed answers from a raw socket if it may have one, as portmap gives
// it, or from the receiving socket.
func newPacketBed(t testing.TB, e *Engine, l *Link, raw bool) *packetBed {
	t.Helper()
	before := openDescriptors(t)
	b := &packetBed{t: t, engine: e, link: l}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	b.listen(netip.AddrPort{})
	b.to = &testSource{to: b.server.LocalAddr().(*net.UDPAddr).AddrPort()}
	if l.Source == nil {
		l.Source = b.to
	}
	recv, front := packetFD(t)
	b.front = front
	reply := -1
	if raw {
		reply = rawFD(t)
	}
	var err error
	b.listener, err = e.ServePackets(recv, reply, func(local netip.AddrPort) *Link {
		if local.Port() != front.Port() {
			t.Errorf("routed by %v, listening on %v", local, front)
		}
		return l
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		b.server.Close()
		if open := l.Stats().Open; open != 0 {
			t.Errorf("%d flows counted open after Close", open)
		}
		eventually(t, "every descriptor closed", func() bool { return openDescriptors(t) <= before })
	})
	return b
}

// listen starts the server, at addr if that is valid.
func (b *packetBed) listen(addr netip.AddrPort) {
	b.t.Helper()
	if !addr.IsValid() {
		addr = netip.MustParseAddrPort("127.0.0.1:0")
	}
	var err error
	if b.server, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr)); err != nil {
		b.t.Fatal(err)
	}
	b.server.SetReadBuffer(4 << 20)
	b.server.SetDeadline(time.Now().Add(patience))
}

// client is a connected socket: it takes answers from the address it sends to
// alone.
func (b *packetBed) client() *net.UDPConn {
	b.t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(b.front))
	if err != nil {
		b.t.Fatal(err)
	}
	c.SetReadBuffer(4 << 20)
	c.SetDeadline(time.Now().Add(patience))
	b.t.Cleanup(func() { c.Close() })
	return c
}

// echo answers every datagram with itself until the server is closed.
func (b *packetBed) echo() {
	server := b.server
	var done sync.WaitGroup
	done.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			server.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	b.t.Cleanup(func() { server.Close(); done.Wait() })
}

func (b *packetBed) roundTrip(c *net.UDPConn, p []byte) {
	b.t.Helper()
	if _, err := c.Write(p); err != nil {
		b.t.Fatal(err)
	}
	got := make([]byte, 1<<16)
	n, err := c.Read(got)
	if err != nil {
		b.t.Fatal(err)
	}
	if !bytes.Equal(got[:n], p) {
		b.t.Fatalf("%d bytes came back of %d, or others", n, len(p))
	}
}

// packetFD is a bound UDP socket as portmap would hand it over.
func packetFD(t testing.TB) (int, netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 77, 0, 2}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1); err != nil {
		t.Fatal(err)
	}
	setReceiveBuffer(int32(fd), 4<<20)
	addr, errno := localAddr(int32(fd))
	if errno != 0 {
		t.Fatal(errno)
	}
	return fd, addr
}

// rawFD is a socket for whole packets, which takes CAP_NET_RAW.
func rawFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EPERM) {
		if os.Getenv("CI") != "" {
			t.Fatal("no raw socket without CAP_NET_RAW")
		}
		t.Skip("NOT TESTED: a raw socket takes CAP_NET_RAW")
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// bothReplies runs a test with answers from a raw socket and from the
// receiving one.
func bothReplies(t *testing.T, test func(t *testing.T, raw bool)) {
	t.Run("raw", func(t *testing.T) { test(t, true) })
	t.Run("plain", func(t *testing.T) { test(t, false) })
}

func TestDatagramBoundaries(t *testing.T) {
	bothReplies(t, func(t *testing.T, raw bool) {
		b := newPacketBed(t, &Engine{}, &Link{}, raw)
		b.echo()
		c := b.client()
		total := 0
		for _, size := range []int{1, 0, 512, 1472, 1473, 9000, mostPayload, 3} {
			b.roundTrip(c, random(size))
			total += size
		}
		eventually(t, "answers counted", func() bool {
			s := b.link.Stats()
			return s.ToSource == uint64(total) && s.ToRecipient == uint64(total)
		})
		if s := b.link.Stats(); s.Open != 1 || s.Total != 1 || s.Failures != (Failures{}) {
			t.Errorf("stats %+v", s)
		}
	})
}

// Datagrams sent without a pause arrive in order, each by itself, also where
// the relay sends a row of them as one.
func TestDatagramRows(t *testing.T) {
	bothReplies(t, func(t *testing.T, raw bool) {
		b := newPacketBed(t, &Engine{}, &Link{}, raw)
		b.echo()
		c := b.client()
		next := 0
		for round := range 20 {
			sizes := []int{100, 100, 100, 60, 100, 100, 1400, 1400, 0, 0, 5, 70, 70, 70, 70, 70, 30, 30}
			first := next
			for _, size := range sizes {
				p := make([]byte, size)
				if size >= 4 {
					binary.BigEndian.PutUint32(p, uint32(next))
				}
				next++
				if _, err := c.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, 1<<16)
			for i, size := range sizes {
				n, err := c.Read(got)
				if err != nil {
					t.Fatalf("round %d, datagram %d: %v", round, i, err)
				}
				if n != size || size >= 4 && binary.BigEndian.Uint32(got) != uint32(first+i) {
					t.Fatalf("round %d: datagram %d came back as another", round, i)
				}
			}
		}
	})
}

// A client that has the kernel cut a buffer into datagrams, as QUIC senders
// do, and a source that does.
func TestSegmentationOffload(t *testing.T) {
	b := newPacketBed(t, &Engine{}, &Link{}, false)
	b.echo()
	c := b.client()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) })
	if err != nil {
		t.Skipf("no segmentation offload: %v", err)
	}
	p := random(10*1000 + 300)
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<16)
	for len(p) > 0 {
		want := p[:min(1000, len(p))]
		n, err := c.Read(got)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], want) {
			t.Fatalf("datagram of %d bytes, want %d", n, len(want))
		}
		p = p[len(want):]
	}
}

func TestManyFlows(t *testing.T) {
	bothReplies(t, func(t *testing.T, raw bool) {
		b := newPacketBed(t, &Engine{}, &Link{}, raw)
		b.echo()
		const n = 300
		clients := make([]*net.UDPConn, n)
		for i := range clients {
			clients[i] = b.client()
		}
		for round := range 3 {
			for i, c := range clients {
				if _, err := fmt.Fprintf(c, "%d of %d", i, round); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, 100)
			for i, c := range clients {
				n, err := c.Read(got)
				if err != nil {
					t.Fatal(err)
				}
				if want := fmt.Sprintf("%d of %d", i, round); string(got[:n]) != want {
					t.Fatalf("client %d got %q, want %q", i, got[:n], want)
				}
			}
		}
		if s := b.link.Stats(); s.Open != n || s.Total != n {
			t.Errorf("stats %+v, want %d flows", s, n)
		}
		if cut := b.link.Cut(); cut != n {
			t.Errorf("cut %d flows, want %d", cut, n)
		}
		b.roundTrip(clients[0], []byte("again"))
	})
}

func TestFlowTimeout(t *testing.T) {
	b := newPacketBed(t, &Engine{}, &Link{IdleTimeout: 50 * time.Millisecond}, false)
	b.echo()
	c := b.client()
	for range 2 {
		b.roundTrip(c, []byte("x"))
		eventually(t, "flow forgotten", func() bool { return b.link.Stats().Open == 0 })
	}
	if s := b.link.Stats(); s.Total != 2 || s.Failures.Idle != 2 {
		t.Errorf("stats %+v, want two flows gone idle", s)
	}
}

func TestFlowLimit(t *testing.T) {
	b := newPacketBed(t, &Engine{}, &Link{MaxConns: 2}, false)
	b.echo()
	first := b.client()
	b.roundTrip(first, []byte("x"))
	b.roundTrip(b.client(), []byte("x"))
	if _, err := b.client().Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "datagram counted", func() bool { return b.link.Stats().Failures.Limit == 1 })
	b.roundTrip(first, []byte("still"))
	if s := b.link.Stats(); s.Open != 2 {
		t.Errorf("%d flows open, want 2", s.Open)
	}
}

// A source that is down refuses datagrams as a closed port does, and one that
// is up again gets the next.
func TestSourceRestarts(t *testing.T) {
	b := newPacketBed(t, &Engine{}, &Link{}, true)
	b.echo()
	c := b.client()
	b.roundTrip(c, []byte("before"))
	addr := b.server.LocalAddr().(*net.UDPAddr).AddrPort()
	b.server.Close()
	eventually(t, "refusal", func() bool {
		_, err := c.Write([]byte("lost"))
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	eventually(t, "flow dropped", func() bool { return b.link.Stats().Open == 0 })
	b.listen(addr)
	b.echo()
	eventually(t, "answer", func() bool {
		c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.Write([]byte("after")); err != nil {
			return false // the refusal of one before
		}
		n, err := c.Read(make([]byte, 100))
		return err == nil && n == 5
	})
	if n := b.link.Stats().Failures.Refused; n == 0 {
		t.Error("no refusal counted")
	}
}

func TestUnroutedDatagram(t *testing.T) {
	e := &Engine{Workers: 1}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	recv, front := packetFD(t)
	l, err := e.ServePackets(recv, rawFD(t), func(netip.AddrPort) *Link { return nil })
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(front))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("read %v, want a refusal", err)
	}
	if n := e.Stats().Unrouted; n != 1 {
		t.Errorf("%d unrouted, want 1", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// A flood of new clients costs the quietest flows, and bounded memory.
func TestFlowFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 8,192 sockets")
	}
	b := newPacketBed(t, &Engine{}, &Link{}, false)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Port: int(b.front.Port()), Addr: b.front.Addr().As4()}
	var n uint64
	for port := 10000; n < maxFlows+500; port++ {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Bind(s, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		if err == nil {
			n++
			err = unix.Sendto(s, []byte("x"), 0, to)
		}
		unix.Close(s)
		if err != nil && !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
		if n%256 == 0 {
			eventually(t, "flows made", func() bool { return b.link.Stats().Total >= n })
		}
	}
	eventually(t, "flows made", func() bool { return b.link.Stats().Total >= n })
	if s := b.link.Stats(); s.Open != maxFlows || s.Failures.Limit != 500 {
		t.Errorf("stats %+v, want %d flows open", s, maxFlows)
	}
}

func TestPacketListenerErrors(t *testing.T) {
	e := &Engine{Workers: 1}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	tcp, _ := listenFD(t)
	defer unix.Close(tcp)
	_, err := e.ServePackets(tcp, -1, nil)
	if want := fmt.Sprintf("serving datagrams: taking over descriptor %d: socket type 1 where 2 is needed", tcp); err == nil || err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	udp, _ := packetFD(t)
	defer unix.Close(udp)
	if _, err := e.ServePackets(udp, -1, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v, want ErrClosed", err)
	}
}

// One socket receives for several addresses: each datagram goes to the link
// of the one it was sent to, and its answer comes from there.
func TestOriginalDestination(t *testing.T) {
	e := &Engine{Workers: 1}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1); err != nil {
		t.Fatal(err)
	}
	any, _ := localAddr(int32(fd))
	links := map[netip.AddrPort]*Link{}
	for _, alias := range []string{"127.77.0.2", "127.77.0.3"} {
		server := &packetBed{t: t}
		server.listen(netip.AddrPort{})
		conn := server.server
		var done sync.WaitGroup
		done.Go(func() {
			p := make([]byte, 100)
			for {
				_, from, err := conn.ReadFromUDPAddrPort(p)
				if err != nil {
					return
				}
				conn.WriteToUDPAddrPort([]byte(alias), from)
			}
		})
		defer done.Wait()
		defer conn.Close()
		links[netip.AddrPortFrom(netip.MustParseAddr(alias), any.Port())] = &Link{
			Source: &testSource{to: conn.LocalAddr().(*net.UDPAddr).AddrPort()},
		}
	}
	if _, err := e.ServePackets(fd, rawFD(t), func(local netip.AddrPort) *Link { return links[local] }); err != nil {
		t.Fatal(err)
	}
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	for range 3 {
		for local := range links {
			if _, err := client.WriteToUDPAddrPort([]byte("who"), local); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 100)
			n, from, err := client.ReadFromUDPAddrPort(p)
			if err != nil {
				t.Fatal(err)
			}
			if from != local || string(p[:n]) != local.Addr().String() {
				t.Errorf("%v answered for %s, asked %v", from, p[:n], local)
			}
		}
	}
	for local, l := range links {
		if s := l.Stats(); s.Total != 1 {
			t.Errorf("%v: stats %+v, want one flow", local, s)
		}
	}
}
