package agent

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/socks"
)

// socksAddress is a recipient's SOCKS5 address.
type socksAddress struct {
	server socks.Server
	relay  relay.Link // of those whose handshake is under way
}

// openSocks gives r the SOCKS5 address its labels ask for, if they do. It is
// steered like a link's port, so the recipient's own port 1080 stays free.
func (a *Agent) openSocks(r *recipient) error {
	if !r.set.Socks.On() {
		return nil
	}
	s := &socksAddress{server: socks.Server{
		Connect: func(ctx context.Context, host string, port uint16) (socks.Way, error) {
			return a.way(ctx, r, host, port)
		},
		Log: a.log.With("recipient", r.name()),
	}}
	s.relay.Take = func(t *relay.Taken) { s.server.Handle(t.FD, func() { t.End(nil) }) }
	r.socks = s
	port := link.Port{Number: link.SocksAddr.Port(), Proto: link.TCP}
	return r.ports.Set(link.SocksAddr.Addr(), []link.Port{port}, &s.relay)
}

// way is a way to where a client of r's wants to go by SOCKS: to the ports of
// r's links, and nowhere else.
func (a *Agent) way(ctx context.Context, r *recipient, host string, port uint16) (socks.Way, error) {
	c := r.byName(host)
	if c == nil {
		return nil, fmt.Errorf("%q is no link of %q: %w", host, r.name(), socks.ErrNotAllowed)
	}
	v := c.view.Load()
	switch {
	case v == nil:
		return nil, fmt.Errorf("link %q: %w: its source has not been looked up yet", c.link.Alias, syscall.ECONNREFUSED)
	case c.remote == nil && !v.reaches(port): // other hosts decide about theirs
		return nil, fmt.Errorf("link %q has no port %d: %w", c.link.Alias, port, socks.ErrNotAllowed)
	case v.down() != "" && !v.held:
		return nil, fmt.Errorf("link %q: %w: %s", c.link.Alias, syscall.ECONNREFUSED, v.down())
	}
	var way socks.Way
	var err error
	if c.remote != nil {
		way, err = c.streamTo(ctx, port)
	} else {
		way, err = c.spliceTo(ctx, a, port)
	}
	if err != nil {
		return nil, fmt.Errorf("link %q: %w", c.link.Alias, err)
	}
	return way, nil
}

// byName finds the link that a client means: by a name that the recipient's
// hosts file has for it, by the alias if that cannot be in there, or by its
// address.
func (r *recipient) byName(host string) *carrier {
	addr, found := socks.Find(r.hosts(), host)
	if !found {
		return nil
	}
	for _, c := range r.links {
		if c.link.Addr == addr {
			return c
		}
	}
	return nil
}

// hosts is the recipient's hosts file, as far as it is about links, made anew
// from what the sources are called now.
func (r *recipient) hosts() []link.Host {
	sources := make(map[string]link.Source, len(r.links))
	for _, c := range r.links {
		if v := c.view.Load(); v != nil {
			sources[c.link.Alias] = link.Source{Name: v.res.source.Name, Hostname: v.res.source.Hostname}
		}
	}
	var hosts []link.Host
	for _, h := range r.set.Hosts(func(l link.Link) link.Source { return sources[l.Alias] }) {
		for name := range strings.FieldsSeq(h.Name) { // an alias "a b" is two names
			hosts = append(hosts, link.Host{Name: name, Addr: h.Addr})
		}
	}
	for _, c := range r.links {
		hosts = append(hosts, link.Host{Name: c.link.Alias, Addr: c.link.Addr})
	}
	for _, c := range r.links {
		hosts = append(hosts, link.Host{Name: c.link.Source, Addr: c.link.Addr}) // before it was renamed
	}
	return hosts
}

// reaches tells whether a port can be connected to by SOCKS.
func (v *view) reaches(port uint16) bool {
	for _, p := range v.res.source.Ports {
		if p.Proto == link.TCP && p.Number == port {
			return true
		}
	}
	return v.more.Contain(port)
}

// socksPorts are those that a source allows to be reached by SOCKS besides the
// exposed ones. A label that came with its image does not count: whoever runs a
// container decides what it is open for.
func (a *Agent) socksPorts(ctx context.Context, source docker.Container) (link.Ports, error) {
	if source.Labels[link.LabelSocksPorts] == "" {
		return nil, nil
	}
	img, err := a.engine.Image(ctx, source.Image)
	if err != nil {
		return nil, fmt.Errorf("looking which labels of %q are its image's: %w", source.Name, err)
	}
	value := link.Own(link.LabelSocksPorts, source.Labels, img.Labels)
	if value == "" {
		return nil, nil
	}
	ports, err := link.ParseSocksPorts(value)
	if err != nil {
		a.log.Warn("no more ports by SOCKS than those that are exposed", "source", source.Name,
			"label", link.LabelSocksPorts, "value", value, "err", err)
	}
	return ports, nil
}
