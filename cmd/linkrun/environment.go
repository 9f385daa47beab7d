package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/linkrun/linkrun/link"
)

// ownedVariables are the names of the variables which the image or the user
// sets, and which links leave alone: Docker gives those the lowest priority. A
// bare `-e NAME` without a NAME in the environment removes one, and counts too.
func ownedVariables(imageEnv []string, inv *invocation) (map[string]bool, error) {
	vars := slices.Concat(imageEnv, inv.all("env"))
	for _, file := range inv.all("env-file") {
		more, err := readEnvFile(file, os.LookupEnv)
		if err != nil {
			return nil, err
		}
		vars = append(vars, more...)
	}
	owned := make(map[string]bool)
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		owned[name] = true
	}
	return owned, nil
}

// keptVariables are the owned ones that a link would set.
func keptVariables(set *link.Set, owned map[string]bool) (kept []string) {
	prefixes := set.Prefixes()
	for name := range owned {
		if slices.ContainsFunc(prefixes, func(prefix string) bool { return link.IsVariable(prefix, name) }) {
			kept = append(kept, name)
		}
	}
	slices.Sort(kept)
	return kept
}

func readEnvFile(path string, lookup func(string) (string, bool)) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fail("name a file of NAME=value lines", "%w", err)
	}
	defer f.Close()
	vars, err := parseEnvFile(path, f, lookup)
	if err != nil {
		return nil, fail("correct the file: a line is NAME=value, NAME, or a # comment", "%w", err)
	}
	return vars, nil
}

// parseEnvFile reads an --env-file, or a --label-file, as docker/cli does
// (opts/file.go): values are taken as they are, quotes and spaces included. A
// bare name is looked up, and left out when it is not there.
func parseEnvFile(path string, r io.Reader, lookup func(string) (string, bool)) ([]string, error) {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("invalid env file (%s): %w", path, fmt.Errorf(format, args...))
	}
	var vars []string
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		b := lines.Bytes()
		if !utf8.Valid(b) {
			return nil, invalid("invalid utf8 bytes at line %d: %v", n, b)
		}
		if n == 1 {
			b = bytes.TrimPrefix(b, []byte("\xEF\xBB\xBF"))
		}
		line := strings.TrimLeftFunc(string(b), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		switch {
		case strings.ContainsAny(name, " \t"):
			return nil, invalid("variable '%s' contains whitespaces", name)
		case name == "":
			return nil, invalid("no variable name on line '%s'", line)
		case !found:
			if value, found = lookup(name); !found {
				continue
			}
		}
		vars = append(vars, name+"="+value)
	}
	if err := lines.Err(); err != nil {
		return nil, invalid("%w", err)
	}
	return vars, nil
}
