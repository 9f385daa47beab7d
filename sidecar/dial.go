package sidecar

import (
	"context"
	"log/slog"
	"net"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/tunnel"
)

// DialSocket reaches a source's end of this host at path.
func DialSocket(path string, log *slog.Logger) tunnel.Dial {
	return func(ctx context.Context) (*tunnel.Session, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		log.Info("connected", peer(conn))
		return tunnel.Start(ctx, conn, tunnel.Config{Sockets: true, Log: log})
	}
}

// DialTLS reaches a source's end at addr that proves to be host; "" is any
// host of the own trust domain.
func DialTLS(addr, host string, store *identity.Store, log *slog.Logger) tunnel.Dial {
	return func(ctx context.Context) (*tunnel.Session, error) {
		conn, err := tunnel.DialTLS(ctx, addr, store.ClientTLS(tunnel.Protocol, host))
		if err != nil {
			return nil, err
		}
		who, err := store.PeerOf(conn.ConnectionState(), true)
		if err != nil {
			conn.Close()
			return nil, err
		}
		log.Info("connected", "to", who.ID, "at", conn.RemoteAddr())
		return tunnel.Start(ctx, conn, tunnel.Config{Expires: who.NotAfter, Log: log})
	}
}
