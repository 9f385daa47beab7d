package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/policy"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/tunnel"
)

// patience bounds waits for what has to happen; nothing is measured by it.
const patience = 20 * time.Second

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// noLeaks checks, when the test is over, that no goroutine is left.
func noLeaks(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		if !t.Failed() {
			until(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
		}
	})
}

// liveEngine is an engine whose containers come and go.
type liveEngine struct {
	mu         sync.Mutex
	containers map[string]docker.Container // by name
	images     map[string]docker.Image
	handle     func(docker.Event)
}

func (e *liveEngine) Container(ctx context.Context, ref string) (docker.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.Name == ref || strings.HasPrefix(c.ID, ref) {
			return c, nil
		}
	}
	return docker.Container{}, docker.ErrNotFound
}

func (e *liveEngine) Named(_ context.Context, name string) (docker.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, ok := e.containers[name]; ok {
		return c, nil
	}
	return docker.Container{}, docker.ErrNotFound
}

func (e *liveEngine) Image(_ context.Context, id string) (docker.Image, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if img, ok := e.images[id]; ok {
		return img, nil
	}
	return docker.Image{}, docker.ErrNotFound
}

func (e *liveEngine) Running(context.Context, func(map[string]string) bool) ([]docker.Container, error) {
	return nil, nil
}

func (e *liveEngine) Events(ctx context.Context, ready func(), handle func(docker.Event)) error {
	e.mu.Lock()
	e.handle = handle
	e.mu.Unlock()
	ready()
	<-ctx.Done()
	return ctx.Err()
}

// set makes a container what it is from now on, and says so; without an id it
// is gone.
func (e *liveEngine) set(c docker.Container) {
	e.mu.Lock()
	old := e.containers[c.Name]
	if c.ID == "" {
		delete(e.containers, c.Name)
	} else {
		e.containers[c.Name] = c
	}
	handle := e.handle
	e.mu.Unlock()
	if handle == nil {
		return
	}
	for _, id := range slices.Compact([]string{old.ID, c.ID}) {
		if id != "" {
			handle(docker.Event{Type: "container", Action: "changed", Container: id, Name: c.Name})
		}
	}
}

// localDialer connects to servers of the test instead of a source's.
type localDialer struct {
	tcp, udp netip.AddrPort
	err      error
	hang     chan struct{} // if set, is told of each connect, which is never answered
	closed   func()
}

func (d *localDialer) Dial(ctx context.Context, _ uint16) (*net.TCPConn, error) {
	if d.err != nil {
		return nil, d.err
	}
	if d.hang != nil {
		d.hang <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp4", d.tcp.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (d *localDialer) DialPackets(context.Context, uint16) (*net.UDPConn, error) {
	return net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(d.udp))
}

func (d *localDialer) Close() error { d.closed(); return nil }

// sourceHost is a host with sources, and the session that hosta has with it.
type sourceHost struct {
	t      *testing.T
	engine *liveEngine
	agent  *Agent
	log    logbook.Log
	dialer localDialer

	mu   sync.Mutex
	open int // dialers
	next *tunnel.Session
	stop func() // ends the session
}

func newSourceHost(t *testing.T) *sourceHost {
	t.Helper()
	noLeaks(t)
	h := &sourceHost{t: t, engine: &liveEngine{
		containers: make(map[string]docker.Container),
		images:     map[string]docker.Image{"plain": {}, "sly": {Labels: map[string]string{policy.Label: "*/*"}}},
	}}
	h.agent = New(h.engine, docker.Engine{}, nil, slog.New(slog.NewTextHandler(&h.log, nil)))
	h.dialer.closed = func() { h.count(-1) }
	h.agent.dialTo = func(docker.Container) (dialer, error) {
		h.count(1)
		d := h.dialer
		return &d, nil
	}
	return h
}

func (h *sourceHost) count(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open += n
}

func (h *sourceHost) dialers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.open
}

// run starts the agent and a session with it.
func (h *sourceHost) run() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	ready := make(chan struct{})
	running.Go(func() { h.agent.Run(ctx, func() { close(ready) }) })
	<-ready
	h.connect()
	h.t.Cleanup(func() {
		h.stop()
		cancel()
		running.Wait()
		if n := h.dialers(); n != 0 {
			h.t.Errorf("%d dialers are left open", n)
		}
	})
}

// connect makes a session.
func (h *sourceHost) connect() {
	h.t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		h.t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	near, far := tunnel.Client(c, tunnel.Config{}), tunnel.Server(s, tunnel.Config{})
	var serving sync.WaitGroup
	from := identity.Peer{ID: identity.ID{Domain: "test", Host: "hosta"}}
	serving.Go(func() { far.Serve(func(in *tunnel.Incoming) { h.agent.Answer(from, in) }) })
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next = near
	h.stop = sync.OnceFunc(func() {
		near.Close()
		far.Close()
		serving.Wait()
	})
}

func (h *sourceHost) session() *tunnel.Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.next
}

// ask asks as hosta, and returns the answer.
func (h *sourceHost) ask(q tunnel.Request) (*tunnel.Stream, error) {
	h.t.Helper()
	st, err := h.session().Ask(h.t.Context(), q)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(st.Abort)
	return st, st.Answer(patience)
}

// watch asks about a source, and returns what is read next.
func (h *sourceHost) watch(source, recipient string) func() telling {
	h.t.Helper()
	st, err := h.ask(tunnel.Request{Kind: tunnel.Watch, Source: source, Recipient: recipient})
	if err != nil {
		h.t.Fatal(err)
	}
	return func() telling {
		h.t.Helper()
		st.SetReadDeadline(time.Now().Add(patience))
		got, err := readTelling(st)
		if err != nil {
			h.t.Fatal(err)
		}
		return got
	}
}

// db is a source that lets web of hosta in.
func db(changes ...func(*docker.Container)) docker.Container {
	c := docker.Container{
		ID: id("1"), Name: "db", Hostname: "dbhost", Image: "plain", Running: true, PID: 1,
		Env:    []string{"PASSWORD=secret", "LEVEL=9"},
		Ports:  []link.Port{{Number: 5432, Proto: link.TCP}, {Number: 53, Proto: link.UDP}},
		Labels: map[string]string{policy.Label: "hosta/web"},
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

func labelled(pairs ...string) func(*docker.Container) {
	return func(c *docker.Container) {
		c.Labels = make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			c.Labels[pairs[i]] = pairs[i+1]
		}
	}
}

// echoes serves TCP: it sends back what it gets, after what it says first.
func echoes(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		serving.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func echoesPackets(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		serving.Wait()
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// oneHost is the sessions of hosta: with hostb, if it is up.
type oneHost struct {
	b *sourceHost

	mu     sync.Mutex
	down   string
	wanted int
}

func (o *oneHost) Want(host string) func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.wanted++
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.wanted--
	})
}

func (o *oneHost) Ask(ctx context.Context, host string, q tunnel.Request) (*tunnel.Stream, error) {
	if why := o.State(host).Reason; why != "" {
		return nil, fmt.Errorf("reaching %q: %s", host, why)
	}
	return o.b.session().Ask(ctx, q)
}

func (o *oneHost) State(host string) tunnel.PeerState {
	o.mu.Lock()
	defer o.mu.Unlock()
	if host != "hostb" {
		return tunnel.PeerState{Reason: "nobody knows it"}
	}
	return tunnel.PeerState{Up: o.down == "", Reason: o.down}
}

func (o *oneHost) set(down string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.down = down
}

var _ Hosts = (*oneHost)(nil)

// newMover is a running relay.
func newMover(t *testing.T) *relay.Engine {
	t.Helper()
	e := &relay.Engine{Workers: 1}
	if err := e.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

var errOnFire = errors.New("engine on fire")
