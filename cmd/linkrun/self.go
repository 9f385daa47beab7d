package main

import (
	"debug/elf"
	"encoding/csv"
	"fmt"
	"os"
	"slices"
	"strings"
)

// initBinary returns the path of this program, which is mounted into the
// recipient as its init.
func initBinary() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fail("start linkrun by its path", "finding the own program: %w", err)
	}
	return path, checkInit(path)
}

// checkInit makes sure that a program can run in every container: as any
// user, in an image that need not hold a single library.
func checkInit(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return fail("start linkrun again: it was replaced just now", "mounting the own program into the container: %w", err)
	}
	if st.Mode().Perm()&0o001 == 0 {
		return fail("chmod a+rx "+path, "mounting %q into the container: not every user may execute it (%v)", path, st.Mode())
	}
	f, err := elf.Open(path)
	if err != nil {
		return fail("run linkrun on the engine's machine", "mounting %q into the container: it is no Linux program: %w", path, err)
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return fail("build it with CGO_ENABLED=0", "mounting %q into the container: it needs shared libraries", path)
	}
	return nil
}

// initMount is the value of --mount for it. The fields are CSV.
func initMount(path string) (string, error) {
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write([]string{"type=bind", "source=" + path, "target=" + initPath, "readonly"}); err != nil {
		return "", fmt.Errorf("formatting a mount: %w", err)
	}
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n"), w.Error()
}
