package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/tunnel"
)

// farLink is a link of web on hosta to db on hostb, as far as it needs no
// namespace.
type farLink struct {
	t       *testing.T
	b       *sourceHost
	hosts   *oneHost
	agent   *Agent // of hosta
	carrier *carrier
	seen    atomic.Pointer[docker.Container]
	changed chan struct{}
}

func newFarLink(t *testing.T) *farLink {
	t.Helper()
	f := &farLink{t: t, b: newSourceHost(t), changed: make(chan struct{}, 100)}
	f.b.dialer.tcp, f.b.dialer.udp = echoes(t), echoesPackets(t)
	f.b.engine.set(db())
	f.b.run()
	f.hosts = &oneHost{b: f.b}
	f.agent = New(nil, docker.Engine{}, nil, slog.New(slog.DiscardHandler))
	f.agent.Hosts, f.agent.Name = f.hosts, func() string { return "hosta" }
	f.seen.Store(&docker.Container{Name: "web", Networks: []docker.Network{{IPv4: netip.MustParseAddr("172.17.0.9")}}})
	f.carrier = f.agent.newRemoteCarrier(link.Link{Alias: "webdb", Source: "db", Host: "hostb"},
		func() docker.Container { return *f.seen.Load() })
	t.Cleanup(func() {
		f.carrier.relay.Cut()
		f.carrier.remote.close()
		if f.hosts.wanted != 0 {
			t.Errorf("the host is still wanted %d times", f.hosts.wanted)
		}
		if n := f.agent.buffers.Lent(); n != 0 {
			t.Errorf("%d buffers were not given back", n)
		}
	})
	return f
}

func (f *farLink) look() *told { return f.carrier.remote.look(func() { f.changed <- struct{}{} }) }

// eventually waits until what is known is as it should be.
func (f *farLink) eventually(what string, is func(*told) bool) *told {
	f.t.Helper()
	var last *told
	until(f.t, what, func() bool {
		last = f.look()
		return last != nil && is(last)
	})
	return last
}

func TestRemoteIsTold(t *testing.T) {
	f := newFarLink(t)
	f.look()
	select {
	case <-f.changed:
	case <-time.After(patience):
		t.Fatal("nobody says that something is known")
	}
	got := f.look()
	want := link.Source{Name: "db", Hostname: "dbhost", Env: db().Env, Ports: db().Ports}
	if got == nil || got.down != "" || !reflect.DeepEqual(got.source, want) {
		t.Fatalf("told %+v, want %+v", got, want)
	}
	res := got.resolution(f.carrier.link)
	if res.source.ID == "" || res.source.Name != "db" || !slices.Equal(res.source.Ports, want.Ports) {
		t.Errorf("resolved to %+v", res)
	}

	f.b.engine.set(db(func(c *docker.Container) { c.Running = false }))
	got = f.eventually("the source to be down", func(now *told) bool { return now.down != "" })
	if got.down != `host "hostb" says: container "db" is not running` || got.lost || got.source.Env == nil {
		t.Errorf("told %+v", got)
	}
	f.b.engine.set(db())
	f.eventually("the source to be up", func(now *told) bool { return now.down == "" })

	// Its host is gone, and comes back.
	f.hosts.set("the cable is out")
	f.b.stop()
	got = f.eventually("the host to be down", func(now *told) bool { return now.lost })
	if got.down != `host "hostb" cannot be reached: the cable is out` || !reflect.DeepEqual(got.source, want) {
		t.Errorf("told %+v", got)
	}
	f.b.connect()
	f.hosts.set("")
	f.agent.HostChanged("hostb")
	f.eventually("the host to be up", func(now *told) bool { return now.down == "" })

	// Under another name the recipient has no permission.
	f.seen.Store(&docker.Container{Name: "other"})
	got = f.eventually("the other name", func(now *told) bool { return now.down != "" })
	if got.down != `host "hostb" says: there is no source "db" that "other" may be linked to` || got.source.Name != "" {
		t.Errorf("told %+v", got)
	}
	f.b.stop()
}

func TestRemoteWithoutHosts(t *testing.T) {
	a := New(nil, docker.Engine{}, nil, slog.New(slog.DiscardHandler))
	c := a.newRemoteCarrier(link.Link{Alias: "db", Source: "db", Host: "hostb"}, func() docker.Container { return docker.Container{} })
	if got := c.remote.look(nil); got == nil || got.down != "this host has no identity, by which others would know it" {
		t.Errorf("told %+v", got)
	}
	c.remote.close()
}

// serve has the relay accept for the link, and returns where.
func (f *farLink) serve(mover *relay.Engine) (tcp, udp netip.AddrPort) {
	f.t.Helper()
	route := func(netip.AddrPort) *relay.Link { return &f.carrier.relay }
	fd, tcp := listening(f.t, unix.SOCK_STREAM)
	if _, err := mover.Serve(fd, route); err != nil {
		f.t.Fatal(err)
	}
	fd, udp = listening(f.t, unix.SOCK_DGRAM)
	if _, err := mover.ServePackets(fd, -1, route); err != nil {
		f.t.Fatal(err)
	}
	return tcp, udp
}

func listening(t *testing.T, kind int) (int, netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 100); err != nil {
			t.Fatal(err)
		}
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
}

// anyPort has the source expose all that the listeners of a test may have.
func anyPort(tcp, udp netip.AddrPort) func(*docker.Container) {
	return func(c *docker.Container) {
		c.Ports = []link.Port{{Number: tcp.Port(), Proto: link.TCP}, {Number: udp.Port(), Proto: link.UDP}}
	}
}

func TestRemoteCarries(t *testing.T) {
	f := newFarLink(t)
	tcp, udp := f.serve(newMover(t))
	f.b.engine.set(db(anyPort(tcp, udp)))

	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(tcp))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("question"))
	c.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "question" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}

	p, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(udp))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	for _, want := range []string{"one", "", "three"} {
		p.Write([]byte(want))
		if n, err := p.Read(buf); string(buf[:n]) != want || err != nil {
			t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
		}
	}
	until(t, "the connection to be counted", func() bool {
		s := f.carrier.relay.Stats()
		return s.Open == 1 && s.Total == 2 && s.ToSource == 16 && s.ToRecipient == 16
	})
	if !f.b.log.Has("audit: allow", "recipient=web", "from=172.17.0.9:") {
		t.Errorf("the log of the source's host is\n%s", f.b.log.String())
	}
	if n := f.carrier.relay.Cut(); n != 1 {
		t.Errorf("cut %d, want the flow", n)
	}
}

func TestRemoteRefuses(t *testing.T) {
	f := newFarLink(t)
	tcp, _ := f.serve(newMover(t))
	f.b.engine.set(db(labelled())) // which permits nothing
	reset := func() {
		t.Helper()
		c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(tcp))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading gives %v, want a reset", err)
		}
	}
	reset()
	f.hosts.set("the cable is out")
	reset()
	until(t, "both to be counted", func() bool {
		s := f.carrier.relay.Stats()
		return s.Open == 0 && s.Total == 2 && s.Failures == (relay.Failures{Refused: 1, Unreachable: 1})
	})
}

// A recipient that goes takes its connections along.
func TestRemoteCloseCuts(t *testing.T) {
	f := newFarLink(t)
	mover := newMover(t)
	tcp, udp := f.serve(mover)
	f.b.engine.set(db(anyPort(tcp, udp)))
	c, err := net.DialTCP("tcp4", nil, net.TCPAddrFromAddrPort(tcp))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.carrier.relay.Cut()
	f.carrier.remote.close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reading gives %v, want a reset", err)
	}
	if s := f.carrier.relay.Stats(); s.Open != 0 || s.Failures != (relay.Failures{Cut: 1}) {
		t.Errorf("counted %+v", s)
	}
}

func TestSourceForLinkrun(t *testing.T) {
	f := newFarLink(t)
	got, err := f.agent.Source(t.Context(), "hostb", "db", "web")
	want := control.Source{Name: "db", Hostname: "dbhost", Env: db().Env, Ports: []string{"5432/tcp", "53/udp"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	f.b.engine.set(db(func(c *docker.Container) { c.Running = false }))
	until(t, "the source to be down", func() bool {
		got, err = f.agent.Source(t.Context(), "hostb", "db", "web")
		return err == nil && got.Down == `container "db" is not running`
	})
	nobody := New(nil, docker.Engine{}, nil, slog.New(slog.DiscardHandler))
	late, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for _, c := range []struct {
		name         string
		agent        *Agent
		ctx          context.Context
		host, source string
		want         control.RefusedError
	}{
		{"no identity", nobody, t.Context(), "hostb", "db", control.RefusedError{Status: http.StatusConflict,
			Message: `host "hostb" cannot be reached: this host has no identity, by which others would know it`,
			Hint:    "make one with `ambassador ca init`, or with `ambassador token` there and `ambassador join` here"}},
		{"this host", f.agent, t.Context(), "hosta", "db", control.RefusedError{Status: http.StatusBadRequest,
			Message: `host "hosta" is this host`, Hint: "link to it without the host: db"}},
		{"no source", f.agent, t.Context(), "hostb", "none", control.RefusedError{Status: http.StatusNotFound,
			Message: `host "hostb" has no source "none" that "web" may be linked to`,
			Hint:    "there, a container of that name has to allow it: --label ambassador.allow=hosta/web"}},
		{"no way", f.agent, late, "hostc", "db", control.RefusedError{Status: http.StatusBadGateway,
			Message: `host "hostc" cannot be reached: nobody knows it`,
			Hint:    "does `ambassador serve --listen` run there, and is its address known here? See `ambassador peers`"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.agent.Source(c.ctx, c.host, c.source, "web")
			var refused *control.RefusedError
			if !errors.As(err, &refused) || *refused != c.want {
				t.Errorf("error %+v, want %+v", err, c.want)
			}
		})
	}
}

func TestLostIsAReset(t *testing.T) {
	if err := lost(tunnel.ErrLost); !errors.Is(err, syscall.ECONNRESET) || !errors.Is(err, tunnel.ErrLost) {
		t.Errorf("a lost connection counts as %v", err)
	}
	if err := lost(os.ErrClosed); errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("another one counts as %v", err)
	}
}
