package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// listing is the filter table of one family as iptables-save prints it. A nil
// listing is a table that is not there.
type listing struct {
	chains []chain
}

// chain is a chain with its rules in order.
type chain struct {
	name   string
	policy string // "-" for one that is not built in
	rules  []line
}

// line is a listed rule: the text behind "-A chain ", which iptables-restore
// reads back, and its words.
type line struct {
	text  string
	words []string
}

// jump is where a rule goes, by -j or -g.
func (l line) jump() string {
	for i := 0; i+1 < len(l.words); i++ {
		if l.words[i] == "-j" || l.words[i] == "-g" {
			return l.words[i+1]
		}
	}
	return ""
}

// always says that a rule is nothing but a jump to a chain.
func (l line) always(chain string) bool {
	return len(l.words) == 2 && l.words[0] == "-j" && l.words[1] == chain
}

// chain finds a chain by its name, nil if it is not there.
func (l *listing) chain(name string) *chain {
	if l == nil {
		return nil
	}
	for i := range l.chains {
		if l.chains[i].name == name {
			return &l.chains[i]
		}
	}
	return nil
}

// empty says that nothing is in the table that was not in it when the kernel
// made it.
func (l *listing) empty() bool {
	if l == nil {
		return true
	}
	for _, c := range l.chains {
		if c.policy != "ACCEPT" || len(c.rules) > 0 {
			return false
		}
	}
	return true
}

// ours lists the rules of our chains, and those that lead to one, each with
// its place in its chain.
func (l *listing) ours() (facts []string) {
	if l == nil {
		return nil
	}
	for _, c := range l.chains {
		own := slices.Contains(chains[:], c.name)
		if own && len(c.rules) == 0 {
			facts = append(facts, c.name+" is empty")
		}
		for i, r := range c.rules {
			if own || slices.Contains(chains[:], r.jump()) {
				facts = append(facts, fmt.Sprintf("%s %03d %s", c.name, i+1, r.canonical(c.name)))
			}
		}
	}
	return facts
}

// canonical is the rule as this package writes it, so that it reads the same
// whatever listed it. One that this package would not write stays as it is.
func (l line) canonical(chain string) string {
	if r, ok := parseRule(chain, l.words); ok {
		return joinWords(r.args())
	}
	return l.text
}

// parseListing reads what iptables-save prints and keeps the filter table.
func parseListing(text string) (*listing, error) {
	var found *listing
	table := ""
	for at := 1; text != ""; at++ {
		var raw string
		raw, text, _ = strings.Cut(text, "\n")
		raw = strings.TrimSpace(raw)
		switch {
		case raw == "" || raw[0] == '#':
		case raw[0] == '*':
			if table = raw[1:]; table == "filter" && found == nil {
				found = new(listing)
			}
		case raw == "COMMIT":
			table = ""
		case table != "filter":
		default:
			if err := found.add(raw); err != nil {
				return nil, fmt.Errorf("reading line %d of the listed rules: %w", at, err)
			}
		}
	}
	if table != "" {
		// A table that was cut off must not be taken for one without rules.
		return nil, fmt.Errorf("reading the listed rules: table %q does not end", table)
	}
	return found, nil
}

// add takes a line of the table: ":chain policy [packets:bytes]" or
// "-A chain rule".
func (l *listing) add(raw string) error {
	words, ok := splitWords(raw)
	if !ok || len(words) < 2 {
		return fmt.Errorf("%q is no line of a table", raw)
	}
	if name, found := strings.CutPrefix(words[0], ":"); found {
		if l.chain(name) != nil || name == "" {
			return fmt.Errorf("chain %q is there twice", name)
		}
		l.chains = append(l.chains, chain{name: name, policy: words[1]})
		return nil
	}
	c := l.chain(words[1])
	if words[0] != "-A" || c == nil {
		return fmt.Errorf("%q is no rule of a chain", raw)
	}
	// Names of chains are printed as they are: they hold no space or quote.
	_, rest, _ := strings.Cut(raw, " ")
	_, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
	c.rules = append(c.rules, line{text: strings.TrimLeft(rest, " "), words: words[2:]})
	return nil
}

// splitWords takes a line apart as iptables-restore does: at spaces, except
// between double quotes, where a backslash takes the next character as it is
// (xtables' add_param_to_argv).
func splitWords(s string) (words []string, ok bool) {
	var word strings.Builder
	var in, quoted bool
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quoted && c == '\\' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
		case c == '"':
			quoted, in = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if in {
				words = append(words, word.String())
				word.Reset()
			}
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, word.String())
	}
	return words, !quoted
}

// joinWords is a line of which splitWords makes the words again.
func joinWords(words []string) string {
	var s strings.Builder
	for i, w := range words {
		if i > 0 {
			s.WriteByte(' ')
		}
		if w != "" && !strings.ContainsAny(w, " \t\"\\") {
			s.WriteString(w)
			continue
		}
		s.WriteByte('"')
		s.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w))
		s.WriteByte('"')
	}
	return s.String()
}
