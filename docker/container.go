package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/linkrun/linkrun/link"
)

// Container is what a link has to know of its source or recipient.
type Container struct {
	ID       string // 64 hexadecimal digits
	Name     string // without the API's leading slash
	Hostname string
	Image    string // id of the image

	Labels map[string]string
	Env    []string    // configured: image, -e and --env-file
	Ports  []link.Port // exposed, sorted by protocol and number

	Running    bool // paused counts, as for Docker
	PID        int  // of its first process, in the engine's pid namespace; 0 while it does not run
	StartedAt  string
	SandboxKey string // path of its network namespace; "" when it has none of its own

	NetworkMode string // as given: "default", "none", "host", "container:<id>" or a network's name
	Networks    []Network
}

// Network is one endpoint of a container.
type Network struct {
	Name string
	ID   string     // of the network; "" while the container does not run
	IPv4 netip.Addr // the zero Addr when the endpoint has none
	IPv6 netip.Addr // likewise
	MAC  net.HardwareAddr
}

// JoinedContainer is the container whose network namespace c shares
// (`--network container:X`), and whether it does.
func (c Container) JoinedContainer() (ref string, joined bool) {
	return strings.CutPrefix(c.NetworkMode, "container:")
}

// IPv4 is the address others know the container by: the one on the default
// bridge, else on the first of its networks that gives one. The zero Addr
// when no network does.
func (c Container) IPv4() netip.Addr {
	for _, n := range c.Networks {
		if n.IPv4.IsValid() {
			return n.IPv4
		}
	}
	return netip.Addr{}
}

// Container inspects the container that ref names: a name, an id, or a unique
// prefix of one. ErrNotFound when there is none.
func (c *Client) Container(ctx context.Context, ref string) (Container, error) {
	res, err := c.api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	if err != nil {
		return Container{}, fmt.Errorf("inspecting container %q: %w", ref, c.explain(ctx, err))
	}
	return fromInspect(res.Container), nil
}

// Named inspects the container that has this very name. Container may know less:
// the engine takes "db" for the beginning of an id, too, and refuses to answer
// when two ids begin like that. ErrNotFound when no container has the name.
func (c *Client) Named(ctx context.Context, name string) (Container, error) {
	res, err := c.api.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("name", "^/?"+regexp.QuoteMeta(name)+"$"),
	})
	if err != nil {
		return Container{}, fmt.Errorf("listing the containers called %q: %w", name, c.explain(ctx, err))
	}
	for _, item := range res.Items {
		if slices.Contains(item.Names, "/"+name) {
			return c.Container(ctx, item.ID)
		}
	}
	return Container{}, fmt.Errorf("looking for container %q: %w", name, ErrNotFound)
}

// Running inspects the running containers whose labels keep accepts. One that
// goes away meanwhile is left out.
func (c *Client) Running(ctx context.Context, keep func(labels map[string]string) bool) ([]Container, error) {
	res, err := c.api.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", c.explain(ctx, err))
	}
	var found []Container
	for _, item := range res.Items {
		if !keep(item.Labels) {
			continue
		}
		ctr, err := c.Container(ctx, item.ID)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return nil, err
		default:
			found = append(found, ctr)
		}
	}
	return found, nil
}

func fromInspect(in container.InspectResponse) Container {
	out := Container{
		ID:    in.ID,
		Name:  strings.TrimPrefix(in.Name, "/"),
		Image: in.Image,
	}
	if cfg := in.Config; cfg != nil {
		out.Hostname, out.Labels, out.Env = cfg.Hostname, cfg.Labels, cfg.Env
		for p := range cfg.ExposedPorts {
			out.Ports = append(out.Ports, link.Port{Number: p.Num(), Proto: link.Proto(p.Proto())})
		}
		slices.SortFunc(out.Ports, link.Port.Compare)
	}
	if st := in.State; st != nil {
		out.Running, out.PID, out.StartedAt = st.Running, st.Pid, st.StartedAt
	}
	if hc := in.HostConfig; hc != nil {
		out.NetworkMode = string(hc.NetworkMode)
	}
	if ns := in.NetworkSettings; ns != nil {
		out.SandboxKey = ns.SandboxKey
		for name, ep := range ns.Networks {
			n := Network{Name: name}
			if ep != nil {
				n.ID, n.MAC = ep.NetworkID, net.HardwareAddr(ep.MacAddress)
				if ep.IPAddress.Is4() {
					n.IPv4 = ep.IPAddress
				}
				if ep.GlobalIPv6Address.Is6() {
					n.IPv6 = ep.GlobalIPv6Address
				}
			}
			out.Networks = append(out.Networks, n)
		}
		slices.SortFunc(out.Networks, compareNetworks)
	}
	return out
}

// compareNetworks puts the default bridge first, as Docker's links use the
// address there, and orders the rest by name so that the choice is stable.
func compareNetworks(a, b Network) int {
	const defaultBridge = "bridge"
	switch {
	case a.Name == b.Name:
		return 0
	case a.Name == defaultBridge:
		return -1
	case b.Name == defaultBridge:
		return 1
	}
	return strings.Compare(a.Name, b.Name)
}
