// Package sidecar is the two ends of a link as processes of their own, one
// beside the source and one beside the recipient, for where no agent is. It
// needs no privilege, enters no namespace, knows no Docker, and makes no
// certificate.
package sidecar

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/linkrun/linkrun/link"
)

// Endpoint is where the two ends meet.
type Endpoint struct {
	Network string // "unix" or "tls"
	Address string // a path, or HOST:PORT
}

// ParseEndpoint reads unix:PATH or tls:HOST:PORT.
func ParseEndpoint(s string) (Endpoint, error) {
	network, address, _ := strings.Cut(s, ":")
	switch network {
	case "unix":
		if address == "" {
			return Endpoint{}, fmt.Errorf("parsing %q: there is no path", s)
		}
	case "tls":
		if _, port, err := net.SplitHostPort(address); err != nil || !isPort(port) {
			return Endpoint{}, fmt.Errorf("parsing %q: want tls:HOST:PORT", s)
		}
	default:
		return Endpoint{}, fmt.Errorf("parsing %q: want unix:PATH or tls:HOST:PORT", s)
	}
	return Endpoint{network, address}, nil
}

func (e Endpoint) String() string { return e.Network + ":" + e.Address }

// Target is a port of the source, and where it is.
type Target struct {
	Address string // HOST:PORT
	Port    link.Port
}

func (t Target) String() string {
	if t.Port.Proto != link.TCP {
		return t.Address + "/" + string(t.Port.Proto)
	}
	return t.Address
}

// ParseTargets reads HOST:PORT[/udp] any number of times, separated by commas.
// The port is what recipients ask for, so it cannot be there twice.
func ParseTargets(s string) ([]Target, error) {
	var targets []Target
	seen := make(map[link.Port]string)
	for entry := range strings.SplitSeq(s, ",") {
		address, port, err := parseAddress(entry)
		if err != nil {
			return nil, err
		}
		if other, twice := seen[port]; twice {
			return nil, fmt.Errorf("%q and %q are both port %v", other, entry, port)
		}
		seen[port] = entry
		targets = append(targets, Target{address, port})
	}
	return targets, nil
}

// Mapping is a port of the source, and where it appears at the recipient.
type Mapping struct {
	Listen netip.AddrPort
	Port   link.Port
}

// ParseMappings reads ADDRESS:PORT[=SOURCE-PORT][/udp] any number of times,
// separated by commas.
func ParseMappings(s string) ([]Mapping, error) {
	var mappings []Mapping
	type place struct {
		addr  netip.AddrPort
		proto link.Proto
	}
	seen := make(map[place]bool)
	for entry := range strings.SplitSeq(s, ",") {
		m, err := parseMapping(entry)
		if err != nil {
			return nil, err
		}
		p := place{m.Listen, m.Port.Proto}
		if seen[p] {
			return nil, fmt.Errorf("%v/%s is there twice", m.Listen, m.Port.Proto)
		}
		seen[p] = true
		mappings = append(mappings, m)
	}
	return mappings, nil
}

func parseMapping(entry string) (Mapping, error) {
	whole, proto, _ := strings.Cut(entry, "/")
	listen, wanted, mapped := strings.Cut(whole, "=")
	if proto != "" {
		listen, wanted = listen+"/"+proto, wanted+"/"+proto
	}
	address, port, err := parseAddress(listen)
	if err != nil {
		return Mapping{}, err
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return Mapping{}, fmt.Errorf("parsing %q: the address to listen on has to be a number", entry)
	}
	if mapped {
		if port, err = parsePort(wanted); err != nil {
			return Mapping{}, fmt.Errorf("parsing %q: %w", entry, err)
		}
	}
	return Mapping{at, port}, nil
}

func (m Mapping) String() string {
	s := m.Listen.String()
	if m.Listen.Port() != m.Port.Number {
		s += "=" + strconv.Itoa(int(m.Port.Number))
	}
	if m.Port.Proto != link.TCP {
		s += "/" + string(m.Port.Proto)
	}
	return s
}

// parseAddress reads HOST:PORT[/udp].
func parseAddress(s string) (address string, port link.Port, err error) {
	address, _, _ = strings.Cut(s, "/")
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return "", port, fmt.Errorf("parsing %q: want ADDRESS:PORT, or ADDRESS:PORT/udp", s)
	}
	if port, err = parsePort(strings.TrimPrefix(s[strings.LastIndex(address, ":"):], ":")); err != nil {
		return "", port, fmt.Errorf("parsing %q: %w", s, err)
	}
	return address, port, nil
}

var errProto = errors.New("only tcp and udp are carried")

func parsePort(s string) (link.Port, error) {
	port, err := link.ParsePort(s)
	if err == nil && port.Proto != link.TCP && port.Proto != link.UDP {
		err = errProto
	}
	return port, err
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}
