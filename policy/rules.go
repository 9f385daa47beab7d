// Package policy decides which recipients of other hosts may connect to which
// sources of this one, and keeps a record of it. It carries no bytes, and
// takes the names it is given for true.
package policy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/linkrun/linkrun/link"
)

// Request is a connection that a recipient wants.
type Request struct {
	Host      string // of the recipient, as its certificate says
	Recipient string // name, as its host says
	Source    string // name
	Port      link.Port
}

// String is the request as rules are written: HOST/RECIPIENT SOURCE:PORT/PROTO.
func (q Request) String() string {
	return q.Host + "/" + q.Recipient + " " + q.Source + ":" + q.Port.String()
}

// Decision is the answer to a Request.
type Decision struct {
	Allowed bool
	Rule    string // the rule that says so, and where it stands; why, if there is none
}

// Rules are what is allowed and denied. What no rule allows is denied, and so
// is what one denies, whatever others say. The zero value denies everything.
type Rules []Rule

// Rule is one of them. The names are globs: '*' is any number of characters,
// '?' one, and [a-z] one of several.
type Rule struct {
	Deny      bool
	Host      string
	Recipient string
	Source    string
	Port      uint16     // 0 is any
	Proto     link.Proto // "" is any
	Origin    string     // where it was written, for the record
}

// String is the rule as it is written.
func (r Rule) String() string {
	verb := "allow "
	if r.Deny {
		verb = "deny "
	}
	return verb + r.Host + "/" + r.Recipient + " " + r.Source + r.portText()
}

func (r Rule) portText() string {
	switch {
	case r.Port == 0:
		return ""
	case r.Proto == "":
		return ":" + strconv.Itoa(int(r.Port))
	}
	return ":" + link.Port{Number: r.Port, Proto: r.Proto}.String()
}

func (r Rule) matches(q Request) bool {
	return matches(r.Host, q.Host) && matches(r.Recipient, q.Recipient) && matches(r.Source, q.Source) &&
		(r.Port == 0 || r.Port == q.Port.Number) && (r.Proto == "" || r.Proto == q.Port.Proto)
}

// matches has both sides without a slash, so that path's globs are plain ones.
func matches(glob, name string) bool {
	ok, err := path.Match(glob, name)
	return ok && err == nil
}

// Decide answers q by all sets of rules together.
func Decide(q Request, sets ...Rules) Decision {
	d := Decision{Rule: "no rule allows it"}
	for _, rules := range sets {
		for _, r := range rules {
			switch {
			case !r.matches(q):
			case r.Deny:
				return Decision{false, r.record()}
			case !d.Allowed:
				d = Decision{true, r.record()}
			}
		}
	}
	return d
}

func (r Rule) record() string {
	if r.Origin == "" {
		return r.String()
	}
	return r.String() + " (" + r.Origin + ")"
}

// Label is the label of a source that says who may connect to it.
const Label = "ambassador.allow"

// ParseLabel reads the value of a source's Label: HOST/RECIPIENT[:PORT[/PROTO]]
// any number of times, separated by commas.
func ParseLabel(source, value string) (Rules, error) {
	var rs Rules
	for entry := range strings.SplitSeq(value, ",") {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		who, port, err := cutPort(entry)
		if err != nil {
			return nil, fmt.Errorf("parsing label %q of %q: %q: %w", Label, source, entry, err)
		}
		r, err := newRule(who, source)
		if err != nil {
			return nil, fmt.Errorf("parsing label %q of %q: %q: %w", Label, source, entry, err)
		}
		r.Port, r.Proto, r.Origin = port.Number, port.Proto, "label"
		rs = append(rs, r)
	}
	return rs, nil
}

// Parse reads a file of rules, one a line:
//
//	allow HOST/RECIPIENT SOURCE[:PORT[/PROTO]]
//	deny  HOST/RECIPIENT SOURCE[:PORT[/PROTO]]
//
// What follows a '#' is a comment. name is what the file is called.
func Parse(name string, r io.Reader) (Rules, error) {
	var rs Rules
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		rule, err := parseLine(words)
		if err != nil {
			return nil, fmt.Errorf("parsing policy %q, line %d: %w", name, n, err)
		}
		rule.Origin = fmt.Sprintf("%s:%d", name, n)
		rs = append(rs, rule)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading policy %q: %w", name, err)
	}
	return rs, nil
}

func parseLine(words []string) (Rule, error) {
	if len(words) != 3 || words[0] != "allow" && words[0] != "deny" {
		return Rule{}, errors.New("a rule is: allow|deny HOST/RECIPIENT SOURCE[:PORT[/PROTO]]")
	}
	source, port, err := cutPort(words[2])
	if err != nil {
		return Rule{}, fmt.Errorf("%q: %w", words[2], err)
	}
	r, err := newRule(words[1], source)
	if err != nil {
		return Rule{}, err
	}
	r.Deny = words[0] == "deny"
	r.Port, r.Proto = port.Number, port.Proto
	return r, nil
}

func newRule(who, source string) (Rule, error) {
	host, recipient, ok := strings.Cut(who, "/")
	if !ok {
		return Rule{}, fmt.Errorf("%q is not HOST/RECIPIENT", who)
	}
	for _, glob := range []string{host, recipient, source} {
		if glob == "" || strings.ContainsAny(glob, "/:,# \t\n") {
			return Rule{}, fmt.Errorf("%q is not a name", glob)
		}
		if _, err := path.Match(glob, ""); err != nil {
			return Rule{}, fmt.Errorf("%q: %w", glob, err)
		}
	}
	return Rule{Host: host, Recipient: recipient, Source: source}, nil
}

// cutPort takes ":PORT" or ":PORT/PROTO" off the end. Without a protocol the
// port is meant for all of them.
func cutPort(s string) (rest string, p link.Port, err error) {
	rest, text, found := strings.Cut(s, ":")
	if !found {
		return rest, link.Port{}, nil
	}
	p, err = link.ParsePort(text)
	if !strings.Contains(text, "/") {
		p.Proto = ""
	}
	return rest, p, err
}
