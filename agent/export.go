package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/policy"
)

// LabelProxy is the label of a source that wants to be told who calls from
// another host: "v2", by the PROXY protocol of that version.
const LabelProxy = "ambassador.proxy-protocol"

// export is a source that another host has asked for, whether it is there or
// not. It lasts as long as somebody uses it.
type export struct {
	name  string
	users int // guarded by exports.mu

	source *source // Run's goroutine only; nil while it is down

	ready chan struct{} // closed when there is a view
	view  atomic.Pointer[exported]
}

// exported is what is known of an export. It does not change; newer is closed
// when there is another one.
type exported struct {
	res    resolution
	broken error // what keeps it from being reached although it runs
	rules  policy.Rules
	env    policy.Env
	proxy  bool
	more   link.Ports // that are reached by SOCKS only
	dial   dialer     // nil while it is down
	gone   context.Context
	drop   context.CancelFunc // ends gone, when dial leads nowhere any more
	over   bool               // the agent ends; nothing more is known
	newer  chan struct{}
}

// dialer connects to the ports of one source.
type dialer interface {
	Dial(ctx context.Context, port uint16) (*net.TCPConn, error)
	DialPackets(ctx context.Context, port uint16) (*net.UDPConn, error)
	Close() error
}

func (v *exported) down() string {
	if v.broken != nil {
		return "it is there, and cannot be reached" // why is for this host's log
	}
	return v.res.down
}

// name is what the source is called in rules: by its own name, whatever it was
// asked for by, so that a rule about it cannot be got around. "" if there is
// none.
func (v *exported) name() string { return v.res.source.Name }

// exports is all of them, and what each host has of them. The zero value works.
type exports struct {
	mu     sync.Mutex
	of     map[string]*export      // by the name asked for
	rules  map[string]policy.Rules // by the source's own name; of those that are there
	hosts  map[string]*share
	closed bool
}

// share is what one host has open.
type share struct{ streams, watches int }

// What one host may have open at a time, in all its sessions together.
const (
	maxHostStreams = 8192
	maxHostWatches = 1024
)

// use returns the export of a name, made if need be; nil if the host has too
// much. It may wait to be looked up. leave gives it back.
func (x *exports) use(host, name string, watch bool) *export {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.hosts[host]
	if s == nil {
		s = new(share)
		if x.hosts == nil {
			x.hosts = make(map[string]*share)
		}
		x.hosts[host] = s
	}
	if x.closed || s.streams == maxHostStreams || watch && s.watches == maxHostWatches {
		return nil
	}
	s.streams++
	if watch {
		s.watches++
	}
	e := x.of[name]
	if e == nil {
		e = &export{name: name, ready: make(chan struct{})}
		if x.of == nil {
			x.of = make(map[string]*export)
		}
		x.of[name] = e
	}
	e.users++
	return e
}

// leave is the other end of use. It reports whether nobody uses e any more.
func (x *exports) leave(e *export, host string, watch bool) (unused bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.hosts[host]
	s.streams--
	if watch {
		s.watches--
	}
	if s.streams == 0 {
		delete(x.hosts, host)
	}
	e.users--
	return e.users == 0
}

// all is the exports there are now.
func (x *exports) all() []*export {
	x.mu.Lock()
	defer x.mu.Unlock()
	list := make([]*export, 0, len(x.of))
	for _, e := range x.of {
		list = append(list, e)
	}
	return list
}

// takeUnused forgets the exports that nobody uses, all of them if nobody is to
// use any from now on, and returns them.
func (x *exports) takeUnused(all bool) (unused []*export) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = x.closed || all
	for name, e := range x.of {
		if e.users == 0 || all {
			delete(x.of, name)
			unused = append(unused, e)
		}
	}
	x.indexLocked()
	return unused
}

// store makes v what is known of e.
func (x *exports) store(e *export, v *exported) {
	v.newer = make(chan struct{})
	old := e.view.Swap(v)
	x.mu.Lock()
	x.indexLocked()
	x.mu.Unlock()
	if old == nil {
		close(e.ready)
	} else {
		close(old.newer)
	}
}

func (x *exports) indexLocked() {
	x.rules = make(map[string]policy.Rules, len(x.of))
	for _, e := range x.of {
		if v := e.view.Load(); v != nil && v.name() != "" {
			x.rules[v.name()] = v.rules
		}
	}
}

// rulesOf are those of the label of a source that is there.
func (x *exports) rulesOf(name string) (rules policy.Rules, found bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	rules, found = x.rules[name]
	return rules, found
}

// followExports has exports lead to where their sources are, as far as changes
// (nil: all) give a reason to look.
func (a *Agent) followExports(ctx context.Context, look *lookup, changes []change) error {
	var failed []error
	for _, e := range a.exports.all() {
		v := e.view.Load()
		switch {
		case v == nil || changes == nil || v.broken != nil || v.concernedBy(e.name, changes):
			failed = append(failed, a.pointExport(ctx, look, e))
		case slices.ContainsFunc(changes, func(c change) bool { return c.policy }):
			again := *v
			a.exports.store(e, &again)
		}
	}
	for _, e := range a.exports.takeUnused(false) {
		a.closeExport(e)
	}
	return errors.Join(failed...)
}

func (v *exported) concernedBy(name string, changes []change) bool {
	return slices.ContainsFunc(changes, func(c change) bool {
		return concerns(c.event, link.Link{Source: name}, v.res)
	})
}

// pointExport finds the source of e. The error is worth a retry.
func (a *Agent) pointExport(ctx context.Context, look *lookup, e *export) error {
	now, err := a.findExport(ctx, look, e.name)
	if err != nil {
		return fmt.Errorf("looking for source %q: %w", e.name, err)
	}
	was := e.view.Load()
	if was != nil && was.dial != nil && now.res.down == "" && incarnation(was.res.source) == incarnation(now.res.source) &&
		was.res.source.IPv4() == now.res.source.IPv4() {
		now.dial, now.gone, now.drop = was.dial, was.gone, was.drop
	} else {
		e.source = nil
		if now.res.down == "" {
			now.dial, e.source, now.broken = a.dialerTo(now.res.source)
			now.gone, now.drop = context.WithCancel(context.Background())
		}
		if errors.Is(now.broken, fs.ErrNotExist) {
			// It stopped since the engine was asked; the event is on its way.
			now.broken, now.res.down = nil, fmt.Sprintf("container %q is stopping", now.res.source.Name)
		}
	}
	a.exports.store(e, now)
	if was != nil && was.dial != now.dial {
		was.close()
	}
	if was != nil && (was.name() != now.name() || !slices.Equal(was.rules, now.rules)) {
		a.guard.Recheck()
	}
	if now.broken != nil {
		return fmt.Errorf("offering source %q to other hosts: %w", e.name, now.broken)
	}
	return nil
}

// findExport looks a source up by its exact name: an id, or part of one, would
// get around a rule that speaks of the name.
func (a *Agent) findExport(ctx context.Context, look *lookup, name string) (*exported, error) {
	v := &exported{res: resolution{down: fmt.Sprintf("there is no container %q", name)}}
	ctr, err := a.engine.Named(ctx, name)
	if errors.Is(err, docker.ErrNotFound) {
		return v, nil
	}
	if err != nil {
		return nil, err
	}
	look.seen[name] = answer{ctr, nil}
	if v.res, err = resolve(ctx, look, link.Link{Source: name}); err != nil || v.name() == "" {
		return v, err
	}
	return v, a.readLabels(ctx, v)
}

// readLabels takes over what the source itself says. A label that cannot be
// read permits nothing.
func (a *Agent) readLabels(ctx context.Context, v *exported) error {
	src := v.res.source
	img, err := a.engine.Image(ctx, src.Image)
	if errors.Is(err, docker.ErrNotFound) {
		a.log.Error("nobody of other hosts may connect to a source: its image is gone, and which labels are its own cannot be told", "source", src.Name,
			"hint", "create it again from an image that is there")
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking which labels are its image's: %w", err)
	}
	own := func(key string) string { return link.Own(key, src.Labels, img.Labels) }
	var wrong [4]error
	v.rules, wrong[0] = policy.ParseLabel(src.Name, own(policy.Label))
	v.env, wrong[1] = policy.ParseEnv(src.Name, own(policy.EnvLabel))
	switch proxy := own(LabelProxy); proxy {
	case "v2":
		v.proxy = true
	case "":
	default:
		wrong[2] = fmt.Errorf("parsing label %q of %q: %q is not v2", LabelProxy, src.Name, proxy)
	}
	if ports := own(link.LabelSocksPorts); ports != "" {
		if v.more, wrong[3] = link.ParseSocksPorts(ports); wrong[3] != nil {
			wrong[3] = fmt.Errorf("parsing label %q of %q: %w", link.LabelSocksPorts, src.Name, wrong[3])
		}
	}
	if err := errors.Join(wrong[:]...); err != nil {
		v.rules, v.env = nil, nil
		a.log.Error("nobody of other hosts may connect to a source", "source", src.Name, "err", err,
			"hint", "create it again with the label corrected")
	}
	return nil
}

// dialerTo returns what connects to a source from inside of it, as nobody that
// a server would know: what another host says about who calls is to pass no
// rule about addresses.
func (a *Agent) dialerTo(ctr docker.Container) (dialer, *source, error) {
	if a.dialTo != nil {
		d, err := a.dialTo(ctr)
		return d, nil, err
	}
	src, err := a.sourceOf(ctr)
	if err != nil {
		return nil, nil, err
	}
	d, err := src.dialer.Source(netip.Addr{}, ctr.IPv4())
	if err != nil {
		return nil, nil, err
	}
	return d, src, nil
}

// closeExport lets go of what e leads to. Whoever still looks at it sees that
// it is over.
func (a *Agent) closeExport(e *export) {
	was := e.view.Load()
	a.exports.store(e, &exported{over: true})
	e.source = nil
	if was != nil {
		was.close()
	}
}

// close lets go of what v leads to. Nobody waits for a source that went:
// Docker takes a stopping container's address away first, and then nothing in
// there can even refuse.
func (v *exported) close() {
	if v.dial != nil {
		v.drop()
		v.dial.Close()
	}
}
