//go:build linux

package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Routing in a source's namespace, so that a client with somebody else's
// address can be in there.
//
// The client socket is bound to the recipient's address (IP_TRANSPARENT) and
// carries a mark. Its packets arrive at once, by way of lo. The answers would
// leave by the default route, for the recipient. What brings them back:
//
//	ip rule  add fwmark Mark lookup Table pref rulePriority
//	ip route add local default dev lo table Table congctl reno
//	net.ipv4.tcp_fwmark_accept = 1   a connection has the mark of its SYN
//	net.ipv4.fwmark_reflect = 1      so have the RST or ICMP message it may get
//	                                 instead: without, "refused" is a time-out
//
// Nothing else in the namespace has the mark: the kernel clears it from what
// comes in through a veth (skb_scrub_packet). Other traffic pays for one rule
// more in each lookup of a route.
//
// A UDP server's answers have no mark, there is no udp_fwmark_accept. They are
// told by their ports, see packetRoute. Rules for ports came with Linux 4.17.
const (
	// Mark is the SO_MARK of the sockets made for connecting to a source,
	// and Table the number of the routing table for packets that carry it.
	Mark  = 0x6c6b
	Table = 0x6c6b

	// rulePriority comes after the local table (0) and before anything that an
	// image may set up for itself, such as the rules of wg-quick.
	rulePriority = 77

	loopbackIndex = 1 // LOOPBACK_IFINDEX of the kernel, in every namespace
)

// sysctls are set to 1. The value found is put back at the end.
var sysctls = [...]string{"net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect"}

// The functions below act on the namespace of the calling thread.

// addRoutes sets the namespace up for marked sockets. What is there already is
// left as it is. It returns the sysctls that it changed, with what they were,
// also if it fails half-way.
func addRoutes() (before map[string]string, err error) {
	before = make(map[string]string)
	for _, name := range sysctls {
		old, err := setSysctl(name, "1")
		if err != nil {
			return before, err
		}
		if old != "1" {
			before[name] = old
		}
	}
	if err := addRule(rule{mark: Mark}); err != nil {
		return before, err
	}
	route := localRoute(Table, netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.Addr{})
	route.Congctl = congestionControl
	return before, replaceRoute(route)
}

// removeRoutes undoes addRoutes, and removes the rules of all packetRoutes.
func removeRoutes(before map[string]string) error {
	errs := []error{removeRules(), removeTable()}
	for name, value := range before {
		_, err := setSysctl(name, value)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// setSysctl returns what the value was before, as far as it got.
func setSysctl(name, value string) (before string, err error) {
	before, err = readSysctl(name)
	if err != nil || before == value {
		return before, err
	}
	if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
		return before, fmt.Errorf("setting sysctl %s: %w", name, err)
	}
	return before, nil
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return "", fmt.Errorf("reading sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func sysctlPath(name string) string {
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}

// ports is a range of port numbers, both ends in it. The zero value means any.
type ports struct{ first, last uint16 }

// rule says which packets are looked up in Table: either those with a mark, or
// the UDP packets to an address from and to a range of ports.
type rule struct {
	mark         uint32
	to           netip.Addr
	sport, dport ports
}

func addRule(r rule) error {
	err := r.request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding rule %v: %w", r, err)
	}
	return nil
}

func deleteRule(r rule) error {
	err := r.request(unix.RTM_DELRULE, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting rule %v: %w", r, err)
	}
	return nil
}

// request sends the rule to the kernel. The netlink library has a Rule, too,
// but writes its protocol as four bytes where the kernel wants one: it warns
// in the log, and reads a zero on a big-endian machine.
func (r rule) request(command, flags int) error {
	msg := nl.NewRtMsg()
	msg.Family = unix.AF_INET
	msg.Scope = unix.RT_SCOPE_UNIVERSE
	msg.Table = unix.RT_TABLE_UNSPEC
	msg.Type = unix.FR_ACT_TO_TBL
	req := nl.NewNetlinkRequest(command, flags|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.FRA_PRIORITY, nl.Uint32Attr(rulePriority)))
	req.AddData(nl.NewRtAttr(unix.FRA_TABLE, nl.Uint32Attr(Table)))
	if r.mark != 0 {
		req.AddData(nl.NewRtAttr(unix.FRA_FWMARK, nl.Uint32Attr(r.mark)))
	}
	if r.to.IsValid() {
		msg.Dst_len = uint8(r.to.BitLen())
		req.AddData(nl.NewRtAttr(unix.FRA_DST, r.to.AsSlice()))
		req.AddData(nl.NewRtAttr(unix.FRA_IP_PROTO, nl.Uint8Attr(unix.IPPROTO_UDP)))
	}
	if r.sport != (ports{}) {
		req.AddData(nl.NewRtAttr(unix.FRA_SPORT_RANGE, r.sport.attr()))
	}
	if r.dport != (ports{}) {
		req.AddData(nl.NewRtAttr(unix.FRA_DPORT_RANGE, r.dport.attr()))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// attr is a struct fib_rule_port_range.
func (p ports) attr() []byte {
	b := binary.NativeEndian.AppendUint16(nil, p.first)
	return binary.NativeEndian.AppendUint16(b, p.last)
}

func (r rule) String() string {
	var s strings.Builder
	if r.mark != 0 {
		fmt.Fprintf(&s, "fwmark %#x ", r.mark)
	}
	if r.to.IsValid() {
		fmt.Fprintf(&s, "to %v ipproto udp ", r.to)
	}
	if r.sport != (ports{}) {
		fmt.Fprintf(&s, "sport %d-%d ", r.sport.first, r.sport.last)
	}
	if r.dport != (ports{}) {
		fmt.Fprintf(&s, "dport %d-%d ", r.dport.first, r.dport.last)
	}
	fmt.Fprintf(&s, "lookup %d", Table)
	return s.String()
}

// removeRules deletes every rule that leads to Table, whoever left it there.
func removeRules() error {
	all, err := netlink.RuleList(unix.AF_INET)
	if err != nil {
		return fmt.Errorf("listing rules: %w", err)
	}
	var errs []error
	for _, r := range all {
		if r.Table == Table && r.Priority == rulePriority {
			// Without further attributes it deletes the first one of the table.
			errs = append(errs, deleteRule(rule{}))
		}
	}
	return errors.Join(errs...)
}

// removeTable deletes every route of Table.
func removeTable() error {
	routes, err := netlink.RouteListFiltered(unix.AF_INET,
		&netlink.Route{Table: Table, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	var errs []error
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("deleting route %v: %w", r, err))
		}
	}
	return errors.Join(errs...)
}

func replaceRoute(r *netlink.Route) error {
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("adding route %v: %w", r, err)
	}
	return nil
}

func deleteRoute(r *netlink.Route) error {
	if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("deleting route %v: %w", r, err)
	}
	return nil
}

// localRoute has a table deliver packets for dst to this namespace's own
// sockets. A server that does not say from which address it answers uses src.
func localRoute(table int, dst netip.Prefix, src netip.Addr) *netlink.Route {
	return &netlink.Route{
		Table:     table,
		Type:      unix.RTN_LOCAL,
		Scope:     unix.RT_SCOPE_HOST,
		LinkIndex: loopbackIndex,
		Dst:       &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Src:       src.AsSlice(),
	}
}
