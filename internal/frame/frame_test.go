package frame_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/frame"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

const magic = 0x6c696e6b

var (
	addrs4 = [2]netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")}
	addrs6 = [2]netip.Addr{netip.MustParseAddr("fd08::1"), netip.MustParseAddr("fd08::2")}
)

func tap(t testing.TB, ns *netns.Namespace) (*frame.Tap, net.HardwareAddr) {
	t.Helper()
	var tap *frame.Tap
	var mac net.HardwareAddr
	netnstest.Do(t, ns, func() (err error) {
		dev, err := net.InterfaceByName("wire")
		if err != nil {
			return err
		}
		mac = dev.HardwareAddr
		tap, err = frame.Open("wire", magic)
		return err
	})
	t.Cleanup(func() { tap.Close() })
	return tap, mac
}

func cable(t testing.TB) (a, b *netns.Namespace) {
	a, b = netnstest.New(t), netnstest.New(t)
	netnstest.Connect(t, "wire", a, netip.PrefixFrom(addrs4[0], 24), b, netip.PrefixFrom(addrs4[1], 24))
	netnstest.Address(t, a, "wire", netip.PrefixFrom(addrs6[0], 64))
	netnstest.Address(t, b, "wire", netip.PrefixFrom(addrs6[1], 64))
	return a, b
}

// Every kind of frame is seen at the other end of a cable, and not by the tap
// that sent it.
func TestFramesAreSeen(t *testing.T) {
	a, b := cable(t)
	from, macA := tap(t, a)
	to, macB := tap(t, b)
	hop := frame.Hop{From: macA, To: macB}
	flow := func(addrs [2]netip.Addr) frame.Flow {
		return frame.Flow{From: netip.AddrPortFrom(addrs[0], 4000), To: netip.AddrPortFrom(addrs[1], 5000)}
	}
	frames := []func(frame.Token) []byte{
		func(tok frame.Token) []byte { return frame.Raw(hop, tok) },
		func(tok frame.Token) []byte { return frame.Raw(frame.Hop{From: macA, To: frame.Broadcast}, tok) },
		func(tok frame.Token) []byte { return frame.ARP(macA, addrs4[0], addrs4[1], tok) },
		func(tok frame.Token) []byte { return frame.SYN(hop, flow(addrs4), tok) },
		func(tok frame.Token) []byte { return frame.UDP(hop, flow(addrs4), tok) },
		func(tok frame.Token) []byte { return frame.Echo(hop, flow(addrs4), tok) },
		func(tok frame.Token) []byte { return frame.SYN(hop, flow(addrs6), tok) },
		func(tok frame.Token) []byte { return frame.UDP(hop, flow(addrs6), tok) },
		func(tok frame.Token) []byte { return frame.Echo(hop, flow(addrs6), tok) },
	}
	// One that is not marked is not seen.
	if err := from.Send(frame.Raw(hop, frame.Token{Magic: magic + 1, ID: 99})); err != nil {
		t.Fatal(err)
	}
	for i, make := range frames {
		if err := from.Send(make(frame.Token{Magic: magic, ID: uint32(i)})); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint32]int{}
	if err := to.Watch(time.Now().Add(5*time.Second), func(id uint32) bool {
		seen[id]++
		return len(seen) == len(frames)
	}); err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(frames) || seen[99] != 0 {
		t.Errorf("of %d frames were seen %v", len(frames), seen)
	}
	if err := from.Watch(time.Now(), func(id uint32) bool {
		// What the other end's stack answers to a ping is marked, too.
		if id != 5 && id != 8 {
			t.Errorf("the sending tap saw frame %d", id)
		}
		return false
	}); err != nil {
		t.Error(err)
	}
}

// The checksums are right: the stack at the other end takes the packets, and
// hands a datagram to the socket it is for.
func TestPacketsAreValid(t *testing.T) {
	a, b := cable(t)
	from, macA := tap(t, a)
	_, macB := tap(t, b)
	for i, addrs := range [][2]netip.Addr{addrs4, addrs6} {
		to := netip.AddrPortFrom(addrs[1], 5000)
		var conn *net.UDPConn
		netnstest.Do(t, b, func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
			return err
		})
		defer conn.Close()
		flow := frame.Flow{From: netip.AddrPortFrom(addrs[0], 4000), To: to}
		if err := from.Send(frame.UDP(frame.Hop{From: macA, To: macB}, flow, frame.Token{Magic: magic, ID: uint32(i)})); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 100)
		n, peer, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil || n != 8 || peer != flow.From {
			t.Errorf("got %d bytes from %v, %v", n, peer, err)
		}

		// The stack answers a ping, and refuses a connection to a closed port
		// with the sequence number it was asked with.
		if err := from.Send(frame.Echo(frame.Hop{From: macA, To: macB}, flow, frame.Token{Magic: magic, ID: 77})); err != nil {
			t.Fatal(err)
		}
		answered := false
		if err := from.Watch(time.Now().Add(5*time.Second), func(id uint32) bool {
			answered = id == 77
			return answered
		}); err != nil || !answered {
			t.Errorf("the ping of %v was not answered: %v", addrs[1], err)
		}
	}
	var before, after uint64
	netnstest.Do(t, b, func() error { before = resets(t); return nil })
	if err := from.Send(frame.SYN(frame.Hop{From: macA, To: macB},
		frame.Flow{From: netip.AddrPortFrom(addrs4[0], 4000), To: netip.AddrPortFrom(addrs4[1], 1)}, frame.Token{Magic: magic, ID: 1})); err != nil {
		t.Fatal(err)
	}
	netnstest.Until(t, "the refusal of a connection", func() bool {
		netnstest.Do(t, b, func() error { after = resets(t); return nil })
		return after > before
	})
}

func TestOpenNamesTheInterface(t *testing.T) {
	netnstest.NeedRoot(t)
	_, err := frame.Open("no-such-device", magic)
	if err == nil || err.Error() != `finding interface "no-such-device": route ip+net: no such network interface` {
		t.Errorf("the error is %v", err)
	}
	var op *net.OpError
	if !errors.As(err, &op) {
		t.Errorf("the error does not wrap %T", op)
	}
}

// A tap that was sent more than it keeps says so.
func TestMissedFramesAreReported(t *testing.T) {
	a, b := cable(t)
	from, macA := tap(t, a)
	to, macB := tap(t, b)
	for i := range 20_000 {
		err := from.Send(frame.Raw(frame.Hop{From: macA, To: macB}, frame.Token{Magic: magic, ID: uint32(i)}))
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
	if err := to.Watch(time.Now(), func(uint32) bool { return false }); !errors.Is(err, frame.ErrMissed) {
		t.Errorf("the error is %v", err)
	}
}
