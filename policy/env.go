package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// EnvLabel is the label of a source that says which of its variables other
// hosts are told: "all", which is the default, "ports" or "none", or globs of
// names with commas between them. It is for recipients that may connect; all
// others are told nothing.
const EnvLabel = "ambassador.allow.env"

// Env is which variables are told. The zero value is none.
type Env []string

// ParseEnv reads the value of a source's EnvLabel.
func ParseEnv(source, value string) (Env, error) {
	switch value {
	case "", "all":
		return Env{"*"}, nil
	case "ports", "none":
		return nil, nil
	}
	var e Env
	for glob := range strings.SplitSeq(value, ",") {
		glob = strings.TrimSpace(glob)
		if _, err := path.Match(glob, ""); err != nil {
			return nil, fmt.Errorf("parsing label %q of %q: %q: %w", EnvLabel, source, glob, err)
		}
		e = append(e, glob)
	}
	return e, nil
}

// Filter returns those of vars, "NAME=value", that are told.
func (e Env) Filter(vars []string) []string {
	var told []string
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		// A slash is an ordinary character in a name, and is not to path.
		name = strings.ReplaceAll(name, "/", "_")
		if slices.ContainsFunc(e, func(glob string) bool { return matches(glob, name) }) {
			told = append(told, v)
		}
	}
	return told
}
