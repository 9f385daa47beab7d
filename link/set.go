// Package link is the vocabulary of links: what --link says, which variables
// and hosts names a recipient gets, and the labels that keep a recipient's
// links. It talks to no engine and opens nothing.
package link

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Link is one link of a recipient.
type Link struct {
	Alias  string     // clean, see CleanAlias
	Source string     // the name the link follows
	Host   string     // where the source is; "" is this host
	ID     string     // of the container that had that name when the link was made; "" when not recorded
	Addr   netip.Addr // the alias's own, inside the recipient
}

// Ref is the source as --link names it: NAME, or NAME@HOST.
func (l Link) Ref() string { return joinHost(l.Source, l.Host) }

// Set is the links of one recipient. The zero Set has none.
type Set struct {
	Links []Link // ordered by alias, bytewise; addresses follow this order
	Env   Mode   // zero is ModeAll

	// Kept names variables which look like a link's and are not: the image
	// or the user set them, and they win over the links'.
	Kept []string

	Socks Socks // zero is SocksOff
}

// LocalAddr is the address that is the ambassador's own in every recipient.
var LocalAddr = netip.AddrFrom4([4]byte{127, 77, 0, 1})

// maxLinks is how many aliases 127.77.0.2 to 127.77.255.254 hold.
const maxLinks = 1<<16 - 3

// Add puts l into the set, with its alias cleaned. Addresses are given anew,
// since they depend on the order of all aliases. It reports false, and
// changes nothing, when the alias is there already.
func (s *Set) Add(l Link) (bool, error) {
	l.Alias = CleanAlias(l.Alias)
	i, found := slices.BinarySearchFunc(s.Links, l.Alias, compareAlias)
	switch {
	case l.Alias == "":
		return false, fmt.Errorf("linking to %q: the alias is empty", l.Ref())
	case found:
		return false, nil
	case len(s.Links) == maxLinks:
		return false, fmt.Errorf("linking to %q: a container has at most %d links", l.Ref(), maxLinks)
	}
	s.Links = slices.Insert(s.Links, i, l)
	s.assign()
	return true, nil
}

// Link finds the link of an alias.
func (s *Set) Link(alias string) (Link, bool) {
	i, found := slices.BinarySearchFunc(s.Links, CleanAlias(alias), compareAlias)
	if !found {
		return Link{}, false
	}
	return s.Links[i], true
}

func compareAlias(l Link, alias string) int { return strings.Compare(l.Alias, alias) }

// assign gives every alias its address. It depends on nothing but the
// aliases, so whoever reads the labels finds the addresses that the hosts
// file and the variables were made with.
func (s *Set) assign() {
	for i := range s.Links {
		n := i + 2
		s.Links[i].Addr = netip.AddrFrom4([4]byte{127, 77, byte(n >> 8), byte(n)})
	}
}

// Variables are those of all links, as "NAME=value" with each name once. What
// the image or the user owns is left out, and so is every variable of an alias
// with a "=", where its name would end. The sources need no address.
func (s *Set) Variables(engineMajor int, recipient string, source func(Link) Source) []string {
	index := make(map[string]int)
	var vars []string
	for _, l := range s.Links {
		src := source(l)
		src.Addr = l.Addr
		prefix := Prefix(l.Alias)
		for _, v := range Variables(engineMajor, src, recipient, l.Alias, s.Env) {
			name, _, _ := strings.Cut(v, "=")
			i, known := index[name]
			switch {
			case known:
				vars[i] = v // the last one counts, as in a process's environment
			case IsVariable(prefix, name) && !slices.Contains(s.Kept, name):
				index[name] = len(vars)
				vars = append(vars, v)
			}
		}
	}
	return vars
}

// Prefixes are those of all links' variables.
func (s *Set) Prefixes() []string {
	prefixes := make(map[string]bool)
	for _, l := range s.Links {
		prefixes[Prefix(l.Alias)] = true
	}
	return slices.Sorted(maps.Keys(prefixes))
}

// Hosts are the lines of the recipient's hosts file, each name once. An alias
// goes before the hostnames and names of other sources: it was asked for.
func (s *Set) Hosts(source func(Link) Source) []Host {
	var hosts []Host
	taken := make(map[string]bool)
	add := func(name string, addr netip.Addr) {
		if !taken[name] {
			taken[name] = true
			hosts = append(hosts, Host{Name: name, Addr: addr})
		}
	}
	for _, l := range s.Links {
		if n := baseName(l.Alias); usableInHosts(n) {
			add(n, l.Addr)
		}
	}
	for _, l := range s.Links {
		for _, n := range Names(source(l), l.Alias) {
			add(n, l.Addr)
		}
	}
	return hosts
}
