package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
)

// What Docker says to links of and to containers without a network of their
// own (moby, runconfig and daemon/daemon_unix.go).
var (
	errHostNetwork      = errors.New("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	errContainerNetwork = errors.New("conflicting options: container type network can't be used with links. This would result in undefined behavior")
	errMixedNetworks    = errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
)

// containers is what linking needs to know of an engine's containers.
type containers interface {
	// Container returns docker.ErrNotFound when there is none.
	Container(ctx context.Context, ref string) (docker.Container, error)
}

var _ containers = (*docker.Client)(nil)

// farSources is what linking needs to know of containers on other hosts.
type farSources interface {
	Source(ctx context.Context, host, source, recipient string) (control.Source, error)
}

var _ farSources = (*control.Client)(nil)

// linked is the links of the recipient to be, and their sources.
type linked struct {
	set     link.Set
	sources map[string]docker.Container // by alias
}

func (l *linked) source(k link.Link) link.Source {
	src := l.sources[k.Alias]
	return link.Source{Name: src.Name, Hostname: src.Hostname, Env: src.Env, Ports: src.Ports}
}

// resolve finds the sources of specs. Docker refuses first what cannot be
// registered, when it creates the recipient, and then what cannot be started.
func resolve(ctx context.Context, engine containers, far farSources, recipient string, specs []link.Spec, stderr io.Writer) (*linked, error) {
	l := &linked{sources: make(map[string]docker.Container)}
	for _, spec := range specs {
		var src docker.Container
		var err error
		if spec.Host != "" {
			src, err = findFarSource(ctx, far, spec, recipient)
		} else {
			src, err = findSource(ctx, engine, spec.Source)
		}
		if err != nil {
			return nil, err
		}
		alias := link.CleanAlias(spec.Alias)
		if alias == "" {
			warn(stderr, "link %q has no alias and is ignored, as Docker ignores it", spec)
			continue
		}
		k := link.Link{Alias: alias, Source: src.Name, Host: spec.Host}
		if spec.Host == "" {
			k.ID = src.ID
		}
		switch added, err := l.set.Add(k); {
		case err != nil:
			return nil, fail("link fewer containers", "%w", err)
		case added:
			l.sources[alias] = src
		case l.sources[alias].ID != src.ID:
			taken, _ := l.set.Link(alias)
			warn(stderr, "link %q is ignored: the alias is taken by %q", spec, taken.Ref())
		}
	}
	for _, k := range l.set.Links {
		if src := l.sources[k.Alias]; !src.Running {
			hint := "start it first: docker start " + src.Name
			if k.Host != "" {
				hint = fmt.Sprintf("start it first, on %s: docker start %s", k.Host, src.Name)
			}
			return nil, fail(hint, "Cannot link to a non running container: /%s AS %s", k.Ref(), link.FullName(recipient, k.Alias))
		}
	}
	return l, nil
}

// findFarSource asks for a container on another host, as the recipient will
// see it.
func findFarSource(ctx context.Context, far farSources, spec link.Spec, recipient string) (docker.Container, error) {
	src, err := far.Source(ctx, spec.Host, spec.Source, recipient)
	var refused *control.RefusedError
	switch {
	case errors.As(err, &refused) && refused.Hint == "":
		return docker.Container{}, fail("see that the ambassador is of the same version as linkrun", "linking to %s@%s: %w", spec.Source, spec.Host, err)
	case errors.As(err, &refused):
		return docker.Container{}, fail(refused.Hint, "%w", err)
	case err != nil:
		return docker.Container{}, fail("see the log of the ambassador", "%w", err)
	}
	ctr := docker.Container{
		ID: src.Name + "@" + spec.Host, Name: src.Name, Hostname: src.Hostname, Env: src.Env, Running: src.Down == "",
	}
	for _, s := range src.Ports {
		p, err := link.ParsePort(s)
		if err != nil {
			return docker.Container{}, fail("see that the ambassador is of the same version as linkrun", "linking to %s@%s: %w", spec.Source, spec.Host, err)
		}
		ctr.Ports = append(ctr.Ports, p)
	}
	return ctr, nil
}

// findSource finds the container that name leads to. One that shares another
// container's network stands for that other one.
func findSource(ctx context.Context, engine containers, name string) (docker.Container, error) {
	const maxJoined = 32 // Docker makes no circles, but what it says need not be believed
	ref := strings.TrimPrefix(name, "/")
	if ref == "" {
		return docker.Container{}, fail("a link is written SOURCE:ALIAS", `could not get container for %s: invalid name or ID supplied: ""`, name)
	}
	for range maxJoined {
		src, err := engine.Container(ctx, ref)
		switch {
		case errors.Is(err, docker.ErrNotFound):
			return src, fail("`docker ps` lists the containers that can be linked to",
				"could not get container for %s: No such container: %s", name, ref)
		case err != nil:
			return src, fail("name the container in full; "+engineHint, "could not get container for %s: %w", name, innermost(err))
		case src.NetworkMode == "host":
			return src, fail(fmt.Sprintf("give %s a network of its own", src.Name), "%w", errHostNetwork)
		}
		joined, isJoined := src.JoinedContainer()
		if !isJoined {
			return src, nil
		}
		ref = joined
	}
	return docker.Container{}, fail("name a container with a network of its own", "could not get container for %s: its network is that of a container, and so on", name)
}

// innermost is what the engine said, without who asked for what: that part of
// the message is Docker's.
func innermost(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// checkNetworks refuses, in Docker's words, the networks on which a recipient
// cannot be.
func checkNetworks(networks []string) error {
	userDefined := 0
	for _, n := range networks {
		switch name := networkName(n); {
		case name == "host":
			return fail("put the container on another network, or leave the links out", "%w", errHostNetwork)
		case strings.HasPrefix(name, "container:"):
			return fail("link the container whose network it shares", "%w", errContainerNetwork)
		case name != "" && name != "default" && name != "bridge" && name != "none":
			userDefined++
		}
	}
	if userDefined > 0 && userDefined < len(networks) {
		return fail("name networks of one kind", "%w", errMixedNetworks)
	}
	return nil
}

// networkName reads a value of --network: a name, or NAME=VALUE pairs with
// commas between them (docker/cli, opts/network.go).
func networkName(value string) string {
	if !strings.Contains(value, "=") {
		return value
	}
	for field := range strings.SplitSeq(value, ",") {
		if key, name, _ := strings.Cut(field, "="); strings.EqualFold(strings.TrimSpace(key), "name") {
			return strings.TrimSpace(name)
		}
	}
	return ""
}
