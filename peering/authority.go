package peering

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/tunnel"
)

const (
	// maxJoining is how many hosts may be about to join. They have proven
	// nothing yet.
	maxJoining = 16
	// exchangeTime is how long they may take, and a certificate may.
	exchangeTime = 10 * time.Second
)

// join lets a host join.
func (h *Hosts) join(conn *tunnel.Secured) {
	defer conn.Close()
	defer h.joining.Take(maxJoining, conn)()
	defer context.AfterFunc(h.ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(exchangeTime))
	from := conn.RemoteAddr().String()
	host, err := h.Authority.ServeJoin(conn.Conn, from)
	if err != nil {
		h.log().Warn("refused a host that wants to join", "from", from, "err", err)
		return
	}
	h.log().Info("a host has joined", "host", host, "from", from)
	conn.CloseWrite()
}

// renew answers a host that has come for its next certificate.
func (h *Hosts) renew(who identity.Peer, in *tunnel.Incoming) {
	if h.Authority == nil {
		in.Refuse(tunnel.Unsupported, "the authority is at another host")
		return
	}
	defer in.Stream.Close()
	in.Stream.SetDeadline(time.Now().Add(exchangeTime))
	err := in.Grant()
	if err == nil {
		err = h.Authority.ServeRenew(in.Stream, who.ID.Host)
	}
	if err != nil {
		h.log().Warn("renewing a host's certificate", "host", who.ID.Host, "err", err)
		return
	}
	h.log().Info("renewed a host's certificate", "host", who.ID.Host)
}

// keepFresh exchanges this host's certificate in time, until ctx ends.
func (h *Hosts) keepFresh(ctx context.Context) {
	switch {
	case h.Authority != nil:
		h.Store.KeepFresh(ctx, func(_ context.Context, c *identity.Credential) (*identity.Credential, error) {
			return c.RenewFrom(h.Authority)
		}, h.log())
	case h.AuthorityAt != "":
		// Always, so that `peers` shows in time what would stop a renewal.
		defer h.Want(h.AuthorityAt)()
		h.Store.KeepFresh(ctx, h.askAuthority, h.log())
	}
}

// askAuthority gets the next certificate from the host that has the authority.
func (h *Hosts) askAuthority(ctx context.Context, c *identity.Credential) (*identity.Credential, error) {
	if err := c.Check(time.Now()); err != nil {
		return nil, fmt.Errorf("%w; it takes a new token to join again", err)
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	st, err := h.askSoon(ctx, h.AuthorityAt, tunnel.Request{Kind: tunnel.Renew})
	if err != nil {
		return nil, err
	}
	defer st.Close()
	defer context.AfterFunc(ctx, st.Abort)()
	if err := st.Answer(exchangeTime); err != nil {
		return nil, fmt.Errorf("asking %q for a certificate: %w", h.AuthorityAt, err)
	}
	return c.Renew(st)
}

// askSoon is Ask that waits for a session until ctx ends. At the start there
// is none yet.
func (h *Hosts) askSoon(ctx context.Context, host string, r tunnel.Request) (*tunnel.Stream, error) {
	for {
		st, err := h.Ask(ctx, host, r)
		if err == nil || h.State(host).Up {
			return st, err
		}
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
	}
}

// Join has this host join over the network: it returns the credential that the
// authority at addr gives for the token, and the host which that is.
func Join(ctx context.Context, addr string, t identity.Token) (*identity.Credential, identity.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	conn, err := tunnel.DialTLS(ctx, addr, identity.JoinClientTLS(t))
	if err != nil {
		return nil, identity.ID{}, fmt.Errorf("joining with %v: %w", t, plain(addr, err))
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c, at, err := identity.Join(conn.Conn, t)
	if errors.Is(err, net.ErrClosed) && ctx.Err() != nil {
		err = fmt.Errorf("joining with %v: %w", t, context.Cause(ctx))
	}
	return c, at, err
}
