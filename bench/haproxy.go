package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
)

// haproxy carries connections between two network namespaces by splice, as
// ambassador does: the peer to measure against.
type haproxy struct {
	stage     *stage
	recipient container
	running   *daemon
}

func (*haproxy) about() string {
	return "`namespace` on both sides, `option splice-auto`, `nbthread 2`"
}

func (*haproxy) needs() []string { return []string{"haproxy"} }

func (h *haproxy) start(ctx context.Context, s *stage) (err error) {
	h.stage = s
	if h.recipient, err = s.startRecipient("haproxy"); err != nil {
		return err
	}
	h.running, err = h.launch(ctx, "haproxy", h.config(0))
	return err
}

func (h *haproxy) netns() string { return h.recipient.netns() }

// alias is the address of a service in the recipient.
func (*haproxy) address(svc service) netip.AddrPort { return netip.AddrPortFrom(alias, svc.port) }

// alias is the address that peers which choose it themselves listen at.
var alias = netip.AddrFrom4([4]byte{127, 77, 0, 2})

func (h *haproxy) carriers() ([]int, error) { return []int{h.running.pid()}, nil }

func (h *haproxy) renew(ctx context.Context) (err error) {
	h.running.stop()
	h.running, err = h.launch(ctx, "haproxy", h.config(0))
	return err
}

func (*haproxy) packets() bool { return false }

func (h *haproxy) link(ctx context.Context, n int) (int, func() error, error) {
	h.running.stop()
	more, err := h.launch(ctx, "haproxy", h.config(n))
	if err != nil {
		return 0, nil, err
	}
	h.running = more
	return n, func() error { return h.renew(ctx) }, nil
}

// config leads to every service, and by more links to the load.
func (h *haproxy) config(more int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `global
	nbthread 2
	maxconn %d
	maxpipes 400
	stats socket %s
defaults
	mode tcp
	option splice-auto
	timeout connect 5s
	timeout client 1h
	timeout server 1h
`, min(20_000, (h.stage.fileLimit-1_400-2*more)/2), h.stage.path("haproxy.sock"))
	link := func(name string, at netip.AddrPort, svc service) {
		fmt.Fprintf(&b, "listen %s\n\tbind %v namespace recipient\n\tserver source 127.0.0.1:%d namespace %s\n", name, at, svc.port, svc.name)
	}
	for _, svc := range h.stage.services {
		link(svc.name, h.address(svc), svc)
	}
	for i := range more {
		link(fmt.Sprintf("more%d", i), netip.AddrPortFrom(alias, uint16(20000+i)), h.stage.service(loadService))
	}
	return b.String()
}

// launch starts HAProxy where /run/netns, in which it looks for namespaces, is
// a folder of its own with those of the containers.
func (h *haproxy) launch(ctx context.Context, name, config string) (*daemon, error) {
	file, socket := h.stage.path(name+".cfg"), h.stage.path(name+".sock")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return nil, err
	}
	var script strings.Builder
	script.WriteString("set -e; mkdir -p /run/netns; mount -t tmpfs none /run/netns; ")
	names := map[string]container{"recipient": h.recipient}
	for _, svc := range h.stage.services {
		names[svc.name] = h.stage.sources[svc.name]
	}
	for name, c := range names {
		fmt.Fprintf(&script, "ln -s %s /run/netns/%s; ", c.netns(), name)
	}
	fmt.Fprintf(&script, "exec haproxy -f %s", file)
	os.Remove(socket)
	d, err := h.stage.start(name, h.stage.engine.Command(context.Background(), "unshare", "--mount", "sh", "-c", script.String()))
	if err != nil {
		return nil, err
	}
	return d, d.ready(ctx, func() error {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err
	})
}
