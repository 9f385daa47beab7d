package main

import "os"

// keepFiles has docker read what linkrun reads of --env-file and --label-file:
// a pipe, such as a shell's <(…) or its own stdin, can be read only once.
func (inv *invocation) keepFiles() error {
	for i, g := range inv.flags {
		if g.name != "env-file" && g.name != "label-file" {
			continue
		}
		st, err := os.Stat(g.value)
		if err != nil || st.IsDir() || st.Mode().IsRegular() {
			continue // it can be read again, or whoever reads it says why not
		}
		if inv.flags[i].value, err = keep(g.value); err != nil {
			return fail("write it to a file first", "reading %q: %w", g.value, err)
		}
	}
	return nil
}

// keep returns the path of a file in memory with what can be read at path. It
// is there for this process and for the docker that takes its place.
func keep(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	kept, err := newMemoryFile(path)
	if err != nil {
		return "", err
	}
	return kept, os.WriteFile(kept, text, 0)
}
