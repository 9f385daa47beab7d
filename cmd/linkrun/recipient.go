package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
)

// engineTimeout bounds the questions to the engine. It does not bound a pull.
const engineTimeout = time.Minute

// runLinked becomes the docker run that makes a recipient. It refuses what
// Docker would refuse about links before it changes anything; the rest of the
// flags are docker's to judge.
func runLinked(ctx context.Context, d *dockerCLI, host string, inv *invocation, stderr io.Writer) error {
	if err := checkNetworks(inv.all("network", "net")); err != nil {
		return err
	}
	self, err := initBinary()
	if err != nil {
		return err
	}
	if err := inv.keepFiles(); err != nil {
		return err
	}
	labels, err := userLabels(inv)
	if err != nil {
		return err
	}
	specs, like, err := addLabelled(inv, labels)
	if err != nil {
		return err
	}
	name, _ := inv.last("name")
	if name == "" {
		name = newName()
	}

	ask, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	client, err := docker.Dial(ask, host)
	if err != nil {
		return noEngine(err)
	}
	defer client.Close()
	engine, err := client.Engine(ask)
	if err != nil {
		return noEngine(err)
	}
	agent := findAmbassador(host, self)
	if slices.ContainsFunc(specs, func(s link.Spec) bool { return s.Host != "" }) {
		if err := agent.ensure(ctx, engine); err != nil { // it knows the other hosts
			return err
		}
	}
	l, err := resolve(ask, client, control.Dial(agent.dir), name, specs, stderr)
	if err != nil {
		return err
	}
	if len(l.set.Links) == 0 && like.Socks.On() {
		return errNoLinks()
	}
	if len(l.set.Links) == 0 {
		return d.become(runWords(inv.flags, nil, inv.image, inv.args), d.env)
	}
	r := recipient{name: name, engine: engine, linked: l, self: self, inv: inv}
	r.set.Env, r.set.Socks = like.Env, like.Socks

	img, err := findImage(ctx, client, d, inv, stderr)
	if err != nil {
		return err
	}
	r.inherited = img.Labels
	if img, r.former, err = uncommit(ctx, d, inv.image, img); err != nil {
		return err
	}
	maps.Copy(labels, r.former.labels)
	r.foreign = labels
	if r.program, err = programOf(img, inv); err != nil {
		return err
	}
	if r.owned, err = ownedVariables(img.Env, inv); err != nil {
		return err
	}
	r.set.Kept = keptVariables(&r.set, r.owned)

	if err := agent.ensure(ctx, engine); err != nil {
		return err
	}
	words, env, err := r.dockerRun(d.env)
	if err != nil {
		return err
	}
	return d.become(words, env)
}

// recipient is a container about to be made.
type recipient struct {
	*linked
	name    string
	engine  docker.Engine
	self    string // the program that is its init
	inv     *invocation
	program program
	owned   map[string]bool
	former  committed
	foreign map[string]string // labels of the user and of a committed image

	inherited map[string]string // labels of the image, of which no link is made
}

// dockerRun is the words and the environment for docker.
func (r *recipient) dockerRun(env []string) (words, newEnv []string, err error) {
	mount, err := initMount(r.self)
	if err != nil {
		return nil, nil, err
	}
	vars := r.set.Variables(r.engine.Major(), r.name, r.source)
	added := []string{"--mount=" + mount}
	added = append(added, r.labelFlags()...)
	for _, h := range r.set.Hosts(r.source) {
		added = append(added, "--add-host="+h.Name+":"+h.Addr.String())
	}
	added = append(added, bare(vars)...)
	socks := slices.DeleteFunc(r.set.Socks.Variables(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return r.owned[name]
	})
	for _, v := range socks {
		// With its value, unlike those of links: in docker's own environment,
		// ALL_PROXY would be for docker.
		added = append(added, "--env="+v)
	}

	// A bare name that docker does not find in its environment unsets the
	// variable in the container.
	stale := slices.DeleteFunc(r.former.variables, func(name string) bool {
		return r.owned[name] || slices.ContainsFunc(slices.Concat(vars, socks), func(v string) bool { return strings.HasPrefix(v, name+"=") })
	})
	added = append(added, bare(stale)...)
	newEnv = append(unsetenv(env, slices.Concat(vars, stale)), vars...)

	if given, _ := r.inv.last("name"); given == "" {
		added = append(added, "--name="+r.name)
	}
	p := wrap(r.program, r.inv)
	added = append(added, "--entrypoint="+p.entrypoint[0])
	drop := []string{"entrypoint"}
	if policy, _ := r.inv.last("pull"); policy == pullAlways {
		drop = append(drop, "pull") // that is done
	}
	return runWords(r.inv.without(drop...), added, r.inv.image, p.args), newEnv, nil
}

// labelFlags come behind those of the user. What labels there are of links
// that the recipient does not have is taken back.
func (r *recipient) labelFlags() (words []string) {
	labels := r.set.Labels()
	for key := range r.foreign {
		if _, ours := labels[key]; !ours && link.IsLabel(key) {
			labels[key] = ""
		}
	}
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		words = append(words, "--label="+key+"="+link.Distinguish(key, labels[key], r.inherited))
	}
	return words
}

// runWords are the words of `docker run`.
func runWords(flags []given, added []string, image string, args []string) []string {
	words := []string{"run"}
	for _, f := range flags {
		words = append(words, f.word())
	}
	words = append(words, added...)
	if strings.HasPrefix(image, "-") {
		words = append(words, "--")
	}
	return slices.Concat(words, []string{image}, args)
}

// userLabels are those of --label-file and --label, the latter winning.
func userLabels(inv *invocation) (map[string]string, error) {
	var pairs []string
	for _, file := range inv.all("label-file") {
		more, err := readEnvFile(file, func(string) (string, bool) { return "", true })
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, more...)
	}
	labels := make(map[string]string)
	for _, pair := range append(pairs, inv.all("label")...) {
		key, value, _ := strings.Cut(pair, "=")
		labels[key] = value
	}
	return labels, nil
}

// addLabelled adds to the links of the command line those that the user wrote
// as labels. They count, so they have to be known: the addresses depend on
// all of them. The other labels are what counts where no flag was given.
func addLabelled(inv *invocation, labels map[string]string) ([]link.Spec, link.Set, error) {
	set, err := link.ParseLabels(labels)
	if err != nil {
		return nil, link.Set{}, fail("correct the label", "%w", err)
	}
	specs := slices.Clone(inv.links)
	for _, l := range set.Links {
		specs = append(specs, link.Spec{Source: l.Source, Host: l.Host, Alias: l.Alias})
	}
	return specs, link.Set{Env: cmp.Or(inv.env, set.Env), Socks: cmp.Or(inv.socks, set.Socks)}, nil
}

// errNoLinks is for a SOCKS5 address that leads nowhere. Were it let pass, the
// recipient's programs would be told of an address that refuses them.
func errNoLinks() error {
	return fail("add a --link to each container that is to be reached", "--link-socks reaches linked containers only, and there is no link")
}

const engineHint = "see `docker info`, and the log of the engine"

func noEngine(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail("run linkrun as root, or join the group docker", "%w", err)
	case errors.Is(err, docker.ErrUnavailable):
		return fail("start the engine, or name it with DOCKER_HOST or DOCKER_CONTEXT", "%w", err)
	}
	return fail(engineHint, "%w", err)
}
