package main

import (
	"bufio"
	"context"
	"regexp"
	"strings"
	"time"
)

// askDocker learns the flags of the installed `docker run` from its help: a
// flag that takes a value has the value's type printed behind its name.
func (d *dockerCLI) askDocker(ctx context.Context) ([]flag, error) {
	const (
		doing = "asking `docker run --help` for its flags"
		hint  = "see that `docker run --help` works"
	)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := d.command(ctx, "run", "--help").Output()
	if err != nil {
		return nil, failed(err, hint, doing)
	}
	flags := flagsFromHelp(string(out))
	if len(flags) == 0 {
		return nil, fail(hint, doing+": it lists none")
	}
	return flags, nil
}

func flagsFromHelp(help string) (flags []flag) {
	// "  -a, --attach list   Attach to …", "      --init   Run …". Lines that
	// continue a description are indented further.
	line := regexp.MustCompile(`^ {2,6}(?:-(\w), )?--([a-z0-9][a-z0-9-]*)(?: (\S+))?(?:  .*)?$`)
	for s := bufio.NewScanner(strings.NewReader(help)); s.Scan(); {
		if m := line.FindStringSubmatch(s.Text()); m != nil {
			flags = append(flags, flag{name: m[2], shorthand: m[1], isSwitch: m[3] == ""})
		}
	}
	return flags
}
