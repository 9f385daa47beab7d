// Package docker is what links need of the Engine API: the engine's identity,
// containers, images and events, read over the maintained Go client. It
// changes nothing in the engine and keeps no state.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// DefaultHost is where an engine listens when nothing else is said.
const DefaultHost = "unix:///var/run/docker.sock"

// ErrNotFound says that the engine has no such container or image.
var ErrNotFound = errors.New("not found")

// ErrUnavailable says that no engine answers at the host. The error also
// wraps fs.ErrPermission when its socket is there but may not be opened.
var ErrUnavailable = errors.New("the Docker Engine does not answer")

// Client talks to one engine. Safe for concurrent use.
type Client struct {
	api  *client.Client
	host string
}

// Engine is the identity and version of a Docker Engine.
type Engine struct {
	ID      string // unique to the engine's data root
	Version string // "28.5.2", with whatever suffix the packager gave it

	// Firewall is the backend of the engine's rules, "iptables" or
	// "nftables", each perhaps with "+firewalld"; "" for an older engine,
	// which does not say and has only iptables.
	Firewall string
}

// Major is the first number of the engine's version, 0 when it has none. The
// variables of a link depend on it.
func (e Engine) Major() int {
	major, _, _ := strings.Cut(e.Version, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return 0
	}
	return n
}

// HostFromEnvironment is the engine DOCKER_HOST names, else DefaultHost.
func HostFromEnvironment() string {
	if h := os.Getenv(client.EnvOverrideHost); h != "" {
		return h
	}
	return DefaultHost
}

// Dial returns a client for the engine at host ("" is HostFromEnvironment)
// after the engine has answered once. TLS material for tcp hosts comes from
// DOCKER_CERT_PATH and DOCKER_TLS_VERIFY, as for the docker command. The
// caller closes the client.
func Dial(ctx context.Context, host string) (*Client, error) {
	if host == "" {
		host = HostFromEnvironment()
	}
	// WithHost comes last: the TLS settings of the environment stay, its host
	// and a pinned API version do not.
	api, err := client.New(client.WithTLSClientConfigFromEnv(), client.WithHost(host), client.WithUserAgent("linkrun"))
	if err != nil {
		return nil, fmt.Errorf("using engine %q: %w", host, err)
	}
	c := &Client{api: api, host: host}
	if _, err := api.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		api.Close()
		return nil, c.explain(ctx, err)
	}
	return c, nil
}

// Host is the address the client was dialed with.
func (c *Client) Host() string { return c.host }

// Close drops the client's connections.
func (c *Client) Close() error { return c.api.Close() }

// Engine asks for the engine's identity and version.
func (c *Client) Engine(ctx context.Context) (Engine, error) {
	res, err := c.api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return Engine{}, c.explain(ctx, fmt.Errorf("asking the engine who it is: %w", err))
	}
	e := Engine{ID: res.Info.ID, Version: res.Info.ServerVersion}
	if f := res.Info.FirewallBackend; f != nil {
		e.Firewall = f.Driver
	}
	return e, nil
}

// explain gives an API error the sentinels of this package. The client drops
// the cause of a failed connection from the chain, so the socket is tried
// once more to learn it.
func (c *Client) explain(ctx context.Context, err error) error {
	switch {
	case errdefs.IsNotFound(err):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case client.IsErrConnectionFailed(err):
		if path, ok := socketPath(c.host); ok {
			if cause := tryUnix(ctx, path); errors.Is(cause, fs.ErrPermission) {
				return fmt.Errorf("%w at %q: %w", ErrUnavailable, c.host, fs.ErrPermission)
			}
		}
		return fmt.Errorf("%w at %q: %w", ErrUnavailable, c.host, err)
	}
	return err
}

func socketPath(host string) (string, bool) {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "unix" {
		return "", false
	}
	return u.Path, true
}

func tryUnix(ctx context.Context, path string) error {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	return conn.Close()
}
