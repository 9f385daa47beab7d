package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/relay"
)

// carrier is one link being carried: what the label says, where it leads now,
// and the relay's side of it, which outlives every change of the source.
type carrier struct {
	link   link.Link
	relay  relay.Link
	to     target
	remote *remote // nil when the source is on this host

	res    resolution // Run's goroutine only
	source *source    // likewise; nil while the link is down

	view atomic.Pointer[view] // nil until the link was pointed once
}

// view is what others may know of a link: how it was last pointed.
type view struct {
	res    resolution
	from   netip.Addr // the recipient's address, as the source sees it
	broken error      // what kept a link from being carried although its source is up
	held   bool       // connections wait for the source's host although the link is down
	more   link.Ports // that are reached by SOCKS only
}

// leadsTo tells whether a link pointed as v carries what one pointed as w
// would, so that nothing has to be done.
func (v *view) leadsTo(w *view) bool {
	return v != nil && v.down() == "" && w.down() == "" && v.from == w.from &&
		incarnation(v.res.source) == incarnation(w.res.source) &&
		v.res.source.IPv4() == w.res.source.IPv4() && slices.Equal(v.res.source.Ports, w.res.source.Ports)
}

func (v *view) down() string {
	if v.broken != nil {
		return v.broken.Error()
	}
	return v.res.down
}

func newCarrier(l link.Link) *carrier {
	c := &carrier{link: l}
	c.relay.Source = &c.to
	return c
}

func (c *carrier) concernedBy(changes []change) bool {
	for _, ch := range changes {
		if ch.link == c || c.remote == nil && concerns(ch.event, c.link, c.res) {
			return true
		}
	}
	return false
}

// point makes c lead to where its source is now. The error is worth a retry;
// a source that is down is none.
func (a *Agent) point(ctx context.Context, look *lookup, r *recipient, c *carrier) error {
	was, now := c.view.Load(), &view{from: r.view.Load().IPv4()}
	if c.remote != nil {
		told := c.remote.look(func() { a.inbox.put(change{link: c}) })
		if told == nil {
			return nil // the other host is being asked
		}
		now.res = told.resolution(c.link)
		now.held = told.lost && a.Hold && was != nil && (was.held || was.down() == "")
	} else {
		var err error
		if now.res, err = resolve(ctx, look, c.link); err == nil {
			now.more, err = a.socksPorts(ctx, now.res.source)
		}
		if err != nil {
			return fmt.Errorf("resolving link %q of %q: %w", c.link.Alias, r.name(), err)
		}
	}
	if !was.leadsTo(now) && !now.held {
		if now.res.down == "" {
			now.broken = a.connect(r, c, now)
		}
		if now.down() != "" {
			now.broken = errors.Join(now.broken, r.refuse(c))
		}
	}
	c.res = now.res
	c.view.Store(now)
	a.logPointed(r, c, was, now)
	if now.broken != nil {
		return fmt.Errorf("carrying link %q of %q: %w", c.link.Alias, r.name(), now.broken)
	}
	return nil
}

// connect has connections of c carried to where now says. The dialer is in
// place before the first port is steered, and an old source is let go after
// the new one took its place, so no connection meets a link half-pointed.
func (a *Agent) connect(r *recipient, c *carrier, now *view) error {
	if c.remote != nil {
		return r.ports.Set(c.link.Addr, carried(now.res.source.Ports), &c.relay)
	}
	src, err := a.sourceOf(now.res.source)
	if errors.Is(err, fs.ErrNotExist) {
		// It stopped since the engine was asked; the event is on its way.
		now.res.down = fmt.Sprintf("container %q is stopping", now.res.source.Name)
		return nil
	}
	if err != nil {
		return err
	}
	dial, err := src.dialer.Source(now.from, now.res.source.IPv4())
	if err != nil {
		return err
	}
	return errors.Join(c.lead(src, dial), r.ports.Set(c.link.Addr, carried(now.res.source.Ports), &c.relay))
}

// refuse withdraws every port of c, so that clients get a real refusal, and
// lets its source go: sockets made ahead of need pin the source's namespace.
func (r *recipient) refuse(c *carrier) error {
	err := r.ports.Set(c.link.Addr, nil, &c.relay)
	return errors.Join(err, c.lead(nil, nil))
}

// lead has what is accepted from now on connected by dial, in the namespace of
// src. Nobody waits for a source that went: Docker takes a stopping container's
// address away first, and then nothing in there can even refuse.
func (c *carrier) lead(src *source, dial *netns.Source) error {
	was := c.source
	c.source = src
	err := c.to.swap(dial)
	if was != nil && was != src {
		c.relay.GiveUp()
	}
	return err
}

// carried leaves out the ports no link carries.
func carried(ports []link.Port) []link.Port {
	out := make([]link.Port, 0, len(ports))
	for _, p := range ports {
		if p.Proto != link.SCTP {
			out = append(out, p)
		}
	}
	return out
}

func (a *Agent) logPointed(r *recipient, c *carrier, was, now *view) {
	log := a.log.With("recipient", r.name(), "alias", c.link.Alias, "source", c.link.Ref())
	down, wasDown := now.down(), was == nil || was.down() != ""
	switch {
	case now.broken != nil:
		log.Error("link broken", "err", now.broken)
	case down != "" && (was == nil || was.down() != down):
		log.Warn("link down", "reason", down)
	case down == "" && (wasDown || !was.leadsTo(now)):
		log.Info("link up", "address", c.link.Addr, "ports", len(now.res.source.Ports))
	}
}
