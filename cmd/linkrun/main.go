// Command linkrun is `docker run` with links: it turns --link into labels,
// variables, hosts names and an init, makes sure that an ambassador serves,
// and becomes docker. It carries no connection itself.
package main

import (
	"cmp"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	var err error
	if filepath.Base(os.Args[0]) == initName {
		err = runInit(os.Args)
	} else {
		err = run(context.Background(), os.Args, os.Stdout, os.Stderr)
	}
	os.Exit(report(os.Stderr, err))
}

// run ends in docker when all goes well. When it returns nil, a help text was
// printed, or docker ran under it and succeeded.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) error {
	words, dockerName, socket, globals := argv[1:], "docker", "", globalFlags{}
	if isPlugin(argv[0]) {
		if len(words) > 0 && words[0] == pluginMetadata {
			return writeMetadata(stdout)
		}
		var err error
		if globals, words, err = splitGlobals(words); err != nil {
			return err
		}
		dockerName = cmp.Or(os.Getenv(envOriginalCommand), dockerName)
		socket = os.Getenv(envSocket)
	}
	if asksForHelp(words) {
		return printOwn(stdout, words[0] == "--version")
	}
	d, err := findDocker(dockerName, globals.words)
	if err != nil {
		return err
	}
	d.socket = socket
	// What does not speak of links is none of linkrun's business, mistakes
	// and flags it has never heard of included.
	if !slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, "--link") }) {
		return d.become(slices.Concat([]string{"run"}, words), d.env)
	}
	inv, err := parse(words, func() ([]flag, error) { return d.askDocker(ctx) })
	switch {
	case err != nil:
		return err
	case inv.help, inv.version:
		return printOwn(stdout, inv.version)
	case len(inv.links) == 0 && !inv.own:
		return d.become(slices.Concat([]string{"run"}, words), d.env)
	case inv.image == "":
		return fail("see `linkrun --help`", `"linkrun" requires at least 1 argument, the image`)
	case len(inv.links) == 0 && inv.socks.On():
		return errNoLinks()
	case len(inv.links) == 0:
		return d.become(runWords(inv.flags, nil, inv.image, inv.args), d.env)
	}
	host, err := d.endpoint(ctx, globals)
	if err != nil {
		return err
	}
	return runLinked(ctx, d, host, inv, stderr)
}

func asksForHelp(words []string) bool {
	return len(words) > 0 && (words[0] == "--help" || words[0] == "--version")
}

func printOwn(stdout io.Writer, wantVersion bool) error {
	text := usage
	if wantVersion {
		text = "linkrun " + version() + "\n"
	}
	_, err := io.WriteString(stdout, text)
	return err
}
