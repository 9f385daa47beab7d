package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// rule is one rule in the only form this package makes. Two rules are the
// same exactly if they are equal as values: how a tool lists one (with a mask
// behind addresses, in an order of its own, with matches spelled out) differs
// between versions and backends, so listed text is never compared with text
// that was passed.
type rule struct {
	chain    string
	in, out  string // interfaces
	src, dst netip.Addr
	physIn   string // the bridge port it came in by

	proto        string // tcp or udp
	sport, dport uint16
	syn          bool   // the first packet of a TCP connection
	state, dir   string // of conntrack
	comment      string

	jump string // a chain or a verdict; empty: the rule only says something
}

// syn is what iptables calls --syn, as it lists it.
var syn = [...]string{"--tcp-flags", "FIN,SYN,RST,ACK", "SYN"}

// args are the words behind the chain's name, the same for -A, -I, -C and -D.
func (r rule) args() []string {
	var args []string
	flag := func(name, value string) {
		if value != "" {
			args = append(args, name, value)
		}
	}
	addr := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	port := func(p uint16) string {
		if p == 0 {
			return ""
		}
		return strconv.Itoa(int(p))
	}
	flag("-s", addr(r.src))
	flag("-d", addr(r.dst))
	flag("-i", r.in)
	flag("-o", r.out)
	flag("-p", r.proto)
	if r.physIn != "" {
		args = append(args, "-m", "physdev", "--physdev-in", r.physIn)
	}
	if r.sport != 0 || r.dport != 0 || r.syn {
		args = append(args, "-m", r.proto)
		flag("--sport", port(r.sport))
		flag("--dport", port(r.dport))
	}
	if r.syn {
		args = append(args, syn[:]...)
	}
	if r.state != "" || r.dir != "" {
		args = append(args, "-m", "conntrack")
		flag("--ctstate", r.state)
		flag("--ctdir", r.dir)
	}
	if r.comment != "" {
		args = append(args, "-m", "comment", "--comment", r.comment)
	}
	flag("-j", r.jump)
	return args
}

// parseRule reads the words behind a chain's name as a tool lists them. A
// rule that this package would not make is no rule: ok is false.
func parseRule(chain string, words []string) (r rule, ok bool) {
	r.chain = chain
	for len(words) > 0 {
		if n := len(syn); len(words) >= n && slices.Equal(words[:n], syn[:]) && !r.syn {
			r.syn, words = true, words[n:]
			continue
		}
		if len(words) < 2 || !r.set(words[0], words[1]) {
			return rule{}, false
		}
		words = words[2:]
	}
	return r, true
}

// set takes one flag and its value, each flag once.
func (r *rule) set(flag, value string) bool {
	text := func(to *string) bool {
		if *to != "" || value == "" {
			return false
		}
		*to = value
		return true
	}
	switch flag {
	case "-s":
		return setAddr(&r.src, value)
	case "-d":
		return setAddr(&r.dst, value)
	case "-i":
		return text(&r.in)
	case "-o":
		return text(&r.out)
	case "-p":
		return text(&r.proto)
	case "-m":
		return slices.Contains([]string{"tcp", "udp", "physdev", "conntrack", "comment"}, value)
	case "--physdev-in":
		return text(&r.physIn)
	case "--sport":
		return setPort(&r.sport, value)
	case "--dport":
		return setPort(&r.dport, value)
	case "--ctstate":
		return text(&r.state)
	case "--ctdir":
		return text(&r.dir)
	case "--comment":
		return text(&r.comment)
	case "-j":
		return text(&r.jump)
	}
	return false
}

// setAddr reads an address, with or without the mask of a single one.
func setAddr(to *netip.Addr, value string) bool {
	if to.IsValid() {
		return false
	}
	text, mask, masked := strings.Cut(value, "/")
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || masked && mask != strconv.Itoa(addr.BitLen()) {
		return false
	}
	*to = addr
	return true
}

func setPort(to *uint16, value string) bool {
	n, err := strconv.ParseUint(value, 10, 16)
	if err != nil || n == 0 || *to != 0 {
		return false
	}
	*to = uint16(n)
	return true
}
