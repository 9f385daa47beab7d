// Package agent turns labels and Docker events into the state the host should
// be in, and that state into listeners, dialers and gates, by wiring the
// packages that make them. It makes no sockets, and moves no bytes but by the
// pumps of package tunnel.
//
// One goroutine, Run's, owns all links. It learns of a change from the
// engine's events, or from other hosts, looks at what the engine says now, and
// brings what it holds in line with it. Others read what it publishes.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/policy"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/tunnel"
)

// Engine is what the agent asks of a Docker Engine.
type Engine interface {
	// Container inspects a container; docker.ErrNotFound when there is none.
	Container(ctx context.Context, ref string) (docker.Container, error)
	// Named inspects the container that has exactly this name;
	// docker.ErrNotFound when there is none.
	Named(ctx context.Context, name string) (docker.Container, error)
	// Image inspects the image of a container; docker.ErrNotFound when it was
	// removed.
	Image(ctx context.Context, id string) (docker.Image, error)
	// Running inspects the running containers whose labels keep accepts.
	Running(ctx context.Context, keep func(labels map[string]string) bool) ([]docker.Container, error)
	// Events calls ready when events can no longer be missed, then handle for
	// each, until ctx ends or the stream breaks.
	Events(ctx context.Context, ready func(), handle func(docker.Event)) error
}

// Agent carries the links of one engine. See New.
type Agent struct {
	// Settled returns when a container that has just started is kept apart
	// from others as it should be; until then, its program is held back. Nil:
	// nobody keeps it apart.
	Settled func(ctx context.Context, ctr docker.Container) error

	// Hosts is the sessions with other hosts; nil: there are none. Answer is
	// for the streams that they open, and HostChanged for their news.
	Hosts Hosts
	// Name returns what other hosts call this one, "" while it has no identity.
	// It is set if Hosts is.
	Name func() string
	// Hold says that connections to a host that is not there are held for a
	// while, by Hosts, and not refused at once.
	Hold bool
	// Policy is what is allowed to other hosts besides what the labels of
	// sources allow; nil is nothing. PolicyChanged is for its changes.
	Policy *policy.File

	engine Engine
	who    docker.Engine
	relay  *relay.Engine
	log    *slog.Logger
	inbox  inbox

	hostNews news
	buffers  tunnel.Buffers // of all connections to and from other hosts
	exports  exports
	guard    policy.Guard
	dialTo   func(docker.Container) (dialer, error) // for tests: without a namespace

	// Owned by Run's goroutine.
	looked     bool                  // at everything, once, with an engine that answered
	recipients map[string]*recipient // by container id
	sources    map[string]*source    // by id of the container whose namespace it is

	published atomic.Pointer[[]*recipient]
}

// New returns an agent for the engine that calls itself who. Bytes are moved
// by mover, which is started and closed by the caller, after Run.
func New(engine Engine, who docker.Engine, mover *relay.Engine, log *slog.Logger) *Agent {
	a := &Agent{
		engine:     engine,
		who:        who,
		relay:      mover,
		log:        log,
		recipients: make(map[string]*recipient),
		sources:    make(map[string]*source),
	}
	a.guard.Decide, a.guard.Log = a.decide, log
	return a
}

// How soon everything is looked at again after the engine failed to answer, or
// a link could not be set up: what keeps failing is looked at ever less often.
const (
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// Run carries links until ctx ends. It calls ready once, when every link that
// was there at the start is carried, or known to be down or broken: one
// container that cannot be linked does not keep the others waiting. When it
// returns, no listener, dialer or goroutine of its own is left.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(ctx, a.engine, &a.inbox, a.log)
	}()
	defer func() {
		<-watched
		a.closeAll()
	}()

	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	wait := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
			a.inbox.put(change{resync: true})
			continue
		case <-a.inbox.ready():
		}
		err := a.apply(ctx, a.inbox.take())
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			a.log.Warn("not everything is as it should be; trying again", "in", wait, "err", err)
			retry.Reset(wait)
			wait = min(2*wait, lastRetry)
		} else {
			wait = firstRetry
		}
		if a.looked && ready != nil {
			ready()
			ready = nil
		}
	}
}

// apply brings the links in line with what the engine says now, as far as the
// changes give a reason to look. The error joins what has to be tried again.
func (a *Agent) apply(ctx context.Context, changes []change) error {
	look := newLookup(a.engine)
	defer a.publish()
	for _, c := range changes {
		if c.resync {
			return a.resync(ctx, look)
		}
	}
	var failed []error
	for id := range containersOf(changes) {
		failed = append(failed, a.see(ctx, look, id))
	}
	for _, r := range a.recipients {
		failed = append(failed, a.follow(ctx, look, r, changes))
	}
	failed = append(failed, a.followExports(ctx, look, changes))
	a.dropUnusedSources()
	return errors.Join(failed...)
}

// containersOf is the set of containers that changes may have made, changed
// or ended.
func containersOf(changes []change) map[string]struct{} {
	ids := make(map[string]struct{})
	for _, c := range changes {
		if id := c.event.Container; id != "" {
			ids[id] = struct{}{}
		}
	}
	return ids
}

// resync looks at everything.
func (a *Agent) resync(ctx context.Context, look *lookup) error {
	running, err := a.engine.Running(ctx, link.HasLabels)
	if err != nil {
		return err
	}
	var failed []error
	found := make(map[string]bool, len(running))
	for _, ctr := range running {
		found[ctr.ID] = true
		failed = append(failed, a.adopt(ctx, ctr))
	}
	for id, r := range a.recipients {
		if !found[id] {
			a.drop(r)
			continue
		}
		failed = append(failed, a.follow(ctx, look, r, nil))
	}
	failed = append(failed, a.followExports(ctx, look, nil))
	a.dropUnusedSources()
	err = errors.Join(failed...)
	a.looked = a.looked || !errors.Is(err, docker.ErrUnavailable)
	return err
}

// see looks at one container that may be a recipient.
func (a *Agent) see(ctx context.Context, look *lookup, id string) error {
	ctr, err := look.container(ctx, id)
	switch known := a.recipients[id]; {
	case errors.Is(err, docker.ErrNotFound):
		if known != nil {
			a.drop(known)
		}
		return nil
	case err != nil:
		return err
	case known != nil && !ctr.Running:
		a.drop(known)
		return nil
	case !ctr.Running || !link.HasLabels(ctr.Labels):
		return nil
	}
	return a.adopt(ctx, ctr)
}

// adopt takes a running container's links on, all of them down at first, or
// keeps those it has.
func (a *Agent) adopt(ctx context.Context, ctr docker.Container) error {
	if known := a.recipients[ctr.ID]; known != nil {
		if known.is(ctr) {
			known.update(ctr)
			return nil
		}
		a.drop(known) // restarted while nobody looked: its namespace is another one
	}
	set, err := a.linksOf(ctx, ctr)
	var wrong *mistake
	switch {
	case err != nil && !errors.As(err, &wrong):
		return fmt.Errorf("linking %q: %w", ctr.Name, err)
	case err == nil && len(set.Links) == 0:
		return nil // they were all its image's
	}
	r, err := a.open(ctr, set, wrong)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // stopped since the engine was asked
	}
	if err != nil {
		return fmt.Errorf("linking %q: %w", ctr.Name, err)
	}
	a.recipients[ctr.ID] = r
	return nil
}

// follow points the links of r that changes concern (nil: all) to where their
// sources are now. When every link of r has been pointed once, its gate opens.
func (a *Agent) follow(ctx context.Context, look *lookup, r *recipient, changes []change) error {
	var failed []error
	pointed := true
	for _, c := range r.links {
		v := c.view.Load()
		if v == nil || changes == nil || v.from != r.view.Load().IPv4() || c.concernedBy(changes) {
			failed = append(failed, a.point(ctx, look, r, c))
		}
		pointed = pointed && c.view.Load() != nil
	}
	if pointed && r.gate == nil {
		failed = append(failed, a.letIn(ctx, r))
	}
	return errors.Join(failed...)
}

// letIn opens a recipient's gate when nothing but its links reaches it.
func (a *Agent) letIn(ctx context.Context, r *recipient) (err error) {
	if a.Settled != nil {
		if err := a.Settled(ctx, *r.view.Load()); err != nil {
			return fmt.Errorf("keeping %q apart: %w", r.name(), err)
		}
	}
	r.gate, err = a.openGate(r)
	return err
}

func (a *Agent) drop(r *recipient) {
	delete(a.recipients, r.id)
	if err := r.close(); err != nil {
		a.log.Warn("leaving a recipient", "recipient", r.name(), "err", err)
	}
	a.log.Info("recipient gone", "recipient", r.name())
}

func (a *Agent) closeAll() {
	for _, r := range a.recipients {
		r.close()
	}
	clear(a.recipients)
	for _, e := range a.exports.takeUnused(true) {
		a.closeExport(e)
	}
	a.dropUnusedSources()
	a.publish()
}
