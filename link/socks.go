package link

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Socks says whether a recipient reaches its links by SOCKS5 as well.
type Socks string

const (
	// SocksOff is as good as nothing.
	SocksOff Socks = "off"
	// SocksOn gives the recipient a SOCKS5 address of its own, SocksAddr.
	SocksOn Socks = "on"
	// SocksAll has the recipient's programs use it for whatever they connect
	// to, if they mind ALL_PROXY. What is no link is refused then.
	SocksAll Socks = "all-proxy"
)

// SocksAddr is the SOCKS5 address of every recipient that has one.
var SocksAddr = netip.AddrPortFrom(LocalAddr, 1080)

// ParseSocks reads the value of --link-socks, or of LabelSocks.
func ParseSocks(s string) (Socks, error) {
	switch v := Socks(s); v {
	case SocksOff, SocksOn, SocksAll:
		return v, nil
	}
	return "", errors.New("it has to be on, off or all-proxy")
}

// On tells whether the recipient has a SOCKS5 address.
func (s Socks) On() bool { return s == SocksOn || s == SocksAll }

// Variables tell a recipient's programs its SOCKS5 address, as "NAME=value".
// The "h" of the scheme has the proxy resolve names, which nobody else could.
func (s Socks) Variables() []string {
	url := "socks5h://" + SocksAddr.String()
	switch s {
	case SocksOn:
		return []string{"LINK_SOCKS5=" + url}
	case SocksAll:
		return []string{"LINK_SOCKS5=" + url, "ALL_PROXY=" + url, "all_proxy=" + url}
	}
	return nil
}

// LabelSocksPorts, on a source, names the ports that recipients may connect to
// by SOCKS although they are not exposed. See ParseSocksPorts.
const LabelSocksPorts = "ambassador.socks-ports"

// Ports are ranges of TCP ports. The zero value has none.
type Ports []portRange

type portRange struct{ first, last uint16 }

// ParseSocksPorts reads the value of LabelSocksPorts: all, or ports and ranges
// of ports, as 8000-8010,9000.
func ParseSocksPorts(s string) (Ports, error) {
	if s == "all" {
		return Ports{{1, 65535}}, nil
	}
	var ports Ports
	for item := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		r := portRange{}
		var ok1, ok2 bool
		r.first, ok1 = portNumber(first)
		r.last, ok2 = portNumber(last)
		if !ok1 || !ok2 || r.first > r.last {
			return nil, fmt.Errorf("%q has to be a port from 1 to 65535, or a range such as 8000-8010", item)
		}
		ports = append(ports, r)
	}
	return ports, nil
}

func portNumber(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0
}

// Contain tells whether port is one of p.
func (p Ports) Contain(port uint16) bool {
	for _, r := range p {
		if r.first <= port && port <= r.last {
			return true
		}
	}
	return false
}
