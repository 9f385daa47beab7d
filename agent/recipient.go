package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/gate"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/portmap"
	"github.com/linkrun/linkrun/relay"
)

// recipient is one running container that has links.
type recipient struct {
	id    string
	run   string                           // its incarnation
	view  atomic.Pointer[docker.Container] // as last inspected
	ns    *netns.Namespace
	set   link.Set
	links []*carrier
	wrong *mistake // it has no links then

	ports  *portmap.Map[*relay.Link]                // nil when wrong
	routes atomic.Pointer[portmap.Map[*relay.Link]] // the same, for the relay's threads
	socks  *socksAddress                            // nil when there is none
	guests guests
	gate   *openGate // nil until every link was pointed once
}

// mistake is why a container that asks for links gets none, and what to do.
type mistake struct {
	error
	hint string
}

// linksOf reads a container's labels, without those of its image. The error is
// a *mistake, or the engine's.
func (a *Agent) linksOf(ctx context.Context, ctr docker.Container) (link.Set, error) {
	img, err := a.engine.Image(ctx, ctr.Image)
	switch {
	case errors.Is(err, docker.ErrNotFound):
		return link.Set{}, &mistake{errors.New("its image was removed, and nobody else knows which labels are the container's own"),
			"create the container again, or bring the image back and start it again"}
	case err != nil:
		return link.Set{}, fmt.Errorf("looking which labels are its image's: %w", err)
	}
	set, err := link.ParseLabels(link.WithoutInherited(ctr.Labels, img.Labels))
	if err != nil {
		return link.Set{}, &mistake{err, "create the container again with the label corrected"}
	}
	if len(set.Links) > 0 && !ownsNetwork(ctr) {
		return link.Set{}, &mistake{fmt.Errorf("on network %q its links would be there for everyone who shares it", ctr.NetworkMode),
			"create the container again with a network of its own"}
	}
	return set, nil
}

// ownsNetwork tells whether a container's network namespace is its own, and
// not the host's or another container's.
func ownsNetwork(ctr docker.Container) bool {
	_, joined := ctr.JoinedContainer()
	return !joined && ctr.NetworkMode != "host"
}

// open takes a running container on, with these links or with a reason why it
// has none. Each of its links is down until it is pointed.
func (a *Agent) open(ctr docker.Container, set link.Set, wrong *mistake) (_ *recipient, err error) {
	r := &recipient{id: ctr.ID, run: incarnation(ctr), set: set, wrong: wrong}
	r.view.Store(&ctr)
	if wrong != nil {
		a.log.Error("not linking a container", "recipient", ctr.Name, "err", wrong, "hint", wrong.hint)
	}
	if !ownsNetwork(ctr) {
		r.ns, r.gate = new(netns.Namespace), new(openGate) // nothing is made there, no gate either
		return r, nil
	}
	ns, err := openNamespace(ctr)
	if err != nil {
		return nil, err
	}
	r.ns = ns
	if wrong != nil {
		return r, nil
	}
	r.ports, err = portmap.Open[*relay.Link](ns, sink{a.relay, r}, a.log.With("recipient", ctr.Name))
	if err != nil {
		ns.Close()
		return nil, err
	}
	r.routes.Store(r.ports)
	for _, l := range r.set.Links {
		if l.Host != "" {
			r.links = append(r.links, a.newRemoteCarrier(l, func() docker.Container { return *r.view.Load() }))
			continue
		}
		r.links = append(r.links, newCarrier(l))
	}
	if err := a.openSocks(r); err != nil {
		return nil, errors.Join(fmt.Errorf("opening its SOCKS5 address: %w", err), r.close())
	}
	a.log.Info("recipient found", "recipient", ctr.Name, "links", len(r.links), "steered", r.ports.Steered())
	return r, nil
}

func (r *recipient) is(ctr docker.Container) bool { return r.run == incarnation(ctr) }

// update takes over what may change while a container runs: its name, and its
// addresses.
func (r *recipient) update(ctr docker.Container) { r.view.Store(&ctr) }

func (r *recipient) name() string { return r.view.Load().Name }

// close lets everything of the recipient go. Connections that are open end.
func (r *recipient) close() error {
	var errs []error
	if r.gate != nil {
		r.gate.close()
	}
	if r.ports != nil {
		errs = append(errs, r.ports.Close())
	}
	if r.socks != nil {
		errs = append(errs, r.socks.server.Close())
	}
	r.showOut()
	for _, c := range r.links {
		c.relay.Cut()
		if c.remote != nil {
			c.remote.close()
		}
		errs = append(errs, c.to.swap(nil))
	}
	return errors.Join(append(errs, r.ns.Close())...)
}

// route finds the link of a connection by the address it was made to.
func (r *recipient) route(proto link.Proto) func(netip.AddrPort) *relay.Link {
	return func(local netip.AddrPort) *relay.Link {
		ports := r.routes.Load()
		if ports == nil {
			return nil // accepted while the ports are being opened: none is anyone's yet
		}
		l, _ := ports.Lookup(local, proto)
		return l
	}
}

// sink hands the sockets of a recipient's ports to the relay.
type sink struct {
	relay *relay.Engine
	r     *recipient
}

func (s sink) Listen(fd int) (stop func() error, err error) {
	l, err := s.relay.Serve(fd, s.r.route(link.TCP))
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

func (s sink) Packets(recv, reply int) (stop func() error, err error) {
	l, err := s.relay.ServePackets(recv, reply, s.r.route(link.UDP))
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

// word is what the recipient's init is told. It is made when it is asked for:
// most recipients never ask again, and a thousand ports make a long word.
func (r *recipient) word(engineMajor int) gate.Word {
	if r.wrong != nil {
		return gate.Word{Error: r.wrong.Error(), Hint: r.wrong.hint}
	}
	known := link.Set{Env: r.set.Env, Kept: r.set.Kept}
	sources := make(map[string]link.Source, len(r.links))
	for _, c := range r.links {
		v := c.view.Load()
		if v.broken != nil {
			return gate.Word{
				Error: fmt.Sprintf("link %q cannot be carried: %v", c.link.Alias, v.broken),
				Hint:  "see the log of the ambassador",
			}
		}
		// A source that is gone has nothing to say about its variables: those
		// the container was created with stay.
		if s := v.res.source; s.ID != "" {
			sources[c.link.Alias] = link.Source{Name: s.Name, Hostname: s.Hostname, Env: s.Env, Ports: s.Ports}
			known.Links = append(known.Links, c.link)
		}
	}
	w := gate.Word{Kept: r.set.Kept}
	if r.set.Env != link.ModeNone {
		w.Env = known.Variables(engineMajor, r.name(), func(l link.Link) link.Source { return sources[l.Alias] })
		w.Prefixes = known.Prefixes()
	}
	return w
}
