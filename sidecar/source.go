package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/sockopt"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/tunnel"
)

// Source is the source's end: it connects to the source on behalf of the
// recipients' ends that connect to it.
type Source struct {
	// Targets are what recipients may ask for.
	Targets []Target
	// From is the address that the source sees. The zero Addr is the kernel's
	// choice, but DefaultFrom where a target is on the loopback interface: from
	// 127.0.0.1 servers let in who would have to say a password otherwise.
	From netip.Addr
	// Allowed tells whether a host may connect, by the name in its
	// certificate. nil is none. It is not asked about processes of this host,
	// for which the permissions of the socket's file speak.
	Allowed func(host string) bool
	// Drain is how long connections may take to end by themselves once it is
	// to stop. 0 is not at all.
	Drain time.Duration
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger

	buffers  tunnel.Buffers
	stopping chan struct{}

	mu       sync.Mutex
	sessions map[*tunnel.Session]struct{}
	peers    map[string]*tunnel.Peer
	running  sync.WaitGroup // what goes on for the peers
}

// DefaultFrom is what a source sees whose end connects to it over loopback: an
// address of this host that no server trusts.
var DefaultFrom = netip.AddrFrom4([4]byte{127, 77, 0, 1})

const (
	// maxSessions bounds what one may have who may connect at all. A
	// recipient's end has one, and two for a moment.
	maxSessions = 256
	// connectTime is how long the source may take to answer a connect.
	connectTime = 10 * time.Second
)

// ServeSocket serves processes of this host that connect to ln until ctx ends,
// and closes it. It returns when all their connections have ended.
func (s *Source) ServeSocket(ctx context.Context, ln net.Listener) error {
	stop := s.start()
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	defer s.drain()
	return accept(ctx, ln, s.log(), func(conn net.Conn) {
		serving.Go(func() { s.serveSocket(conn) })
	})
}

// ServeTLS serves hosts that connect to ln until ctx ends, and closes it. The
// two ends prove to each other who they are. It returns when all their
// connections have ended.
func (s *Source) ServeTLS(ctx context.Context, ln net.Listener, store *identity.Store) error {
	stop := s.start()
	defer stop()
	peers, cancel := context.WithCancel(context.Background())
	defer s.running.Wait()
	defer cancel()
	defer s.drain()
	listener := tunnel.Listener{
		TLS:    store.ServerTLS(tunnel.Protocol),
		Handle: func(conn *tunnel.Secured) { s.admit(peers, store, conn) },
		Log:    s.log(),
	}
	return listener.Serve(ctx, ln)
}

func (s *Source) start() (stop func()) {
	s.stopping = make(chan struct{})
	s.sessions = make(map[*tunnel.Session]struct{})
	s.peers = make(map[string]*tunnel.Peer)
	return func() { s.sessions, s.peers = nil, nil }
}

// serveSocket serves one process of this host.
func (s *Source) serveSocket(conn net.Conn) {
	log := s.log().With(peer(conn))
	session := tunnel.Server(conn, tunnel.Config{Log: log})
	defer session.Close()
	if !s.enter(session) {
		log.Warn("refused a recipient: there are too many")
		return
	}
	defer s.leave(session)
	log.Info("recipient connected")
	err := session.Serve(func(in *tunnel.Incoming) { s.handle(in, log) })
	log.Info("recipient gone", "err", err)
}

// admit lets a host in, or not.
func (s *Source) admit(ctx context.Context, store *identity.Store, conn *tunnel.Secured) {
	who, err := store.PeerOf(conn.ConnectionState(), false)
	if err != nil || s.Allowed == nil || !s.Allowed(who.ID.Host) {
		s.log().Warn("refused a host", "from", conn.RemoteAddr(), "host", who.ID.Host, "err", cmp.Or(err, errNotAllowed))
		conn.Close()
		return
	}
	session := tunnel.Server(conn, tunnel.Config{Expires: who.NotAfter, Log: s.log()})
	if !s.enter(session) {
		s.log().Warn("refused a host: there are too many sessions", "host", who.ID.Host)
		session.Close()
		return
	}
	s.running.Go(func() {
		<-session.Done()
		s.leave(session)
	})
	s.peer(ctx, who.ID.Host, store.Current().ID.Host).Adopt(session)
}

var errNotAllowed = errors.New("the host is not allowed")

// peer is the host of that name. It keeps its sessions, and cuts those whose
// certificate has run out.
func (s *Source) peer(ctx context.Context, name, own string) *tunnel.Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[name]
	if p == nil {
		log := s.log().With("host", name)
		p = &tunnel.Peer{Name: name, Own: own, Handle: func(in *tunnel.Incoming) { s.handle(in, log) }, Log: s.log()}
		s.peers[name] = p
		s.running.Go(func() { p.Run(ctx) })
	}
	return p
}

// enter notes a session, unless there are too many or it is too late.
func (s *Source) enter(session *tunnel.Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isStopping() || len(s.sessions) >= maxSessions {
		return false
	}
	s.sessions[session] = struct{}{}
	return true
}

func (s *Source) leave(session *tunnel.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, session)
}

func (s *Source) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// drain ends all sessions, and gives their connections time to end before.
func (s *Source) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), s.Drain)
	defer cancel()
	s.mu.Lock()
	close(s.stopping)
	var ending sync.WaitGroup
	for session := range s.sessions {
		ending.Go(func() {
			if err := session.Drain(ctx); err != nil {
				s.log().Warn("cut connections that did not end in time", "waited", s.Drain)
			}
		})
	}
	s.mu.Unlock()
	ending.Wait()
}

// handle answers a recipient that wants to be connected.
func (s *Source) handle(in *tunnel.Incoming, log *slog.Logger) {
	proto := link.TCP
	switch in.Kind {
	case tunnel.TCP, tunnel.Socket:
	case tunnel.UDP:
		proto = link.UDP
	default:
		in.Refuse(tunnel.Unsupported, "only connections are carried")
		return
	}
	port := link.Port{Number: in.Port, Proto: proto}
	log = log.With("recipient", in.Recipient, "port", port.String())
	target, ok := s.target(port)
	if !ok {
		log.Warn("refused a connection to a port that is not served")
		in.Refuse(tunnel.NoPort, "")
		return
	}
	switch in.Kind {
	case tunnel.TCP:
		s.carry(in, target, log)
	case tunnel.Socket:
		s.handOver(in, target, log)
	case tunnel.UDP:
		s.carryDatagrams(in, target, log)
	}
}

func (s *Source) target(port link.Port) (Target, bool) {
	for _, t := range s.Targets {
		if t.Port == port {
			return t, true
		}
	}
	return Target{}, false
}

// carry moves the bytes of a connection.
func (s *Source) carry(in *tunnel.Incoming, target Target, log *slog.Logger) {
	conn, ok := s.connect(in, target, log)
	if !ok {
		return
	}
	if err := in.Grant(); err != nil {
		conn.Close()
		in.Stream.Abort()
		return
	}
	pump := tunnel.Pump{Conn: conn.(*net.TCPConn), Stream: in.Stream, Buffers: &s.buffers}
	err := pump.Run()
	log.Debug("connection ended", "err", err)
}

// handOver gives the connection away. It goes on without this process.
func (s *Source) handOver(in *tunnel.Incoming, target Target, log *slog.Logger) {
	conn, ok := s.connect(in, target, log)
	if !ok {
		return
	}
	defer conn.Close()
	if err := in.Stream.HandOver(conn.(*net.TCPConn)); err != nil {
		in.Refuse(tunnel.Unsupported, err.Error())
		return
	}
	in.Grant()
	in.Stream.Close()
	log.Debug("connection handed over")
}

// connect connects to a target, or says why that cannot be.
func (s *Source) connect(in *tunnel.Incoming, target Target, log *slog.Logger) (net.Conn, bool) {
	dialer := net.Dialer{Timeout: connectTime, Control: s.bind}
	dialer.SetMultipathTCP(false)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	in.Stream.AfterReset(cancel)
	conn, err := dialer.DialContext(ctx, string(target.Port.Proto), target.Address)
	if err != nil {
		log.Warn("connecting to the source", "err", err)
		in.Refuse(tunnel.StatusOf(err), "")
		return nil, false
	}
	return conn, true
}

// bind gives a socket that is about to be connected to address the one that
// the source is to see.
func (s *Source) bind(_, address string, raw syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if to.Addr().IsLoopback() {
		raw.Control(func(fd uintptr) { sockopt.Reno(int(fd)) }) // UDP has no such thing
	}
	from := s.From
	if !from.IsValid() && to.Addr().Is4() && to.Addr().IsLoopback() {
		from = DefaultFrom
	}
	if !from.IsValid() {
		return nil
	}
	_, own := sockaddr(netip.AddrPortFrom(from, 0))
	if e := raw.Control(func(fd uintptr) {
		// The port is chosen when it is known where to: it has to be free for
		// that address only.
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
			unix.Bind(int(fd), own))
	}); e != nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("binding to %v: %w", from, err)
	}
	return nil
}

func (s *Source) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}
