package doctor

import (
	"net"
	"net/netip"

	"github.com/linkrun/linkrun/link"
)

// Facts are what was read of an engine and its host.
type Facts struct {
	Engine     Engine
	Bridges    []Bridge
	Containers []Container
	Links      []Link

	// Enforced is the ambassador's mode (off, enforce or deny); empty: none
	// serves.
	Enforced string

	// Missing is what would have to be done for the firewall and the bridges
	// to be as the ambassador wants them, in words.
	Missing []string

	// Skipped are networks that containers are on and that are no bridge, so
	// that nothing here is about them: name and driver.
	Skipped []string

	control bool // a trial of the trial
}

// Engine is how the engine was started.
type Engine struct {
	Version       string
	Firewall      string // its backend, where it says so
	ManagesRules  bool   // --iptables
	UserlandProxy bool   // --userland-proxy
	FlagsUnknown  string // why the two before are not known; empty: they are
	Forwarding    bool   // net.ipv4.ip_forward
}

// Bridge is a network of the bridge driver.
type Bridge struct {
	Network string
	Device  string
	Index   int
	MAC     net.HardwareAddr
	Default bool // the engine's own, which is there without being made

	// Closed says that nothing is meant to pass between its containers, and
	// Why says who means that, or who means the opposite.
	Closed bool
	Why    string

	// Allowed: somebody said of this network that containers may reach each
	// other, by a label.
	Allowed bool

	Netfilter  bool     // its frames pass the host's rules, both families
	Open       []string // ports of containers that are not isolated
	Containers []string // names

	Subnets  []netip.Prefix
	Used     []netip.Addr // addresses that are somebody's
	Gateways []netip.Addr
}

// Container is a running container.
type Container struct {
	Name        string
	HostNetwork bool
	Privileged  bool
	NetRaw      bool
	Sockets     []string // engine sockets that are mounted into it
	Published   []Published
	Endpoints   []Endpoint
}

// Published is a port of the host's that leads to a container.
type Published struct {
	On   netip.Addr // of the host; the unspecified address is all of them
	Host uint16
	Port link.Port
}

// Endpoint is where a container is on a bridge.
type Endpoint struct {
	Device string // the bridge
	Port   string // the bridge's port it is behind; empty: not known
	MAC    net.HardwareAddr
	Addrs  []netip.Addr
}

// Link is a way that exists between two containers, by whatever means.
type Link struct {
	Kind      string // "ambassador", "docker" or "icc allow"
	Recipient string // names
	Source    string
	Ports     []link.Port
}

// container finds a container by its name, nil if it does not run.
func (f *Facts) container(name string) *Container {
	for i := range f.Containers {
		if f.Containers[i].Name == name {
			return &f.Containers[i]
		}
	}
	return nil
}

// on is where a container is on a bridge, nil if it is not.
func (c *Container) on(device string) *Endpoint {
	if c == nil {
		return nil
	}
	for i := range c.Endpoints {
		if c.Endpoints[i].Device == device {
			return &c.Endpoints[i]
		}
	}
	return nil
}
