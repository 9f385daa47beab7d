package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

const (
	// connectTime is how long the other host may take to answer a connect.
	// The kernel asks again after 1, 3 and 7 s; an attempt of our own is sooner.
	connectTime = 1500 * time.Millisecond
	// handshakeTime is how long a handshake may take, and the first answer.
	handshakeTime = 5 * time.Second
)

// DialTLS connects to addr and makes a TLS connection as config has it. The
// caller closes it.
func DialTLS(ctx context.Context, addr string, config *tls.Config) (*Secured, error) {
	dialer := net.Dialer{Timeout: connectTime}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := Tune(conn.(*net.TCPConn)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting to %q: %w", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	return SecureClient(ctx, conn, config)
}

// Start makes a session of a connection that DialTLS has made, and returns it
// once the other side has answered. The caller closes it. If it fails, the
// connection is closed.
func Start(ctx context.Context, conn net.Conn, c Config) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	s := Client(conn, c)
	if err := s.Ready(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("starting a session with %v: %w", conn.RemoteAddr(), explain(err))
	}
	return s, nil
}
