package link

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// The labels of a recipient. They are all there is to know of its links.
const (
	// LabelLink and an alias make a link; the value is the source's name, or
	// NAME@HOST. No value is no link, which takes back one that came with the
	// image.
	LabelLink = "ambassador.link."
	// LabelID and an alias: the source's id, 64 hexadecimal digits. It finds
	// a source that was renamed.
	LabelID = "ambassador.id."
	// LabelEnv: all, ports or none.
	LabelEnv = "ambassador.env"
	// LabelKept: the names of Set.Kept, separated by commas.
	LabelKept = "ambassador.env.kept"
	// LabelSocks: on, off or all-proxy.
	LabelSocks = "ambassador.socks"
)

// Labels are what ParseLabels reads s from. In aliases and variable names,
// bytes other than letters, digits, '_', '.' and '-' are percent-encoded.
func (s *Set) Labels() map[string]string {
	labels := make(map[string]string)
	for _, l := range s.Links {
		labels[LabelLink+escape(l.Alias)] = l.Ref()
		if l.ID != "" {
			labels[LabelID+escape(l.Alias)] = l.ID
		}
	}
	if s.Env != "" {
		labels[LabelEnv] = string(s.Env)
	}
	if len(s.Kept) > 0 {
		kept := make([]string, len(s.Kept))
		for i, name := range s.Kept {
			kept[i] = escape(name)
		}
		labels[LabelKept] = strings.Join(kept, ",")
	}
	if s.Socks.On() {
		labels[LabelSocks] = string(s.Socks)
	}
	return labels
}

// ParseLabels reads the links of a container. One bad label spoils them all:
// a container with half of its links is worse off than one that does not
// start. The error names the label, its value and what is wrong with it.
func ParseLabels(labels map[string]string) (Set, error) {
	var s Set
	ids := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if err := s.parseLabel(key, labels[key], ids); err != nil {
			return Set{}, fmt.Errorf("parsing label %q with value %q: %w", key, labels[key], err)
		}
	}
	if len(s.Links) > maxLinks {
		return Set{}, fmt.Errorf("parsing labels: a container has at most %d links", maxLinks)
	}
	// The order of the encoded aliases is not that of the aliases.
	slices.SortFunc(s.Links, func(a, b Link) int { return compareAlias(a, b.Alias) })
	for i := range s.Links {
		l := &s.Links[i]
		if i > 0 && l.Alias == s.Links[i-1].Alias {
			return Set{}, fmt.Errorf("parsing label %q with value %q: another label has the alias %q too",
				LabelLink+escape(l.Alias), l.Ref(), l.Alias)
		}
		l.ID = ids[l.Alias]
	}
	s.assign()
	return s, nil
}

func (s *Set) parseLabel(key, value string, ids map[string]string) (err error) {
	switch {
	case value == "":
	case strings.HasPrefix(key, LabelLink):
		var l Link
		l.Source, l.Host = cutHost(strings.TrimPrefix(value, "/"))
		if l.Alias, err = parseAlias(key[len(LabelLink):]); err != nil {
			return err
		}
		if !isName(l.Source) {
			return errors.New("the value is not a container's name, nor NAME@HOST")
		}
		s.Links = append(s.Links, l)
	case strings.HasPrefix(key, LabelID):
		alias, err := parseAlias(key[len(LabelID):])
		if err != nil {
			return err
		}
		if !isFullID(value) {
			return errors.New("the value is not a container's id, 64 hexadecimal digits")
		}
		ids[alias] = value
	case key == LabelEnv:
		s.Env, err = ParseMode(value)
	case key == LabelSocks:
		s.Socks, err = ParseSocks(strings.TrimPrefix(value, "/"))
	case key == LabelKept:
		for encoded := range strings.SplitSeq(value, ",") {
			name, err := unescape(encoded)
			if err != nil {
				return err
			}
			s.Kept = append(s.Kept, name)
		}
	}
	return err
}

// isName tells whether Docker gives out such names (moby, daemon/names), or
// such ids. Not a regular expression: the init of every recipient contains
// this package, and compiling one would delay it.
func isName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case isAlphanumeric(c):
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != ""
}

func isFullID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func parseAlias(encoded string) (string, error) {
	alias, err := unescape(encoded)
	if err != nil {
		return "", err
	}
	clean := CleanAlias(alias)
	if clean == "" {
		return "", errors.New("the alias is empty")
	}
	return clean, nil
}

func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlphanumeric(c) || c == '_' || c == '.' || c == '-' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func unescape(s string) (string, error) {
	plain, err := url.PathUnescape(s)
	if err != nil {
		return "", fmt.Errorf("%q is not percent-encoded", s)
	}
	return plain, nil
}

// HasLabels tells whether a container with these labels is a recipient, with
// good labels or bad ones.
func HasLabels(labels map[string]string) bool {
	for key, value := range labels {
		if strings.HasPrefix(key, LabelLink) && value != "" {
			return true
		}
	}
	return false
}

// IsLabel tells whether a label of that key is read by ParseLabels.
func IsLabel(key string) bool {
	return strings.HasPrefix(key, LabelLink) || strings.HasPrefix(key, LabelID) || key == LabelEnv || key == LabelKept ||
		key == LabelSocks
}

// WithoutInherited returns a container's labels without the links that came
// with its image. A label is known to be inherited by having the image's
// value: whoever runs a container decides what it is linked to, not whoever
// made the image, or any image could ask to be let in anywhere.
func WithoutInherited(labels, image map[string]string) map[string]string {
	own := maps.Clone(labels)
	maps.DeleteFunc(own, func(key, value string) bool {
		inherited, ok := image[key]
		return ok && inherited == value && (strings.HasPrefix(key, LabelLink) || strings.HasPrefix(key, LabelID) || key == LabelSocks)
	})
	return own
}

// Own returns the value of a label that a container has of its own; "" if it
// has none, or the one of its image, see WithoutInherited.
func Own(key string, labels, image map[string]string) string {
	if inherited, ok := image[key]; ok && inherited == labels[key] {
		return ""
	}
	return labels[key]
}

// Distinguish returns the value for a label of a link so that WithoutInherited
// keeps it although the image has the same one.
func Distinguish(key, value string, image map[string]string) string {
	if inherited, ok := image[key]; ok && inherited == value && (strings.HasPrefix(key, LabelLink) || key == LabelSocks) {
		return "/" + value // ParseLabels reads these values with and without the slash
	}
	return value
}
