package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/linkrun/linkrun/agent"
	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/doctor"
	"github.com/linkrun/linkrun/link"
)

// examination is what the facts for a doctor are put together from.
type examination struct {
	engine   *docker.Client
	networks []docker.NetworkInfo
	postures []docker.Posture
	host     bridge.State
	icc      control.ICC // zero if no ambassador serves
	mode     agent.Mode
}

// examine reads everything a doctor wants to know. Which bridges are meant to
// be closed says the ambassador, or mode if it enforces nothing.
func examine(ctx context.Context, engine *docker.Client, dir string, mode agent.Mode) (f doctor.Facts, err error) {
	x := examination{engine: engine, mode: mode}
	socket, local := strings.CutPrefix(engine.Host(), "unix://")
	if !local {
		return f, hinted{fmt.Errorf("the engine at %q may be on another host", engine.Host()), "run the doctor on the engine's host, and name its socket with --host"}
	}
	who, err := engine.Engine(ctx)
	if err != nil {
		return f, noEngine(err)
	}
	if x.networks, err = engine.Networks(ctx); err != nil {
		return f, noEngine(err)
	}
	if x.postures, err = engine.Postures(ctx); err != nil {
		return f, noEngine(err)
	}
	x.icc, err = control.Dial(dir).ICC(ctx)
	switch {
	case errors.Is(err, control.ErrNoAgent):
	case err != nil:
		return f, noAgent(err)
	case x.icc.Mode != string(agent.ICCOff):
		x.mode = agent.Mode(x.icc.Mode)
	}
	bridges, err := bridge.Open(nil)
	if err != nil {
		return f, err
	}
	defer bridges.Close()
	if x.host, err = bridges.Read(); err != nil {
		return f, err
	}
	f.Engine = doctor.Engine{Version: who.Version, Firewall: who.Firewall, Forwarding: bridges.Forwards()}
	f.Engine.ReadFlags(socket)
	f.Enforced, f.Missing = x.icc.Mode, x.icc.Missing
	x.containers(&f, socket)
	x.bridges(&f, bridges)
	x.links(&f)
	return f, nil
}

func (x *examination) containers(f *doctor.Facts, socket string) {
	for _, p := range x.postures {
		c := doctor.Container{Name: p.Name, HostNetwork: p.HostNetwork, Privileged: p.Privileged, NetRaw: p.NetRaw}
		for _, m := range p.Mounts {
			if holds(m, socket) || holds(m, "/var/run/docker.sock") {
				c.Sockets = append(c.Sockets, m)
			}
		}
		for _, q := range p.Published {
			c.Published = append(c.Published, doctor.Published{On: q.On, Host: q.Host, Port: q.Port})
		}
		for _, n := range p.Networks {
			if e, ok := x.endpoint(p.Container, n); ok {
				c.Endpoints = append(c.Endpoints, e)
			}
		}
		f.Containers = append(f.Containers, c)
	}
}

// holds says whether what is mounted is a socket, or a folder above it.
func holds(mounted, socket string) bool {
	real := func(path string) string {
		if r, err := filepath.EvalSymlinks(path); err == nil {
			return r
		}
		return path
	}
	rel, err := filepath.Rel(real(mounted), real(socket))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (x *examination) endpoint(ctr docker.Container, n docker.Network) (e doctor.Endpoint, ok bool) {
	i := slices.IndexFunc(x.networks, func(i docker.NetworkInfo) bool { return i.ID == n.ID })
	if i < 0 || x.networks[i].Device == "" {
		return e, false
	}
	e = doctor.Endpoint{Device: x.networks[i].Device, MAC: n.MAC}
	for _, a := range []netip.Addr{n.IPv4, n.IPv6} {
		if a.IsValid() {
			e.Addrs = append(e.Addrs, a)
		}
	}
	if len(e.Addrs) == 0 {
		return e, false
	}
	// A container that stops meanwhile is left out of what is tried.
	ns, err := agent.Namespace(ctr)
	if err != nil {
		return e, true
	}
	defer ns.Close()
	index, err := bridge.PortOf(ns, e.Addrs[0])
	if err != nil {
		return e, true
	}
	for _, p := range x.host.Ports {
		if p.Index == index && p.Bridge == e.Device {
			e.Port = p.Name
		}
	}
	return e, true
}

func (x *examination) bridges(f *doctor.Facts, host *bridge.Host) {
	everywhere := host.NetfilterEverywhere()
	for _, w := range agent.WantedBridges(x.networks, x.mode) {
		i := slices.IndexFunc(x.host.Bridges, func(b bridge.Bridge) bool { return b.Name == w.Device })
		if i < 0 {
			f.Skipped = append(f.Skipped, fmt.Sprintf("%s (its bridge %s is not there)", w.Name, w.Device))
			continue
		}
		found := x.host.Bridges[i]
		b := doctor.Bridge{
			Network: w.Name, Device: w.Device, Index: found.Index, MAC: found.MAC,
			Default: w.Default, Closed: w.Closed, Allowed: w.Allowed, Why: w.Why,
			Netfilter: host.Netfilter() && (everywhere || found.NFCallIPTables && found.NFCallIP6Tables),
			Subnets:   w.Subnets, Gateways: append(hostAddrs(w.Device), w.Gateways...),
		}
		for _, p := range x.host.Ports {
			if p.Bridge == w.Device && p.Guest() && !p.Isolated {
				b.Open = append(b.Open, p.Name)
			}
		}
		for _, c := range f.Containers {
			for _, e := range c.Endpoints {
				if e.Device == w.Device {
					b.Containers, b.Used = append(b.Containers, c.Name), append(b.Used, e.Addrs...)
				}
			}
		}
		f.Bridges = append(f.Bridges, b)
	}
	for _, n := range x.networks {
		used := slices.ContainsFunc(x.postures, func(p docker.Posture) bool {
			return slices.ContainsFunc(p.Networks, func(e docker.Network) bool { return e.ID == n.ID })
		})
		if used && n.Device == "" && n.Driver != "host" && n.Driver != "null" {
			f.Skipped = append(f.Skipped, fmt.Sprintf("%s (driver %s)", n.Name, n.Driver))
		}
	}
}

// hostAddrs are the host's own addresses on a bridge.
func hostAddrs(device string) (found []netip.Addr) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil
	}
	addrs, err := dev.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
			found = append(found, p.Addr())
		}
	}
	return found
}

// links are those of labels, the engine's own, and permissions.
func (x *examination) links(f *doctor.Facts) {
	exposed := make(map[string][]link.Port)
	for _, p := range x.postures {
		exposed[p.Name] = p.Ports
	}
	for _, p := range x.postures {
		if set, err := link.ParseLabels(p.Labels); err == nil {
			for _, l := range set.Links {
				f.Links = append(f.Links, doctor.Link{Kind: "ambassador", Recipient: p.Name, Source: l.Source, Ports: exposed[l.Source]})
			}
		}
		for _, l := range p.Links {
			f.Links = append(f.Links, doctor.Link{Kind: "docker", Recipient: p.Name, Source: l.Source, Ports: exposed[l.Source]})
		}
	}
	for _, p := range x.icc.Allowed {
		if port, err := link.ParsePort(p.Port); err == nil {
			f.Links = append(f.Links, doctor.Link{Kind: "icc allow", Recipient: p.Recipient, Source: p.Source, Ports: []link.Port{port}})
		}
	}
}
