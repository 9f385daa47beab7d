package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
)

// carrier is one link being carried: what the label says, where it leads now,
// and the relay's side of it, which outlives every change of the source.
type carrier struct {
	link  link.Link
	relay relay.Link
	to    target

	res    resolution // Run's goroutine only
	source *source    // likewise; nil while the link is down

	view atomic.Pointer[view] // nil until the link was pointed once
}

// view is what others may know of a link: how it was last pointed.
type view struct {
	res    resolution
	broken error // what kept a link from being carried although its source is up
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
		if concerns(ch.event, c.link, c.res) {
			return true
		}
	}
	return false
}

// point makes c lead to where its source is now. The error is worth a retry;
// a source that is down is none.
func (a *Agent) point(ctx context.Context, look *lookup, r *recipient, c *carrier) error {
	res, err := resolve(ctx, look, c.link)
	if err != nil {
		return fmt.Errorf("resolving link %q of %q: %w", c.link.Alias, r.name(), err)
	}
	was := c.view.Load()
	now := &view{res: res}
	if res.down == "" {
		now.broken = a.connect(r, c, res)
	}
	if now.down() != "" {
		now.broken = errors.Join(now.broken, r.refuse(c))
	}
	c.res = res
	c.view.Store(now)
	a.logPointed(r, c, was, now)
	if now.broken != nil {
		return fmt.Errorf("carrying link %q of %q: %w", c.link.Alias, r.name(), now.broken)
	}
	return nil
}

// connect has connections of c carried to res. The dialer is in place before
// the first port is steered, and an old source is let go after the new one
// took its place, so no connection meets a link half-pointed.
func (a *Agent) connect(r *recipient, c *carrier, res resolution) error {
	src, err := a.sourceOf(res.source)
	if err != nil {
		return err
	}
	dial, err := src.dialer.Source(r.view.Load().IPv4(), res.source.IPv4())
	if err != nil {
		return err
	}
	c.to.swap(dial)
	c.source = src
	return r.ports.Set(c.link.Addr, carried(res.source.Ports), &c.relay)
}

// refuse withdraws every port of c, so that clients get a real refusal, and
// lets its source go: sockets made ahead of need pin the source's namespace.
func (r *recipient) refuse(c *carrier) error {
	err := r.ports.Set(c.link.Addr, nil, &c.relay)
	c.to.swap(nil)
	c.source = nil
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
	log := a.log.With("recipient", r.name(), "alias", c.link.Alias, "source", c.link.Source)
	down, wasDown := now.down(), was == nil || was.down() != ""
	switch {
	case now.broken != nil:
		log.Error("link broken", "err", now.broken)
	case down != "" && (was == nil || was.down() != down):
		log.Warn("link down", "reason", down)
	case down == "" && (wasDown || was.res.source.ID != now.res.source.ID || was.res.source.StartedAt != now.res.source.StartedAt):
		log.Info("link up", "address", c.link.Addr, "ports", len(now.res.source.Ports))
	}
}
