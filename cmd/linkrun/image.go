package main

import (
	"context"
	"errors"
	"io"
	"slices"
	"strconv"

	"github.com/distribution/reference"

	"github.com/linkrun/linkrun/docker"
)

// images is what linking needs to know of an engine's images.
type images interface {
	// Image returns docker.ErrNotFound when it has to be pulled first.
	Image(ctx context.Context, ref string) (docker.Image, error)
}

var _ images = (*docker.Client)(nil)

// The values of --pull.
const (
	pullAlways  = "always"
	pullMissing = "missing"
	pullNever   = "never"
)

// findImage returns the recipient's image, pulled as docker run would pull it:
// with --pull always, or when it is not there. An image that is there for
// another --platform is left to docker, which pulls the right one; both have
// the same entrypoint.
func findImage(ctx context.Context, engine images, d *dockerCLI, inv *invocation, stderr io.Writer) (docker.Image, error) {
	policy, given := inv.last("pull")
	switch {
	case !given:
		policy = pullMissing
	case policy != pullAlways && policy != pullMissing && policy != pullNever:
		return docker.Image{}, fail("leave --pull out to pull what is missing",
			`invalid pull option: '%s': must be one of "always", "missing" or "never"`, policy)
	}
	if policy != pullAlways {
		img, err := engine.Image(ctx, inv.image)
		switch {
		case err == nil:
			return img, nil
		case !errors.Is(err, docker.ErrNotFound):
			return img, fail(engineHint, "%w", err)
		case policy == pullNever:
			return img, fail("pull it first, or leave --pull=never out", "No such image: %s", familiar(inv.image))
		}
		if !inv.quiet() {
			io.WriteString(stderr, "Unable to find image '"+familiar(inv.image)+"' locally\n")
		}
	}
	if err := pull(ctx, d, inv, stderr); err != nil {
		return docker.Image{}, err
	}
	img, err := engine.Image(ctx, inv.image)
	if err != nil {
		return img, fail("pull it by hand: docker pull "+familiar(inv.image), "after pulling: %w", err)
	}
	return img, nil
}

func pull(ctx context.Context, d *dockerCLI, inv *invocation, stderr io.Writer) error {
	args := []string{"pull"}
	for _, g := range inv.flags {
		switch g.name {
		case "platform", "quiet", "disable-content-trust":
			args = append(args, g.word())
		}
	}
	// With its tag: docker pull remarks on a missing one, docker run does not.
	cmd := d.command(ctx, append(args, "--", familiar(inv.image))...)
	// docker run keeps stdout for the container.
	cmd.Stdout, cmd.Stderr = stderr, stderr
	if inv.quiet() {
		cmd.Stdout = nil
	}
	if err := cmd.Run(); err != nil {
		return fail("what docker wrote above says why", "pulling image %q: %w", inv.image, err)
	}
	return nil
}

// quiet follows --quiet, which docker run has since 23.0.
func (inv *invocation) quiet() bool {
	value, _ := inv.last("quiet")
	on, _ := strconv.ParseBool(value)
	return on
}

// familiar writes an image's name as docker's messages do, with its tag.
func familiar(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

// program is what a container runs.
type program struct {
	entrypoint, args []string
}

func (p program) argv() []string { return slices.Concat(p.entrypoint, p.args) }

// programOf merges image and command line as the engine does (moby,
// daemon/commit.go): --entrypoint drops the image's command too, and an empty
// one drops the entrypoint.
func programOf(img docker.Image, inv *invocation) (program, error) {
	p := program{img.Entrypoint, img.Cmd}
	if entrypoint, given := inv.last("entrypoint"); given {
		p = program{}
		if entrypoint != "" {
			p.entrypoint = []string{entrypoint}
		}
	}
	if len(inv.args) > 0 {
		p.args = inv.args
	}
	if len(p.argv()) == 0 {
		return p, fail("name one after the image", "No command specified")
	}
	return p, nil
}

// wrap puts linkrun's init in front of a program.
func wrap(p program, inv *invocation) program {
	return program{
		entrypoint: []string{initPath},
		args: slices.Concat([]string{
			initTimeout + inv.timeout.String(),
			initEntrypoint + strconv.Itoa(len(p.entrypoint)),
			"--",
		}, p.argv()),
	}
}
