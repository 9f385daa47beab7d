package main

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
)

// committed is what `docker commit` of a linked container leaves in an image:
// labels, and names of variables, of links that are not this recipient's.
type committed struct {
	labels    map[string]string
	variables []string
}

// uncommit undoes to an image what linkrun did to the container it was made
// from. Docker's own links leave nothing behind in an image.
func uncommit(ctx context.Context, d *dockerCLI, ref string, img docker.Image) (docker.Image, committed, error) {
	var c committed
	if len(img.Entrypoint) == 0 || img.Entrypoint[0] != initPath {
		return img, c, nil
	}
	p := unwrap(program{img.Entrypoint, img.Cmd})
	img.Entrypoint, img.Cmd = p.entrypoint, p.args

	const hint = "see `docker image inspect` of the image, and build it anew"
	out, err := d.command(ctx, "image", "inspect", "--format", "{{json .Config.Labels}}", "--", ref).Output()
	if err != nil {
		return img, c, failed(err, hint, "asking docker for the labels of image "+ref)
	}
	if err := json.Unmarshal(out, &c.labels); err != nil {
		return img, c, fail(hint, "reading the labels of image %q: %w", ref, err)
	}
	former, err := link.ParseLabels(c.labels)
	if err != nil {
		return img, c, fail(hint, "reading the labels of image %q: %w", ref, err)
	}
	prefixes, socks := former.Prefixes(), former.Socks.Variables()
	img.Env = slices.DeleteFunc(slices.Clone(img.Env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		ofLink := slices.Contains(socks, v) || !slices.Contains(former.Kept, name) &&
			slices.ContainsFunc(prefixes, func(prefix string) bool { return link.IsVariable(prefix, name) })
		if ofLink {
			c.variables = append(c.variables, name)
		}
		return ofLink
	})
	return img, c, nil
}

// unwrap is the reverse of wrap.
func unwrap(p program) program {
	if len(p.entrypoint) == 0 || p.entrypoint[0] != initPath {
		return p
	}
	words := slices.Concat(p.entrypoint[1:], p.args)
	end := slices.Index(words, "--")
	if end < 0 {
		return program{}
	}
	argv, n := words[end+1:], 0
	for _, w := range words[:end] {
		if value, found := strings.CutPrefix(w, initEntrypoint); found {
			n, _ = strconv.Atoi(value)
		}
	}
	n = min(max(n, 0), len(argv))
	return unwrap(program{argv[:n], argv[n:]})
}
