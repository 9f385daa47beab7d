package link

import (
	"net/netip"
	"slices"
	"strings"
	"unicode"
)

// Host is one line of a recipient's hosts file.
type Host struct {
	Name string
	Addr netip.Addr
}

// Names are what a source is called in a recipient's hosts file, without
// duplicates: the alias, the source's hostname, the source's name. An alias
// with a character that a hosts file cannot hold, or that `docker run
// --add-host` takes for a separator, is left out.
func Names(src Source, alias string) []string {
	var names []string
	for _, n := range []string{baseName(alias), src.Hostname, src.Name} {
		if usableInHosts(n) && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// usableInHosts lets a space pass: Docker's links write "a b" as it is, which
// makes two names of it.
func usableInHosts(name string) bool {
	return strings.TrimSpace(name) != "" && !strings.ContainsAny(name, "=:#") &&
		!strings.ContainsFunc(name, unicode.IsControl)
}
