// Package classic is the ambassador container as it was: it forwards the ports
// that a link's variables name to where they say. It makes no link, and adds
// nothing to one that is there: no encryption, no policy.
package classic

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/linkrun/linkrun/link"
)

// Forward is a port, and where what comes to it goes.
type Forward struct {
	Port     link.Port
	To       netip.AddrPort
	Variable string // that says so
}

// Ignored is a variable that looks like a link's and is none.
type Ignored struct {
	Variable string
	Why      string
}

// ConflictError says that one port is to lead to two places.
type ConflictError struct{ One, Other Forward }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("port %v is to lead to %v (%s) and to %v (%s)", e.One.Port, e.One.To, e.One.Variable, e.Other.To, e.Other.Variable)
}

// Parse finds the variables of links in an environment, of the form
// NAME=VALUE:
//
//	ALIAS_PORT_6379_TCP=tcp://172.17.0.2:6379
//	ALIAS_PORT=tcp://172.17.0.2:6379           the first port, once more
//
// The number in the name is the port to listen on. Variables that links make
// and that a source has in its own environment, ALIAS_ENV_…, are not of this
// container's links. Each port is there once, in order; the error is a
// *ConflictError.
func Parse(environ []string) (forwards []Forward, ignored []Ignored, err error) {
	environ = slices.Sorted(slices.Values(environ)) // which of two is named does not depend on their order
	names := make(map[string]bool)
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		names[name] = true
	}
	byPort := make(map[link.Port]Forward)
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		port, is := portOf(name, value)
		if !is || ofSource(name, names) {
			continue
		}
		f, why := target(name, value, port)
		if why != "" {
			ignored = append(ignored, Ignored{name, why})
			continue
		}
		if other, twice := byPort[f.Port]; !twice || other.To == f.To && len(name) > len(other.Variable) {
			byPort[f.Port] = f // the longer name says which port it is
		} else if other.To != f.To {
			return nil, nil, &ConflictError{other, f}
		}
	}
	for _, f := range byPort {
		forwards = append(forwards, f)
	}
	slices.SortFunc(forwards, func(a, b Forward) int { return a.Port.Compare(b.Port) })
	return forwards, ignored, nil
}

// portOf tells whether a variable is of the form that links have, and for
// which port.
func portOf(name, value string) (link.Port, bool) {
	if rest, proto, ok := cutLast(name, "_"); ok && (proto == "TCP" || proto == "UDP") {
		alias, number, ok := cutLast(rest, "_")
		if alias, is := strings.CutSuffix(alias, "_PORT"); ok && is && alias != "" {
			n, err := strconv.ParseUint(number, 10, 16)
			return link.Port{Number: uint16(n), Proto: link.Proto(strings.ToLower(proto))}, err == nil && n > 0
		}
		return link.Port{}, false
	}
	// The first port's has the number in the value only. Many programs have a
	// NAME_PORT that is a bare number.
	if alias, is := strings.CutSuffix(name, "_PORT"); !is || alias == "" {
		return link.Port{}, false
	}
	for _, proto := range []link.Proto{link.TCP, link.UDP} {
		if address, is := strings.CutPrefix(value, string(proto)+"://"); is {
			to, err := netip.ParseAddrPort(address)
			return link.Port{Number: to.Port(), Proto: proto}, err == nil && to.Port() > 0
		}
	}
	return link.Port{}, false
}

// ofSource tells whether a variable is one that a linked source has in its own
// environment: a link's to yet another container, whose address means nothing
// here.
func ofSource(name string, names map[string]bool) bool {
	for at := 0; ; {
		i := strings.Index(name[at:], "_ENV_")
		if i < 0 {
			return false
		}
		alias := name[:at+i]
		if names[alias+"_NAME"] || names[alias+"_PORT"] {
			return true
		}
		at += i + 1
	}
}

// target is where a variable's value leads to, or why nowhere.
func target(name, value string, port link.Port) (f Forward, why string) {
	address, is := strings.CutPrefix(value, string(port.Proto)+"://")
	if !is {
		return f, fmt.Sprintf("it does not begin with %s://", port.Proto)
	}
	to, err := netip.ParseAddrPort(address)
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	switch {
	case err != nil || to.Port() == 0 || to.Addr().Zone() != "":
		return f, fmt.Sprintf("it is not %s://ADDRESS:PORT, with a number for the address", port.Proto)
	case to.Addr().IsUnspecified(), to.Port() == port.Number && (to.Addr() == local4 || to.Addr() == local6):
		return f, "it leads back to this port"
	}
	return Forward{port, to, name}, ""
}

var (
	local4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	local6 = netip.IPv6Loopback()
)

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
