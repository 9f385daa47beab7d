package link

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Spec is the value of one --link: the source, and the name the recipient
// knows it by.
type Spec struct {
	Source string // a container's name, or its id, or a unique prefix of that
	Host   string // where the source is; "" is this host
	Alias  string // as given; see CleanAlias
}

// ParseSpec reads SOURCE or SOURCE:ALIAS the way opts.ParseLink of moby and
// docker/cli does, error texts included. It accepts what they accept: either
// part may be empty, and an alias holds any character. NAME@HOST is a source
// on another host, which Docker does not know; no container's name has an "@",
// so that takes nothing away.
func ParseSpec(s string) (Spec, error) {
	if s == "" {
		return Spec{}, errors.New("empty string specified for links")
	}
	source, alias, found := strings.Cut(s, ":")
	switch {
	case strings.Contains(alias, ":"):
		return Spec{}, fmt.Errorf("bad format for links: %s", s)
	case !found:
		if name, host := cutHost(s); host != "" {
			return Spec{Source: name, Host: host, Alias: name}, nil
		}
		return Spec{Source: s, Alias: s}, nil
	case strings.HasPrefix(source, "/"):
		// "/db:/web/db" is how an inspected container lists its links.
		_, alias = path.Split(alias)
		source = source[1:]
	}
	name, host := cutHost(source)
	return Spec{Source: name, Host: host, Alias: alias}, nil
}

// String formats s as --link takes it.
func (s Spec) String() string { return joinHost(s.Source, s.Host) + ":" + s.Alias }

// cutHost splits NAME@HOST. What is not of that form has no host.
func cutHost(source string) (name, host string) {
	name, host, found := strings.Cut(source, "@")
	if !found || !isName(name) || !isHost(host) {
		return source, ""
	}
	return name, host
}

func joinHost(name, host string) string {
	if host == "" {
		return name
	}
	return name + "@" + host
}

// isHost tells whether s is a name that hosts have.
func isHost(s string) bool {
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return strings.Trim(s, ".") != "" && len(s) <= 255
}

// FullName is the name Docker files a link under, "/recipient/alias". It is
// the value of the ALIAS_NAME variable.
func FullName(recipient, alias string) string {
	return path.Join("/"+recipient, alias)
}

// CleanAlias is alias without what makes no difference to FullName: "/db",
// "./db" and "db/" are "db". It is "" for an alias that names no link: Docker
// accepts "db:" or "db:.", finds the name taken by the recipient itself, and
// carries on without the link.
func CleanAlias(alias string) string {
	const recipient = "\x00" // no container's name, so no alias climbs back to it by accident
	full := FullName(recipient, alias)
	if inside, ok := strings.CutPrefix(full, "/"+recipient+"/"); ok {
		return inside
	}
	if full == "/"+recipient || full == "/" {
		return ""
	}
	return ".." + full
}

// baseName is the part of an alias that hosts and variables use, which for
// Docker is what follows the last slash.
func baseName(alias string) string {
	_, base := path.Split(CleanAlias(alias))
	return base
}
