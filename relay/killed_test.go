package relay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A killed process's sockets are closed by the kernel. Nobody may take what
// has arrived by then for a whole.
func TestKilledRelayResets(t *testing.T) {
	source := listenTCP(t)
	defer source.Close()
	front, kill := startMortal(t, "relay", source.Addr().String())
	b := &bed{t: t, source: source, front: netip.MustParseAddrPort(front)}

	type pair struct{ recipient, source *net.TCPConn }
	conns := make(map[string]pair)
	for name, upTo := range map[string]func(r, s *net.TCPConn){
		"nothing sent": func(_, _ *net.TCPConn) {},
		"both have sent": func(r, s *net.TCPConn) {
			tell(t, r, s, "question")
			tell(t, s, r, "half of an answer")
		},
		"the recipient has ended": func(r, s *net.TCPConn) {
			tell(t, r, s, "question")
			r.CloseWrite()
			expectEOF(t, s)
			tell(t, s, r, "half of an answer")
		},
		"the source has ended": func(r, s *net.TCPConn) {
			s.CloseWrite()
			expectEOF(t, r)
		},
	} {
		r, s := b.dial()
		defer r.Close()
		defer s.Close()
		r.SetDeadline(time.Now().Add(patience))
		s.SetDeadline(time.Now().Add(patience))
		upTo(r, s)
		conns[name] = pair{r, s}
	}
	kill()
	for name, c := range conns {
		t.Run(name, func(t *testing.T) {
			// Who has read the end of the stream is told by the next write.
			if name != "the source has ended" {
				expectReset(t, c.recipient)
			}
			if name != "the recipient has ended" {
				expectReset(t, c.source)
			}
			for _, conn := range []*net.TCPConn{c.recipient, c.source} {
				eventually(t, "nothing to be written any more", func() bool {
					_, err := conn.Write([]byte("more"))
					return err != nil
				})
			}
		})
	}
}

// tell has to receive what from sends.
func tell(t *testing.T, from, to *net.TCPConn, what string) {
	t.Helper()
	if err := send(from, []byte(what), false); err != nil {
		t.Fatal(err)
	}
	expect(t, to, []byte(what))
}

// Connections within the host are not paced. What is accepted from elsewhere
// has a real network to deal with, for which the administrator has chosen.
func TestCongestionControl(t *testing.T) {
	control := func(fd int) string {
		name, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	e := &Engine{}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for name, address := range map[string][4]byte{"loopback": {127, 0, 0, 1}, "any": {}} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: address}); err != nil {
			t.Fatal(err)
		}
		if err := unix.Listen(fd, 16); err != nil {
			t.Fatal(err)
		}
		want := "cubic"
		if name == "loopback" {
			want = "reno"
		}
		if _, err := e.Serve(fd, func(netip.AddrPort) *Link { return nil }); err != nil {
			t.Fatal(err)
		}
		if got := control(fd); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
