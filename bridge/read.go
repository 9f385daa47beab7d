package bridge

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// State is the bridges of a host and their ports, by name.
type State struct {
	Bridges []Bridge
	Ports   []Port // also what is no port any more and still has our mark
}

// Bridge is a bridge.
type Bridge struct {
	Name  string
	Index int // of the interface
	MAC   net.HardwareAddr

	// Whether frames between its ports pass the host's rules. That is also so
	// where the sysctl net.bridge.bridge-nf-call-iptables is on.
	NFCallIPTables  bool
	NFCallIP6Tables bool

	mark mark
}

// Port is an interface that is a port of a bridge.
type Port struct {
	Name   string
	Index  int
	Bridge string
	Kind   string // "veth", "tun", "vxlan", …; empty for a device of hardware

	// Peer is the index of the other end of a cable, in whatever namespace
	// that is.
	Peer int

	Isolated bool

	bridge int
	mark   mark
}

// Guest says whether the port is one that is isolated on a closed bridge:
// the end of a cable into a container, or the tap of a virtual machine.
//
// Others (hardware, VLANs, tunnels to other hosts) are ways to the outside.
// Isolating them would cut the containers off from it, and a frame that goes
// out there and comes back is not for this host to stop. A cable with both
// ends on this host counts as a guest: it could lead to another bridge, and
// what is closed by mistake is noticed, what is open is not.
func (p Port) Guest() bool { return p.Kind == "veth" || p.Kind == "tun" }

// knob is a setting of a bridge.
type knob struct {
	name      string // in /sys/class/net/BRIDGE/bridge
	attribute int
}

var knobs = [...]knob{
	{"nf_call_iptables", nl.IFLA_BR_NF_CALL_IPTABLES},
	{"nf_call_ip6tables", nl.IFLA_BR_NF_CALL_IP6TABLES},
}

func (b Bridge) on(k knob) bool {
	if k.attribute == nl.IFLA_BR_NF_CALL_IPTABLES {
		return b.NFCallIPTables
	}
	return b.NFCallIP6Tables
}

// String is the state as sorted text of one fact per line.
func (s State) String() string {
	var lines []string
	for _, b := range s.Bridges {
		lines = append(lines, fmt.Sprintf("bridge %s nf_call_iptables=%t nf_call_ip6tables=%t alias=%q",
			b.Name, b.NFCallIPTables, b.NFCallIP6Tables, b.mark))
	}
	for _, p := range s.Ports {
		lines = append(lines, fmt.Sprintf("port %s of %s kind=%s isolated=%t alias=%q", p.Name, p.Bridge, p.Kind, p.Isolated, p.mark))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Read reads the bridges and ports as they are.
func (h *Host) Read() (State, error) {
	for {
		links, err := h.links(0)
		if errors.Is(err, nl.ErrDumpInterrupted) {
			continue // links came or went meanwhile: the list may lack some
		}
		if err != nil {
			return State{}, fmt.Errorf("listing interfaces: %w", err)
		}
		return stateOf(links), nil
	}
}

func stateOf(links []wireLink) (s State) {
	names := make(map[int]string)
	for _, l := range links {
		if l.kind == "bridge" {
			names[l.index] = l.name
			s.Bridges = append(s.Bridges, l.asBridge())
		}
	}
	for _, l := range links {
		name, ok := names[l.master]
		if ok || l.kind != "bridge" && l.mark.has(isolated) {
			s.Ports = append(s.Ports, l.asPort(name))
		}
	}
	slices.SortFunc(s.Bridges, func(a, b Bridge) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Ports, func(a, b Port) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// wireLink is an interface as the kernel describes it.
type wireLink struct {
	index, master, peer int
	name, kind          string
	mac                 net.HardwareAddr
	mark                mark
	isolated            bool
	nf                  map[uint16]bool // the knobs
}

func (l wireLink) asBridge() Bridge {
	return Bridge{
		Name: l.name, Index: l.index, MAC: l.mac, mark: l.mark,
		NFCallIPTables:  l.nf[nl.IFLA_BR_NF_CALL_IPTABLES],
		NFCallIP6Tables: l.nf[nl.IFLA_BR_NF_CALL_IP6TABLES],
	}
}

func (l wireLink) asPort(bridge string) Port {
	return Port{
		Name: l.name, Index: l.index, Bridge: bridge, Kind: l.kind, Peer: l.peer,
		Isolated: l.isolated, bridge: l.master, mark: l.mark,
	}
}

// links asks for one interface, or for all with index 0.
func (h *Host) links(index int) ([]wireLink, error) {
	flags := unix.NLM_F_REQUEST
	if index == 0 {
		flags |= unix.NLM_F_DUMP
	}
	req := h.newRequest(unix.RTM_GETLINK, flags)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	links := make([]wireLink, 0, len(answers))
	for _, a := range answers {
		l, err := parseLink(a)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// parseLink reads the body of an RTM_NEWLINK or RTM_DELLINK.
func parseLink(body []byte) (l wireLink, err error) {
	if len(body) < unix.SizeofIfInfomsg {
		return l, errors.New("a description of an interface is cut off")
	}
	l.index = int(nl.DeserializeIfInfomsg(body).Index)
	err = eachAttribute(body[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) error {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = cString(value)
		case unix.IFLA_IFALIAS:
			l.mark = mark(cString(value))
		case unix.IFLA_ADDRESS:
			l.mac = net.HardwareAddr(slices.Clone(value))
		case unix.IFLA_MASTER:
			l.master = number(value)
		case unix.IFLA_LINK:
			l.peer = number(value)
		case unix.IFLA_LINKINFO:
			return l.parseInfo(value)
		}
		return nil
	})
	return l, err
}

// parseInfo reads IFLA_LINKINFO: what kind of interface it is, and what it is
// as a port.
func (l *wireLink) parseInfo(info []byte) error {
	var data, port []byte
	slaveOf := ""
	err := eachAttribute(info, func(kind uint16, value []byte) error {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.kind = cString(value)
		case unix.IFLA_INFO_DATA:
			data = value
		case unix.IFLA_INFO_SLAVE_KIND:
			slaveOf = cString(value)
		case unix.IFLA_INFO_SLAVE_DATA:
			port = value
		}
		return nil
	})
	if err != nil {
		return err
	}
	if slaveOf == "bridge" {
		err = eachAttribute(port, func(kind uint16, value []byte) error {
			if kind == nl.IFLA_BRPORT_ISOLATED {
				l.isolated = isSet(value)
			}
			return nil
		})
	}
	if l.kind == "bridge" {
		l.nf = make(map[uint16]bool, len(knobs))
		err = errors.Join(err, eachAttribute(data, func(kind uint16, value []byte) error {
			switch kind {
			case nl.IFLA_BR_NF_CALL_IPTABLES, nl.IFLA_BR_NF_CALL_IP6TABLES:
				l.nf[kind] = isSet(value)
			}
			return nil
		}))
	}
	return err
}
