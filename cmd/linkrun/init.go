package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/linkrun/linkrun/gate"
)

// In a recipient, linkrun stands in front of the program as its entrypoint:
//
//	/.linkrun-init --timeout=10s --entrypoint=1 -- PROGRAM ARG…
//
// It waits for the word that the links stand, makes the variables current and
// becomes the program. The container keeps these words for all of its starts,
// so later versions have to understand them.
const (
	initName       = ".linkrun-init"
	initPath       = "/" + initName
	initTimeout    = "--timeout="
	initEntrypoint = "--entrypoint=" // how many of the words after "--" are the entrypoint's, for unwrap
)

// runInit is linkrun in a recipient. It returns only when the program cannot
// be started.
func runInit(argv []string) error {
	timeout, argv, err := parseInit(argv[1:])
	if err != nil {
		return fail("it is started in containers that linkrun makes, and not by hand", "%w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	word, err := gate.Wait(ctx, gate.Address)
	if stopped := (*gate.SignalError)(nil); errors.As(err, &stopped) {
		return &problem{err: fmt.Errorf("waiting for the links: %w", err), code: stopped.ExitCode()}
	}
	if err != nil {
		return fail("see that `ambassador serve` runs on the host, and what `ambassador links` says; --link-timeout waits longer",
			"the links do not stand after %v: %w", timeout, err)
	}
	if word.Error != "" {
		return fail(word.Hint, "%s", word.Error)
	}
	return become(argv, word.Apply(os.Environ()))
}

func parseInit(words []string) (timeout time.Duration, argv []string, err error) {
	timeout = defaultTimeout
	end := slices.Index(words, "--")
	if end < 0 || end+1 == len(words) {
		return 0, nil, errors.New("no program to start")
	}
	for _, w := range words[:end] {
		if value, found := strings.CutPrefix(w, initTimeout); found {
			if timeout, err = time.ParseDuration(value); err != nil {
				return 0, nil, fmt.Errorf("reading %q: %w", w, err)
			}
		}
	}
	return timeout, words[end+1:], nil
}

// become executes a program in place of this one, found as runc finds it: on
// the PATH of the container, from its working directory. Exit codes and words
// are those docker run has for a program that does not start.
//
// Everything else is as the container's runtime left it. Signal handlers are
// reset by the kernel, and syscall.Exec takes back what Go did to
// RLIMIT_NOFILE.
func become(argv, env []string) error {
	path, err := exec.LookPath(argv[0])            // a word never changes the PATH
	if err == nil || errors.Is(err, exec.ErrDot) { // runc allows "." on the PATH
		err = syscall.Exec(path, argv, env)
		err = fmt.Errorf("exec %s: %w", strconv.Quote(argv[0]), err)
	}
	p := &problem{err: err, code: exitNotRunnable, hint: "see the image's entrypoint and the command after the image"}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		p.code = exitNotFound
	}
	if errors.Is(err, syscall.E2BIG) {
		p.hint = "create the container anew with --link-env ports or --link-env none"
	}
	return p
}
