// Package peering keeps sessions with other hosts: with those that are wanted,
// and with those that call. It lets hosts join, and keeps this one's
// certificate fresh. It does not know what streams are for, and decides
// nothing about who may connect where.
package peering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/places"
	"github.com/linkrun/linkrun/tunnel"
)

// Hosts is this host's sessions with others. The fields are set before Run is
// called and stay as they are; Hold, Handle, Changed and Log before anything
// else is.
type Hosts struct {
	// Store is who this host is.
	Store *identity.Store
	// Authority is set where this host has it: others join and renew here.
	Authority *identity.Authority
	// AuthorityAt is the host whose authority renews this one's certificate. ""
	// is nobody: whoever has put the files of Store there replaces them.
	AuthorityAt string
	// Known are addresses of hosts, in the form that Address returns. Others
	// are dialed at Address of their names.
	Known map[string]string
	// Hold is how long Ask waits for a host that is not there. 0 is not at all.
	Hold time.Duration
	// Handle gets the streams that other hosts open, in a goroutine for each,
	// and owns them. from is who the host is, as it has proven last. nil
	// refuses all.
	Handle func(from identity.Peer, in *tunnel.Incoming)
	// Changed is called when a session with host has come or gone, or the
	// reason why there is none is another. It must not wait. nil is for nobody.
	Changed func(host string)
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger

	joining     places.Places
	followEvery time.Duration // 0 is the constant

	mu      sync.Mutex
	peers   map[string]*peer
	ctx     context.Context // of Run; nil before
	over    bool            // Run is about to return: no peer begins any more
	running sync.WaitGroup  // for the peers
}

// peer is another host: wanted, or there.
type peer struct {
	tunnel.Peer
	memory tunnel.Memory // of all sessions with it

	// These belong to Hosts.mu.
	wanted int                // calls of Want that are not released
	calls  int                // sessions about to be adopted
	quiet  time.Time          // since when nobody has had a use for it
	stop   context.CancelFunc // nil while it does not run
	proofs []proof
	proven identity.Peer // the last one
}

// Port is where hosts listen for each other unless something else is said.
const Port = "7443"

// Address is s with the port that it may lack: "hostb", "192.0.2.1:443", "::1",
// "[::1]:443". A port alone, "7443" or ":7443", is at every address of the
// host.
func Address(s string) string {
	if s != "" && strings.Trim(s, "0123456789") == "" {
		return ":" + s
	}
	if _, _, err := net.SplitHostPort(s); err == nil {
		return s
	}
	return net.JoinHostPort(strings.Trim(s, "[]"), Port)
}

var (
	errIdle   = errors.New("nothing is kept with other hosts yet: this host has no identity")
	errItself = errors.New("it is this host")
	errOver   = errors.New("nothing is kept with other hosts any more")
)

// Run keeps the sessions until ctx ends. It listens at each of the listeners,
// which it closes; without one no host can call. When it returns, everything
// is closed and no goroutine is left. The error is nil, or why a listener
// takes no connections any more.
func (h *Hosts) Run(ctx context.Context, listeners ...net.Listener) error {
	parts, ctx := errgroup.WithContext(ctx)
	h.start(ctx)
	defer h.end()
	for _, ln := range listeners {
		parts.Go(func() error {
			if err := h.listener().Serve(ctx, ln); err != nil {
				return fmt.Errorf("listening at %v: %w", ln.Addr(), err)
			}
			return nil
		})
	}
	for _, part := range []func(context.Context){h.follow, h.keepFresh, h.look} {
		parts.Go(func() error {
			part(ctx)
			return nil
		})
	}
	return parts.Wait() // which ends ctx
}

// follow looks after the files of the Store.
func (h *Hosts) follow(ctx context.Context) {
	h.Store.Follow(ctx, cmp.Or(h.followEvery, followEvery), h.log())
}

// followEvery is how often files that others write are looked at.
const followEvery = time.Second

// start begins with what was wanted before.
func (h *Hosts) start(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ctx = ctx
	for name, p := range h.peers {
		h.run(name, p)
	}
}

// end waits for the peers, after ctx has ended.
func (h *Hosts) end() {
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	h.running.Wait()
}

// runs tells whether Run does. Caller holds mu.
func (h *Hosts) runs() bool { return h.ctx != nil && !h.over }

// peer is the entry of a host, made if need be. Caller holds mu.
func (h *Hosts) peer(name string) *peer {
	if p := h.peers[name]; p != nil {
		return p
	}
	p := new(peer)
	p.Name, p.Hold, p.Log = name, h.Hold, h.log()
	p.Changed = func() { h.changed(name) }
	p.Handle = func(in *tunnel.Incoming) { h.handle(p, in) }
	if h.peers == nil {
		h.peers = make(map[string]*peer)
	}
	h.peers[name] = p
	if h.runs() {
		h.run(name, p)
	}
	return p
}

// run begins to keep sessions with p. Caller holds mu.
func (h *Hosts) run(name string, p *peer) {
	p.Own = h.own()
	ctx, stop := context.WithCancel(h.ctx)
	p.stop = stop
	p.quiet = time.Now()
	h.reach(name, p)
	h.running.Go(func() { p.Run(ctx) })
}

// own is the name of this host.
func (h *Hosts) own() string { return h.Store.Current().ID.Host }

// Want has a session kept with host, which need not be there. It may be called
// before Run. release takes that back; it may be called more than once.
func (h *Hosts) Want(host string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peer(host)
	p.wanted++
	if h.runs() {
		h.reach(host, p)
	}
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		p.wanted--
		p.quiet = time.Now()
		if h.runs() {
			h.reach(host, p)
		}
	})
}

// reach has p dialed, or not. Caller holds mu.
func (h *Hosts) reach(name string, p *peer) {
	if p.wanted == 0 || name == h.own() {
		p.Reach(nil)
		return
	}
	addr := cmp.Or(h.Known[name], Address(name))
	p.Reach(func(ctx context.Context) (*tunnel.Session, error) { return h.dial(ctx, p, addr) })
}

// Ask opens a stream to host and sends a request, see tunnel.Session.Ask. The
// host has to be wanted, or to have called.
func (h *Hosts) Ask(ctx context.Context, host string, r tunnel.Request) (*tunnel.Stream, error) {
	p, err := h.find(host)
	if err != nil {
		return nil, fmt.Errorf("reaching %q: %w", host, err)
	}
	return p.Ask(ctx, r)
}

// State is how it is with host.
func (h *Hosts) State(host string) tunnel.PeerState {
	p, err := h.find(host)
	if err != nil {
		return tunnel.PeerState{Reason: err.Error()}
	}
	return p.State()
}

var errUnknown = errors.New("it has not connected, and nobody wants it")

// find is the peer for a host, or the error why there is none.
func (h *Hosts) find(host string) (*peer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.peers[host]
	switch {
	case h.ctx == nil:
		return nil, errIdle
	case h.over:
		return nil, errOver
	case host == h.own():
		return nil, errItself
	case p == nil:
		return nil, errUnknown
	}
	return p, nil
}

// Host is another host, and how it is with it.
type Host struct {
	Name   string
	Wanted bool
	tunnel.PeerState
}

// List is the hosts that are wanted or there, by name.
func (h *Hosts) List() []Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []Host
	for name, p := range h.peers {
		if h.runs() && name != h.own() {
			list = append(list, Host{name, p.wanted > 0, p.State()})
		}
	}
	slices.SortFunc(list, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// changed is for what a peer's sessions do.
func (h *Hosts) changed(host string) {
	if h.Changed != nil {
		h.Changed(host)
	}
}

// look sees to what changes with time, until ctx ends.
func (h *Hosts) look(ctx context.Context) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	changed := h.Store.Changed()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			changed = h.Store.Changed() // first: what changes meanwhile counts
			h.renewed()
		case <-ticker.C:
			h.forget(time.Now())
		}
	}
}

const (
	lookEvery = time.Second
	// keepQuiet is how long a session is kept that this side has dialed and
	// nobody has a use for: links are removed and made again.
	keepQuiet = time.Minute
)

// forget ends what is neither wanted nor used.
func (h *Hosts) forget(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, p := range h.peers {
		switch st := p.State(); {
		case p.wanted > 0 || p.calls > 0 || st.Streams > 0 || st.Up && !st.Dialed:
			p.quiet = now
		case !st.Up || now.Sub(p.quiet) > keepQuiet:
			p.stop()
			delete(h.peers, name)
		}
	}
}

func (h *Hosts) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}
