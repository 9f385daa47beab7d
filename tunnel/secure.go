package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol is the name of the session's protocol in the TLS handshake (ALPN).
const Protocol = "linkrun/1"

// Secured is a TLS connection for a session.
type Secured struct {
	*tls.Conn
	raw *gather
}

// SecureClient makes a TLS connection of conn, at the side that has dialed,
// SecureServer at the other. They own conn, and close it when they fail. Who
// the peer is and whether it is welcome is for config to find out, in
// VerifyConnection. ctx bounds the handshake.
func SecureClient(ctx context.Context, conn net.Conn, config *tls.Config) (*Secured, error) {
	return secure(ctx, conn, config, tls.Client)
}

// SecureServer is the other end of SecureClient.
func SecureServer(ctx context.Context, conn net.Conn, config *tls.Config) (*Secured, error) {
	return secure(ctx, conn, config, tls.Server)
}

func secure(ctx context.Context, conn net.Conn, config *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) (*Secured, error) {
	raw := &gather{Conn: conn}
	s := &Secured{Conn: side(raw, config), raw: raw}
	err := s.HandshakeContext(ctx)
	if v := s.ConnectionState().Version; err == nil && v != tls.VersionTLS13 {
		err = fmt.Errorf("the peer speaks %s, not TLS 1.3", tls.VersionName(v))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("securing the connection with %v: %w", conn.RemoteAddr(), explain(err))
	}
	return s, nil
}

// explain says whose refusal an alert of TLS is: the alert does not tell what
// the other side did not like.
func explain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return fmt.Errorf("the other side refuses it, and its log says why: %w", err)
	}
	return err
}

// Write sends p in as many records as it takes and one system call. crypto/tls
// has one for each record, and at 16 KiB they cost a fifth of the throughput.
func (s *Secured) Write(p []byte) (int, error) {
	s.raw.hold()
	n, err := s.Conn.Write(p)
	if e := s.raw.flush(); err == nil {
		err = e
	}
	return n, err
}

// CloseWrite says, so that nobody can forge it, that nothing more comes.
func (s *Secured) CloseWrite() error {
	if err := s.Conn.CloseWrite(); err != nil {
		return err
	}
	if c, ok := s.raw.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close closes the connection. The one of crypto/tls would wait for up to 5 s
// to say good-bye to a peer that does not listen.
func (s *Secured) Close() error { return s.raw.Close() }

// gather keeps writes back between hold and flush.
type gather struct {
	net.Conn

	mu      sync.Mutex
	holding bool
	held    []byte
}

func (g *gather) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

func (g *gather) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.holding {
		g.held = append(g.held, p...)
		return len(p), nil
	}
	return g.Conn.Write(p)
}

func (g *gather) flush() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := g.Conn.Write(g.held)
	g.holding, g.held = false, g.held[:0]
	return err
}

const (
	// unsent is how many bytes the kernel takes for a connection before they
	// can be sent. Its usual megabytes would be ahead of every small frame.
	unsent = 128 << 10
	// userTimeout is how long the peer's kernel may leave bytes unconfirmed.
	userTimeout = 8 * time.Second
)

// Tune sets the options of a TCP connection that is to carry a session.
func Tune(conn *net.TCPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, o := range []struct {
			text        string
			name, value int
		}{
			{"TCP_NODELAY", unix.TCP_NODELAY, 1},
			{"TCP_NOTSENT_LOWAT", unix.TCP_NOTSENT_LOWAT, unsent},
			{"TCP_USER_TIMEOUT", unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())},
		} {
			if e := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, o.name, o.value); e != nil && failed == nil {
				failed = fmt.Errorf("setting %s: %w", o.text, e)
			}
		}
	})
	if err != nil {
		return err
	}
	return failed
}
