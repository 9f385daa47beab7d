package peering

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/tunnel"
)

// proof is what a session was made with.
type proof struct {
	session *tunnel.Session
	shown   tls.ConnectionState
	dialed  bool
}

// dial makes a session with p.
func (h *Hosts) dial(ctx context.Context, p *peer, addr string) (*tunnel.Session, error) {
	// The other side would say no more than that it does not like it.
	if err := h.Store.Current().Check(time.Now()); err != nil {
		return nil, err
	}
	conn, err := tunnel.DialTLS(ctx, addr, h.Store.ClientTLS(tunnel.Protocol, p.Name))
	if err != nil {
		return nil, plain(addr, err)
	}
	shown := conn.ConnectionState()
	who, err := h.Store.PeerOf(shown, true)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s, err := tunnel.Start(ctx, conn, h.config(p, who))
	if err != nil {
		return nil, plain(addr, err)
	}
	if err := h.note(p, who, proof{s, shown, true}); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// plain leaves out of an error the port that the kernel has picked for this
// side. It is another one each time, and says nothing.
func plain(addr string, err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Source != nil {
		return fmt.Errorf("connecting to %q: %w", addr, op.Err)
	}
	return err
}

func (h *Hosts) config(p *peer, who identity.Peer) tunnel.Config {
	return tunnel.Config{Memory: &p.memory, Expires: who.NotAfter, Log: h.log().With("peer", p.Name)}
}

// note keeps what a session was proven with, and tells whether that still
// counts: renewed, which looks at what was noted, may just have been.
func (h *Hosts) note(p *peer, who identity.Peer, proof proof) error {
	h.mu.Lock()
	p.proofs = append(slices.DeleteFunc(p.proofs, over), proof)
	p.proven = who
	h.mu.Unlock()
	_, err := h.Store.PeerOf(proof.shown, proof.dialed)
	return err
}

func over(p proof) bool { return p.session.Err() != nil }

// listener lets hosts call, and hosts join where the authority is.
func (h *Hosts) listener() *tunnel.Listener {
	peers := h.Store.ServerTLS(tunnel.Protocol)
	config := &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return peers, nil },
	}
	if h.Authority != nil {
		join := h.Authority.JoinServerTLS(h.own())
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if slices.Contains(hello.SupportedProtos, identity.JoinProtocol) {
				return join, nil
			}
			return peers, nil
		}
	}
	return &tunnel.Listener{TLS: config, Handle: h.called, Log: h.log()}
}

// called is for a connection whose handshake went well.
func (h *Hosts) called(conn *tunnel.Secured) {
	switch conn.ConnectionState().NegotiatedProtocol {
	case tunnel.Protocol:
		if err := h.adopt(conn); err != nil {
			h.log().Warn("refused a host", "from", conn.RemoteAddr(), "err", err)
			conn.Close()
		}
	case identity.JoinProtocol:
		h.join(conn)
	default:
		// Whoever offers no protocol at all gets as far as this.
		h.log().Warn("refused a host", "from", conn.RemoteAddr(), "err", errNoProtocol)
		conn.Close()
	}
}

var errNoProtocol = errors.New("it does not say that it speaks " + tunnel.Protocol)

// adopt makes a session of a connection that another host has made.
func (h *Hosts) adopt(conn *tunnel.Secured) error {
	shown := conn.ConnectionState()
	who, err := h.Store.PeerOf(shown, false)
	if err != nil {
		return err
	}
	if who.ID.Host == h.own() {
		return fmt.Errorf("it has the name of this host, %v", who.ID)
	}
	h.mu.Lock()
	if !h.runs() {
		h.mu.Unlock()
		return errOver
	}
	p := h.peer(who.ID.Host)
	p.calls++
	h.mu.Unlock()

	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		p.calls--
	}()
	s := tunnel.Server(conn, h.config(p, who))
	if err := h.note(p, who, proof{s, shown, false}); err != nil {
		s.Close()
		return err
	}
	p.Adopt(s)
	return nil
}

// renewed is for another credential of this host. Sessions are to be proven
// with it, and those that are with roots it does not trust any more end.
func (h *Hosts) renewed() {
	h.mu.Lock()
	var lost []proof
	for _, p := range h.peers {
		p.Renew()
		lost = append(lost, p.proofs...)
	}
	h.mu.Unlock()
	for _, proof := range slices.DeleteFunc(lost, h.trusted) {
		h.log().Warn("cutting a session that is not trusted any more", "from", proof.session.RemoteAddr())
		proof.session.Close()
	}
}

// trusted tells whether the roots of now vouch for a session. One whose
// certificate has expired is for tunnel.Peer to judge.
func (h *Hosts) trusted(p proof) bool {
	if over(p) || time.Now().After(p.session.Expires()) {
		return true
	}
	_, err := h.Store.PeerOf(p.shown, p.dialed)
	return err == nil
}

// handle is for a stream that p has opened.
func (h *Hosts) handle(p *peer, in *tunnel.Incoming) {
	h.mu.Lock()
	who := p.proven
	h.mu.Unlock()
	switch {
	case in.Kind == tunnel.Renew:
		h.renew(who, in)
	case h.Handle != nil:
		h.Handle(who, in)
	default:
		in.Refuse(tunnel.Unsupported, "this host takes no requests")
	}
}
