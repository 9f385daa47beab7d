package traffic

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve starts a server on loopback that ends with the test, which fails if
// the server leaves anything behind.
func serve(t *testing.T) netip.AddrPort {
	t.Helper()
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	s, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, func() error { // one that has returned may not be gone yet
			if n := runtime.NumGoroutine(); n > goroutines {
				return fmt.Errorf("there are %d goroutines, there were %d", n, goroutines)
			}
			return nil
		})
		if n := descriptors(t); n != fds {
			t.Errorf("there are %d descriptors, there were %d", n, fds)
		}
	})
	at, err := s.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestEveryKind(t *testing.T) {
	at := serve(t)
	for _, tt := range []struct {
		plan Plan
		size uint64 // of the payload of one thing that is counted; 0: bytes are
	}{
		{Plan{Kind: Exchange}, RequestSize},
		{Plan{Kind: Exchange, Conns: 64}, RequestSize},
		{Plan{Kind: Exchange, Conns: 8, Reply: 1}, 1},
		{Plan{Kind: Exchange, Conns: 8, Reply: 1_000_000}, 1_000_000},
		{Plan{Kind: Connect}, RequestSize},
		{Plan{Kind: Connect, Conns: 32, Reply: 10_000}, 10_000},
		{Plan{Kind: Send}, 0},
		{Plan{Kind: Send, Conns: 8}, 0},
		{Plan{Kind: Receive}, 0},
		{Plan{Kind: Receive, Conns: 8}, 0},
		{Plan{Kind: Flood}, RequestSize},
		{Plan{Kind: Flood, Rate: 1000}, RequestSize},
		{Plan{Kind: Echo}, RequestSize},
		{Plan{Kind: Echo, Conns: 64}, RequestSize},
	} {
		t.Run(fmt.Sprintf("%s %d %d %d", tt.plan.Kind, tt.plan.Conns, tt.plan.Reply, tt.plan.Rate), func(t *testing.T) {
			p := tt.plan
			p.Server, p.Warmup, p.Duration = at, 10*time.Millisecond, 50*time.Millisecond
			var r Result
			eventually(t, func() (err error) { // a busy machine may stand still for that long
				if r, err = Run(p); err == nil && r.Bytes == 0 {
					err = fmt.Errorf("nothing was counted: %+v", r)
				}
				return err
			})
			if r.Seconds <= 0 || r.Failed > 0 || r.TotalBytes < r.Bytes || r.TotalCount < r.Count {
				t.Errorf("%+v", r)
			}
			if r.Bytes != r.Count*tt.size && tt.size > 0 || r.Count > 0 && tt.size == 0 {
				t.Errorf("%d things and %d bytes were counted", r.Count, r.Bytes)
			}
			if l := r.Latency; l.P50 > l.P99 || l.P99 > l.P999 {
				t.Errorf("the latency is %+v", l)
			}
			if r.Arrived > r.Sent {
				t.Errorf("%d datagrams arrived of %d", r.Arrived, r.Sent)
			}
			if p.Rate > 0 && r.Sent > 60 {
				t.Errorf("%d datagrams were sent in 60 ms at %d a second", r.Sent, p.Rate)
			}
		})
	}
}

// TestFloodCountsLoss floods a server that drops every second datagram.
func TestFloodCountsLoss(t *testing.T) {
	server := newPacketSocket(t)
	t.Cleanup(func() { server.Close() })
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		p := &packets{fd: -1, batch: newBatch(false)}
		for n := 0; ; n++ {
			var d datagram
			_, from, err := server.ReadFromUDPAddrPort(d[:])
			if err != nil {
				return
			}
			switch {
			case d[0] == wantTally:
				p.tally(&d)
				server.WriteToUDPAddrPort(d[:], from)
			case n%2 == 0:
				p.count(&d, time.Now())
			}
		}
	}()
	r, err := Run(Plan{Kind: Flood, Server: server.LocalAddr().(*net.UDPAddr).AddrPort(), Rate: 2000, Duration: 50 * time.Millisecond})
	server.Close()
	if err != nil {
		t.Fatal(err)
	}
	if half := (r.Sent + 1) / 2; r.Arrived != half {
		t.Errorf("%d of %d datagrams are said to have arrived, %d did", r.Arrived, r.Sent, half)
	}
}

func newPacketSocket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestEchoCountsLoss asks a server that answers nothing.
func TestEchoCountsLoss(t *testing.T) {
	server := newPacketSocket(t)
	defer server.Close()
	r, err := Run(Plan{Kind: Echo, Server: server.LocalAddr().(*net.UDPAddr).AddrPort(), Conns: 2, Duration: 4 * lostAfter})
	if err != nil {
		t.Fatal(err)
	}
	if r.Arrived != 0 || r.Count != 0 || r.Sent == 0 {
		t.Errorf("%+v", r)
	}
}

func TestOpenHolds(t *testing.T) {
	at, before := serve(t), descriptors(t)
	held, err := Open(Plan{Server: at, Conns: 20})
	if err != nil {
		t.Fatal(err)
	}
	if n := descriptors(t) - before; n != 40 { // the server's are in this process too
		t.Errorf("20 connections have %d descriptors", n)
	}
	for _, fd := range held.fds {
		if err := exchangeOnce(fd); err != nil {
			t.Error(err)
		}
	}
	held.Close()
	eventually(t, func() error {
		if n := descriptors(t) - before; n != 0 {
			return fmt.Errorf("%d descriptors are left", n)
		}
		return nil
	})
}

// eventually asks until cond returns nil.
func eventually(t *testing.T, cond func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; runtime.Gosched() {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestErrorsSayWhatFailed(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	for _, tt := range []struct {
		plan Plan
		want string
	}{
		{Plan{Kind: "dance", Server: closed}, `running a load: there is no kind "dance"`},
		{Plan{Kind: Send, Server: netip.MustParseAddrPort("[::1]:1")}, "running a load: [::1]:1 is no IPv4 address"},
		{Plan{Kind: Send, Server: closed}, fmt.Sprintf("connecting to %v: connection refused", closed)},
		{Plan{Kind: Exchange, Server: closed, Duration: time.Minute}, fmt.Sprintf("exchanging with %v: connection refused", closed)},
	} {
		if _, err := Run(tt.plan); err == nil || err.Error() != tt.want {
			t.Errorf("%+v: error %v, want %q", tt.plan, err, tt.want)
		}
	}
	// Connections for one request each may fail, and are counted.
	r, err := Run(Plan{Kind: Connect, Server: closed, Duration: 10 * time.Millisecond})
	if err != nil || r.Failed == 0 || r.TotalCount > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	at := taken.Addr().(*net.TCPAddr).AddrPort()
	before := descriptors(t)
	if _, err := Listen(at); err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("listening at %v: address already in use", at)) {
		t.Errorf("listening on a port that is taken: %v", err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors are left of it", n-before)
	}
}

// TestServerClosesOnNonsense sends what is no request.
func TestServerClosesOnNonsense(t *testing.T) {
	at := serve(t)
	fd, err := connectNow(at)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	line := [RequestSize]byte{0: 'x'}
	if _, err := unix.Write(fd, line[:]); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(fd, unix.POLLIN); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Read(fd, line[:]); n != 0 || err != nil {
		t.Errorf("it answered %d bytes, %v", n, err)
	}
}
