package main

import (
	"cmp"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/linkrun/linkrun/docker"
)

const defaultContext = "default"

// endpoint finds the engine that docker is going to talk to, by the rules of
// docker/cli's resolveContextName: --context, --host, DOCKER_HOST,
// DOCKER_CONTEXT, the current context of the configuration.
func (d *dockerCLI) endpoint(ctx context.Context, g globalFlags) (string, error) {
	switch {
	case g.context != "" && len(g.hosts) > 0:
		return "", fail("leave one of them out", "conflicting options: cannot specify both --host and --context")
	case len(g.hosts) > 1:
		return "", fail("name one engine", "specify only one -H")
	case len(g.hosts) == 1:
		return localHost(g.hosts[0])
	}
	name := g.context
	if name == "" {
		if host := os.Getenv("DOCKER_HOST"); host != "" {
			return localHost(host)
		}
		name = cmp.Or(os.Getenv("DOCKER_CONTEXT"), currentContext(g.config), defaultContext)
	}
	if name == defaultContext {
		return localHost(docker.HostFromEnvironment())
	}
	out, err := d.command(ctx, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}", "--", name).Output()
	if err != nil {
		return "", failed(err, "`docker context ls` lists the contexts", "asking docker for its context "+name)
	}
	return localHost(strings.TrimSpace(string(out)))
}

// currentContext is what `docker context use` has chosen, "" for none. A
// configuration that cannot be read counts as empty, as for docker, which
// also warns of it.
func currentContext(dir string) string {
	if dir = cmp.Or(dir, os.Getenv("DOCKER_CONFIG")); dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return ""
	}
	var config struct{ CurrentContext string }
	if json.Unmarshal(b, &config) != nil {
		return ""
	}
	return config.CurrentContext
}

// localHost completes the address of an engine, and refuses one on another
// machine: its containers cannot be served from here, and what is mounted
// into them has to be there.
func localHost(host string) (string, error) {
	if !strings.Contains(host, "://") {
		host = "tcp://" + host
	}
	u, err := url.Parse(host)
	if err != nil {
		return "", fail("it is written unix:///PATH or tcp://ADDRESS:PORT", "using engine %q: %w", host, err)
	}
	switch name := u.Hostname(); {
	case u.Scheme == "unix":
		return host, nil
	case u.Scheme == "tcp" && (name == "" || name == "localhost" || isLoopback(name)):
		return "tcp://" + net.JoinHostPort(cmp.Or(name, "127.0.0.1"), cmp.Or(u.Port(), "2375")), nil
	}
	return "", fail("run linkrun on the machine of the engine", "linking on engine %q: it is not on this machine", host)
}

func isLoopback(name string) bool {
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.IsLoopback()
}
