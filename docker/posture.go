package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/linkrun/linkrun/link"
)

// Posture is a container and what it may do to others.
type Posture struct {
	Container
	Privileged  bool
	NetRaw      bool // may send raw frames
	HostNetwork bool
	Mounts      []string // paths of the host
	Published   []Published
	Links       []LegacyLink // the engine's own
}

// Published is a port of the host's that leads to a container.
type Published struct {
	On   netip.Addr // of the host; the unspecified address is all of them
	Host uint16
	Port link.Port
}

// LegacyLink is a link that the engine makes for a container.
type LegacyLink struct{ Source, Alias string }

// Postures inspects all running containers, by name. One that goes away
// meanwhile is left out.
func (c *Client) Postures(ctx context.Context) ([]Posture, error) {
	res, err := c.api.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", c.explain(ctx, err))
	}
	var found []Posture
	for _, item := range res.Items {
		res, err := c.api.ContainerInspect(ctx, item.ID, client.ContainerInspectOptions{})
		err = c.explain(ctx, err)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("inspecting container %q: %w", item.ID, err)
		default:
			found = append(found, postureOf(res.Container))
		}
	}
	slices.SortFunc(found, func(a, b Posture) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

func postureOf(in container.InspectResponse) Posture {
	p := Posture{Container: fromInspect(in)}
	for _, m := range in.Mounts {
		if m.Source != "" {
			p.Mounts = append(p.Mounts, m.Source)
		}
	}
	if hc := in.HostConfig; hc != nil {
		p.Privileged = hc.Privileged
		p.NetRaw = hc.Privileged || mayDo("NET_RAW", hc.CapAdd, hc.CapDrop)
		p.HostNetwork = hc.NetworkMode.IsHost()
		for _, l := range hc.Links { // "/source:/recipient/alias"
			source, rest, _ := strings.Cut(l, ":")
			p.Links = append(p.Links, LegacyLink{strings.TrimPrefix(source, "/"), rest[strings.LastIndexByte(rest, '/')+1:]})
		}
	}
	if ns := in.NetworkSettings; ns != nil {
		for port, bindings := range ns.Ports {
			for _, b := range bindings {
				host, err := strconv.ParseUint(b.HostPort, 10, 16)
				if err != nil {
					continue // not bound yet
				}
				p.Published = append(p.Published, Published{
					On: b.HostIP, Host: uint16(host),
					Port: link.Port{Number: port.Num(), Proto: link.Proto(port.Proto())},
				})
			}
		}
	}
	slices.SortFunc(p.Published, func(a, b Published) int {
		if c := a.Port.Compare(b.Port); c != 0 {
			return c
		}
		return a.On.Compare(b.On)
	})
	return p
}

// mayDo says whether a container has a capability that every container has
// if nothing is said. What is added counts more than what is dropped, and a
// name more than ALL (moby's oci/caps.TweakCapabilities).
func mayDo(capability string, added, dropped []string) bool {
	in := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			s = strings.ToUpper(s)
			return s == name || s == "CAP_"+name
		})
	}
	switch {
	case in(added, "ALL"):
		return !in(dropped, capability)
	case in(dropped, "ALL"):
		return in(added, capability)
	}
	return !in(dropped, capability) || in(added, capability)
}
