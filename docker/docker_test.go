package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/link"
)

var suite enginetest.Suite

func TestMain(m *testing.M) { suite.Main(m) }

func dial(t *testing.T) (*enginetest.Engine, *Client) {
	t.Helper()
	e := suite.Engine(t)
	c, err := Dial(t.Context(), e.Host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return e, c
}

func TestContainerOfARealEngine(t *testing.T) {
	e, c := dial(t)
	busybox := e.Image(t, "busybox")
	id := e.MustDocker(t, "run", "-d", "--name", "db", "--hostname", "host", "--label", "a=b", "-e", "K=V=W",
		"--expose", "53/udp", "--expose", "81", "--expose", "80/tcp", busybox, "sleep", "1000")
	t.Cleanup(func() { e.MustDocker(t, "rm", "-f", "db") })
	for _, ref := range []string{"db", "/db", id, id[:12]} {
		got, err := c.Container(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID != id || got.Name != "db" || got.Hostname != "host" || got.Labels["a"] != "b" ||
			!slices.Contains(got.Env, "K=V=W") || fmt.Sprint(got.Ports) != "[80/tcp 81/tcp 53/udp]" ||
			!got.Running || got.PID == 0 || got.SandboxKey == "" || got.StartedAt == "" || !got.IPv4().Is4() {
			t.Errorf("%q is %+v", ref, got)
		}
	}
	if _, joined := must(c.Container(t.Context(), "db"))(t).JoinedContainer(); joined {
		t.Error("a container of its own counts as joined")
	}
	e.MustDocker(t, "run", "-d", "--name", "guest", "--network", "container:db", busybox, "sleep", "1000")
	t.Cleanup(func() { e.MustDocker(t, "rm", "-f", "guest") })
	if ref, joined := must(c.Container(t.Context(), "guest"))(t).JoinedContainer(); !joined || ref != id {
		t.Errorf("joined %q, %v", ref, joined)
	}

	found, err := c.Running(t.Context(), func(labels map[string]string) bool { return labels["a"] == "b" })
	if err != nil || len(found) != 1 || found[0].ID != id {
		t.Errorf("running with the label: %v, %v", found, err)
	}
	if _, err := c.Container(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no container: %v", err)
	}
	if _, err := c.Image(t.Context(), "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no image: %v", err)
	}
	if img := must(c.Image(t.Context(), busybox))(t); !strings.HasPrefix(img.ID, "sha256:") || len(img.Cmd) == 0 {
		t.Errorf("image: %+v", img)
	}
	if who := must(c.Engine(t.Context()))(t); who.ID == "" || who.Major() < 20 {
		t.Errorf("engine: %+v", who)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestNameBeforePrefix has the engine take a name for the beginning of ids.
func TestNameBeforePrefix(t *testing.T) {
	e, c := dial(t)
	busybox := e.Image(t, "busybox")
	remove := func(ref string) { t.Cleanup(func() { e.MustDocker(t, "rm", "-f", ref) }) }
	// There are 256 beginnings; two of the first twenty ids mostly share one.
	ids := make(map[string]string)
	var shared string
	for shared == "" {
		id := e.MustDocker(t, "create", busybox, "true")
		remove(id)
		if prefix := id[:2]; ids[prefix] != "" {
			shared = prefix
		} else {
			ids[prefix] = id
		}
	}
	if _, err := c.Container(t.Context(), shared); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("two ids begin with %q, and asking for it gives %v", shared, err)
	}
	if _, err := c.Named(t.Context(), shared); !errors.Is(err, ErrNotFound) {
		t.Errorf("no container is called %q, and asking for it gives %v", shared, err)
	}
	id := e.MustDocker(t, "create", "--name", shared, busybox, "true")
	remove(id)
	if got := must(c.Named(t.Context(), shared))(t); got.ID != id {
		t.Errorf("%q is %+v", shared, got)
	}
	// A dot is none of a pattern's, and another name may hold this one.
	remove(e.MustDocker(t, "create", "--name", "my-db", busybox, "true"))
	remove(e.MustDocker(t, "create", "--name", "my.db2", busybox, "true"))
	if _, err := c.Named(t.Context(), "my.db"); !errors.Is(err, ErrNotFound) {
		t.Errorf("asking for my.db gives %v", err)
	}
}

func TestEventsHaveNoGap(t *testing.T) {
	e, c := dial(t)
	busybox := e.Image(t, "busybox")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	var got []string
	ended := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		ended <- c.Events(ctx, func() { close(started) }, func(ev Event) {
			mu.Lock()
			defer mu.Unlock()
			if ev.Type == "container" {
				got = append(got, ev.Action+" "+ev.Name)
			} else if ev.Container != "" && ev.Network != "" {
				got = append(got, ev.Action+" network "+ev.Name)
			}
		})
	}()
	<-started
	e.MustDocker(t, "run", "-d", "--name", "one", busybox, "sleep", "1000")
	e.MustDocker(t, "rename", "one", "two")
	e.MustDocker(t, "rm", "-f", "two")
	want := []string{"create one", "connect network bridge", "start one", "rename two", "die two", "disconnect network bridge", "destroy two"}
	enginetest.Poll(t, 10*time.Second, func() error {
		mu.Lock()
		defer mu.Unlock()
		rest := got
		for _, w := range want {
			i := slices.Index(rest, w)
			if i < 0 {
				return fmt.Errorf("no %q in %q", w, got)
			}
			rest = slices.Delete(slices.Clone(rest), i, i+1)
		}
		return nil
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestEngineNotThere(t *testing.T) {
	dir := t.TempDir()
	for name, host := range map[string]string{
		"no socket":    "unix://" + filepath.Join(dir, "none.sock"),
		"dead socket":  "unix://" + deadSocket(t, dir),
		"refused port": "tcp://127.0.0.1:1",
	} {
		_, err := Dial(t.Context(), host)
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), host) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Dial(t.Context(), "nonsense"); err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("a host that is none: %v", err)
	}
}

func deadSocket(t *testing.T, dir string) string {
	path := filepath.Join(dir, "dead.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	return path
}

func TestMajor(t *testing.T) {
	for version, want := range map[string]int{"20.10.24+dfsg1": 20, "28.5.2": 28, "29.0.0-rc.1": 29, "": 0, "dev": 0} {
		if got := (Engine{Version: version}).Major(); got != want {
			t.Errorf("major of %q is %d, want %d", version, got, want)
		}
	}
}

func TestAddressIsStable(t *testing.T) {
	settings := &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
		"zeta":   {IPAddress: addr("10.3.0.1")},
		"bridge": {IPAddress: addr("172.17.0.2")},
		"alpha":  {IPAddress: addr("10.1.0.1")},
		"broken": nil,
	}}
	if got := fromInspect(container.InspectResponse{NetworkSettings: settings}).IPv4(); got != addr("172.17.0.2") {
		t.Errorf("with the default bridge: %v", got)
	}
	delete(settings.Networks, "bridge")
	if got := fromInspect(container.InspectResponse{NetworkSettings: settings}).IPv4(); got != addr("10.1.0.1") {
		t.Errorf("without it: %v", got)
	}
	if got := fromInspect(container.InspectResponse{}); got.IPv4().IsValid() || !slices.Equal(got.Ports, []link.Port(nil)) {
		t.Errorf("an empty answer gives %+v", got)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
