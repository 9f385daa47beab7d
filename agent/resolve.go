package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
)

// lookup asks the engine about containers and remembers the answers, so that
// a thousand links to one source cost one question. It is good for one round
// of changes.
type lookup struct {
	engine Engine
	seen   map[string]answer
}

type answer struct {
	ctr docker.Container
	err error
}

func newLookup(e Engine) *lookup { return &lookup{engine: e, seen: make(map[string]answer)} }

func (l *lookup) container(ctx context.Context, ref string) (docker.Container, error) {
	if a, ok := l.seen[ref]; ok {
		return a.ctr, a.err
	}
	ctr, err := l.engine.Container(ctx, ref)
	l.seen[ref] = answer{ctr, err}
	if err == nil {
		l.seen[ctr.ID] = answer{ctr, nil}
	}
	return ctr, err
}

// resolution is what a link's source turned out to be.
type resolution struct {
	source docker.Container // whose name, variables and ports the link has; ID is "" when there is none
	down   string           // why connections have to be refused; "" when they can be carried
	via    []string         // ids of all containers that were looked at: news of any of them is a reason to resolve again
}

// maxJoins bounds a chain of `--network container:` references. Docker builds
// none longer than one, since it resolves the reference at creation.
const maxJoins = 8

// resolve finds the source of l: by name first, so that a container re-created
// under the same name takes over, then by the id it had when the recipient was
// made, so that a rename is followed. A source that shares another container's
// namespace stands for that container, as for Docker's links. The error is the
// engine's; a source that is not there is a resolution.
func resolve(ctx context.Context, look *lookup, l link.Link) (resolution, error) {
	ctr, err := byNameOrID(ctx, look, l)
	if errors.Is(err, docker.ErrNotFound) {
		return resolution{down: fmt.Sprintf("there is no container %q", l.Source)}, nil
	}
	if err != nil {
		return resolution{}, err
	}
	res := resolution{source: ctr, via: []string{ctr.ID}}
	for range maxJoins {
		ref, joined := ctr.JoinedContainer()
		if !joined {
			break
		}
		if ctr, err = look.container(ctx, ref); errors.Is(err, docker.ErrNotFound) {
			res.down = fmt.Sprintf("container %q shares the network of %q, which is gone", res.source.Name, ref)
			return res, nil
		}
		if err != nil {
			return resolution{}, err
		}
		res.source = ctr
		res.via = append(res.via, ctr.ID)
	}
	switch _, joined := ctr.JoinedContainer(); {
	case joined:
		res.down = fmt.Sprintf("the network of container %q is shared too many times over", l.Source)
	case ctr.NetworkMode == "host":
		res.down = fmt.Sprintf("container %q is on the host's network, which no link reaches", ctr.Name)
	case !ctr.Running:
		res.down = fmt.Sprintf("container %q is not running", ctr.Name)
	}
	return res, nil
}

func byNameOrID(ctx context.Context, look *lookup, l link.Link) (docker.Container, error) {
	ctr, err := look.container(ctx, l.Source)
	if err != nil && !errors.Is(err, docker.ErrNotFound) {
		// Perhaps there is none of that name, and the engine cannot choose
		// between ids that begin with it. That is no trouble of this link.
		ctr, err = look.engine.Named(ctx, l.Source)
	}
	switch {
	case err == nil && names(l.Source, ctr):
		return ctr, nil
	case err != nil && !errors.Is(err, docker.ErrNotFound):
		return docker.Container{}, err
	case l.ID == "":
		return docker.Container{}, docker.ErrNotFound
	}
	return look.container(ctx, l.ID)
}

// shortID is the length of an id as Docker prints it.
const shortID = 12

// names tells whether ref is ctr's name or a deliberate id of it. The engine
// itself takes any unique prefix of an id: without this check a link to "db",
// while there is no db, would open to a stranger whose id starts with "db".
func names(ref string, ctr docker.Container) bool {
	return ref == ctr.Name || len(ref) >= shortID && strings.HasPrefix(ctr.ID, ref)
}

// concerns tells whether an event about a container is a reason to resolve l,
// last resolved to r, again.
func concerns(e docker.Event, l link.Link, r resolution) bool {
	if e.Container == "" {
		return false
	}
	if e.Type == "container" && e.Name == l.Source || e.Container == l.ID ||
		len(l.Source) >= shortID && strings.HasPrefix(e.Container, l.Source) {
		return true
	}
	for _, id := range r.via {
		if id == e.Container {
			return true
		}
	}
	return false
}
