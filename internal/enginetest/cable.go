package enginetest

import (
	"net/netip"
	"testing"
)

// Connect lays a cable between two engines' hosts, until the test is over,
// and gives its ends, "cable0" on both, these addresses. Call it before
// LeavesNothing.
func Connect(t testing.TB, a *Engine, addrA netip.Prefix, b *Engine, addrB netip.Prefix) {
	t.Helper()
	const name = "cable0"
	must := func(args ...string) {
		t.Helper()
		if err := run("ip", args...); err != nil {
			t.Fatal(err)
		}
	}
	must("link", "add", name, "netns", a.name, "type", "veth", "peer", "name", name, "netns", b.name)
	t.Cleanup(func() { must("-n", a.name, "link", "delete", name) })
	for _, end := range []struct {
		of   *Engine
		addr netip.Prefix
	}{{a, addrA}, {b, addrB}} {
		must("-n", end.of.name, "addr", "add", end.addr.String(), "dev", name)
		must("-n", end.of.name, "link", "set", name, "up")
	}
}
