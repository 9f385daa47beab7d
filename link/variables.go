package link

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Mode says which variables a recipient gets.
type Mode string

const (
	ModeAll   Mode = "all"   // what Docker's links set; the zero Mode is the same
	ModePorts Mode = "ports" // without the source's own environment, which often holds its passwords
	ModeNone  Mode = "none"
)

// ParseMode reads the value of --link-env and of LabelEnv.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeAll, ModePorts, ModeNone:
		return m, nil
	}
	return "", errors.New("it has to be all, ports or none")
}

// Source is what variables and hosts names tell of the container linked to.
type Source struct {
	Name     string // without a leading slash
	Hostname string
	Env      []string // configured, "NAME=value"
	Ports    []Port   // exposed, in any order
	Addr     netip.Addr
}

// Prefix is what the names of a link's variables begin with, before the
// underscore. Docker replaces nothing but dashes, so that "my.db" gives
// "MY.DB", which no shell can read.
func Prefix(alias string) string {
	return strings.ReplaceAll(strings.ToUpper(baseName(alias)), "-", "_")
}

// Variables are the "NAME=value" pairs Docker's links set in a recipient, by
// the algorithm of that major version of the engine: they differ in the
// default port and in what counts as a range (moby, daemon/links/links.go,
// changed in 28.0). Some names may come twice, with the same value.
func Variables(engineMajor int, src Source, recipient, alias string, mode Mode) []string {
	if mode == ModeNone {
		return nil
	}
	e := environment{prefix: Prefix(alias), src: src}
	if engineMajor >= 28 {
		e.ports()
	} else {
		e.portsBefore28()
	}
	e.set("NAME", FullName(recipient, alias))
	if mode != ModePorts {
		for _, v := range src.Env {
			name, value, found := strings.Cut(v, "=")
			if found && name != "HOME" && name != "PATH" {
				e.set("ENV_"+name, value)
			}
		}
	}
	return e.vars
}

// IsVariable says whether a link with that prefix may set the variable of
// that name. It is narrower than a comparison of prefixes: an alias "http"
// has no say over HTTP_PROXY.
func IsVariable(prefix, name string) bool {
	rest, found := strings.CutPrefix(name, prefix+"_")
	if !found {
		return false
	}
	if rest == "NAME" || rest == "PORT" || strings.HasPrefix(rest, "ENV_") {
		return true
	}
	port, found := strings.CutPrefix(rest, "PORT_")
	return found && port != "" && '0' <= port[0] && port[0] <= '9'
}

// environment collects the variables of one link.
type environment struct {
	prefix string
	src    Source
	vars   []string
}

func (e *environment) set(name, value string) {
	e.vars = append(e.vars, e.prefix+"_"+name+"="+value)
}

func (e *environment) ports() {
	ports := slices.SortedFunc(slices.Values(e.src.Ports), Port.Compare)
	e.defaultPort(ports)
	for _, p := range ports {
		e.port(p)
	}
	for len(ports) > 0 {
		n := 1
		for n < len(ports) && ports[n].Proto == ports[0].Proto && int(ports[n].Number) == int(ports[0].Number)+n {
			n++
		}
		if n > 1 {
			e.portRange(ports[0], ports[n-1])
		}
		ports = ports[n:]
	}
}

// portsBefore28 keeps the oddities of the older algorithm: ports are ordered
// by number, ranges mix protocols, have three entries or more, and are judged
// by counting entries, so that 80/tcp, 80/udp, 82/tcp is one.
func (e *environment) portsBefore28() {
	ports := slices.SortedFunc(slices.Values(e.src.Ports), func(p, q Port) int {
		return cmp.Or(cmp.Compare(p.Number, q.Number), p.Compare(q))
	})
	e.defaultPort(ports)
	for rest := ports; len(rest) > 0; {
		n := 1
		for n < len(rest) && int(rest[n].Number) <= int(rest[0].Number)+n {
			n++
		}
		if n < 3 {
			rest = rest[1:]
			continue
		}
		e.portRange(rest[0], rest[n-1])
		rest = rest[n:]
	}
	for _, p := range ports {
		e.port(p)
	}
}

func (e *environment) defaultPort(sorted []Port) {
	if len(sorted) > 0 {
		e.set("PORT", e.url(sorted[0]))
	}
}

func (e *environment) port(p Port) {
	key := portKey(p, p.Proto)
	e.set(key, e.url(p))
	e.set(key+"_ADDR", e.addr())
	e.set(key+"_PORT", fmt.Sprint(p.Number))
	e.set(key+"_PROTO", string(p.Proto))
}

// portRange names the range's end after its first port too, with the last
// port's protocol, which makes a difference before 28 only.
func (e *environment) portRange(first, last Port) {
	start, end := portKey(first, first.Proto), portKey(first, last.Proto)
	e.set(start+"_START", e.url(first))
	e.set(start+"_PORT_START", fmt.Sprint(first.Number))
	e.set(end+"_END", e.url(last))
	e.set(end+"_PORT_END", fmt.Sprint(last.Number))
}

func (e *environment) url(p Port) string {
	return fmt.Sprintf("%s://%s:%d", p.Proto, e.addr(), p.Number)
}

func (e *environment) addr() string {
	if !e.src.Addr.IsValid() {
		return ""
	}
	return e.src.Addr.String()
}

func portKey(p Port, proto Proto) string {
	return fmt.Sprintf("PORT_%d_%s", p.Number, strings.ToUpper(string(proto)))
}
