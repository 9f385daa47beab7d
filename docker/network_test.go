package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/linkrun/linkrun/link"
)

func TestNetworksOfARealEngine(t *testing.T) {
	e, c := dial(t)
	e.MustDocker(t, "network", "create", "--internal", "--label", "ambassador.icc=allow", "--subnet", "10.123.0.0/24",
		"-o", "com.docker.network.bridge.enable_icc=false", "closed")
	t.Cleanup(func() { e.MustDocker(t, "network", "rm", "closed") })
	e.MustDocker(t, "network", "create", "-o", "com.docker.network.bridge.name=named0", "open")
	t.Cleanup(func() { e.MustDocker(t, "network", "rm", "open") })

	found := map[string]NetworkInfo{}
	for _, n := range must(c.Networks(t.Context()))(t) {
		found[n.Name] = n
	}
	if n := found["bridge"]; n.Device != "docker0" || !n.Default || n.ICC || len(n.Subnets) != 1 || n.Internal {
		t.Errorf("the default bridge is %+v", n) // the tests' engine has icc=false
	}
	closed := found["closed"]
	if closed.ICC || closed.Default || !closed.Internal || closed.Labels["ambassador.icc"] != "allow" ||
		closed.Device != "br-"+closed.ID[:12] || fmt.Sprint(closed.Subnets) != "[10.123.0.0/24]" {
		t.Errorf("closed is %+v", closed)
	}
	if n := found["open"]; !n.ICC || n.Device != "named0" {
		t.Errorf("open is %+v", n)
	}
	for _, name := range []string{"host", "none"} {
		if n := found[name]; n.Device != "" || n.Driver == "" {
			t.Errorf("%s is %+v", name, n)
		}
	}
}

func TestOptionsOfNetworks(t *testing.T) {
	n := fromNetwork(network.Network{Name: "x", Driver: "bridge", ID: strings.Repeat("ab", 32), ConfigOnly: true})
	if n.Device != "" {
		t.Errorf("a network that is only configuration has device %q", n.Device)
	}
	for value, want := range map[string]bool{"": true, "true": true, "0": false, "False": false, "maybe": true} {
		n := fromNetwork(network.Network{Driver: "bridge", Options: map[string]string{optionICC: value}})
		if n.ICC != want {
			t.Errorf("enable_icc=%q is %t", value, n.ICC)
		}
	}
}

func TestPosturesOfARealEngine(t *testing.T) {
	e, c := dial(t)
	busybox := e.Image(t, "busybox")
	run := func(name string, args ...string) {
		t.Helper()
		e.MustDocker(t, slices.Concat([]string{"run", "-d", "--name", name}, args, []string{busybox, "sleep", "1000"})...)
		t.Cleanup(func() { e.MustDocker(t, "rm", "-f", name) })
	}
	socket := strings.TrimPrefix(e.Host(), "unix://")
	run("plain", "--expose", "80")
	run("bad", "-v", socket+":/var/run/docker.sock", "-p", "127.0.0.1:8081:80", "-p", "8080:53/udp", "--link", "plain:other")
	run("bare", "--cap-drop", "ALL", "--network", "host")

	found := map[string]Posture{}
	for _, p := range must(c.Postures(t.Context()))(t) {
		found[p.Name] = p
	}
	if p := found["plain"]; p.Privileged || !p.NetRaw || p.HostNetwork || len(p.Mounts)+len(p.Published)+len(p.Links) != 0 ||
		len(p.Networks) != 1 || len(p.Networks[0].MAC) != 6 || p.Networks[0].ID == "" {
		t.Errorf("plain is %+v", p)
	}
	p := found["bad"]
	if p.Privileged || !slices.Equal(p.Mounts, []string{socket}) || !slices.Equal(p.Links, []LegacyLink{{"plain", "other"}}) {
		t.Errorf("bad is %+v", p)
	}
	want := Published{netip.MustParseAddr("127.0.0.1"), 8081, link.Port{Number: 80, Proto: link.TCP}}
	if len(p.Published) < 2 || p.Published[0] != want || !p.Published[1].On.IsUnspecified() || p.Published[1].Port.Proto != link.UDP {
		t.Errorf("bad publishes %+v", p.Published)
	}
	if p := found["bare"]; p.NetRaw || !p.HostNetwork {
		t.Errorf("bare is %+v", p)
	}
}

// Not on the live engine: there it depends on the machine's own capabilities.
func TestPrivilegedPosture(t *testing.T) {
	in := container.InspectResponse{HostConfig: &container.HostConfig{Privileged: true, CapDrop: []string{"ALL"}}}
	if p := postureOf(in); !p.Privileged || !p.NetRaw {
		t.Errorf("privileged is %+v", p)
	}
}

func TestCapabilities(t *testing.T) {
	for _, test := range []struct {
		add, drop string
		want      bool
	}{
		{"", "", true},
		{"", "NET_RAW", false},
		{"", "cap_net_raw", false},
		{"", "ALL", false},
		{"NET_RAW", "ALL", true},
		{"ALL", "CAP_NET_RAW", false},
		{"ALL", "", true},
		{"NET_ADMIN", "MKNOD", true},
	} {
		if got := mayDo("NET_RAW", strings.Fields(test.add), strings.Fields(test.drop)); got != test.want {
			t.Errorf("added %q, dropped %q: %t", test.add, test.drop, got)
		}
	}
}
