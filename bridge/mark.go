package bridge

import (
	"slices"
	"strings"
)

// mark is the alias of an interface (what `ip link` shows as "alias"), which
// is where this package notes what it changed there. The note is as good as
// the interface: it outlives the agent, and is gone with the interface. What
// others wrote into the alias stays in front of it.
type mark string

const (
	markBegin = "[ambassador-icc "
	markEnd   = "]"
	isolated  = "isolated" // the flag of a port was off
)

// split is what others wrote, and what was changed.
func (m mark) split() (others string, things []string) {
	others, note, found := strings.Cut(string(m), markBegin)
	note, rest, ended := strings.Cut(note, markEnd)
	if !found || !ended || rest != "" {
		return string(m), nil
	}
	return strings.TrimSuffix(others, " "), strings.Fields(note)
}

func join(others string, things []string) mark {
	if len(things) == 0 {
		return mark(others)
	}
	if others != "" {
		others += " "
	}
	return mark(others + markBegin + strings.Join(things, " ") + markEnd)
}

func (m mark) has(thing string) bool {
	_, things := m.split()
	return slices.Contains(things, thing)
}

func (m mark) with(thing string) mark {
	if m.has(thing) {
		return m
	}
	others, things := m.split()
	return join(others, append(things, thing))
}

func (m mark) without(thing string) mark {
	others, things := m.split()
	return join(others, slices.DeleteFunc(things, func(t string) bool { return t == thing }))
}
