package control

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

type fixed struct {
	status Status
	links  []Link
}

func (f fixed) Status() Status { return f.status }
func (f fixed) Links() []Link  { return f.links }

// serve runs a server on dir until the test ends and returns its stop.
func serve(t *testing.T, dir string, h Handler) (stop func()) {
	t.Helper()
	s, err := Listen(dir, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve ended with %v", err)
		}
	}
}

func TestAnswersArriveWhole(t *testing.T) {
	want := fixed{
		status: Status{Version: "v1", PID: 7, Engine: "unix:///x", EngineID: "A:B", Since: time.Unix(1, 0).UTC()},
		links: []Link{{Recipient: "web", Alias: "a b", Source: "db", Address: "127.77.0.2", Ports: []string{"1/tcp"},
			State: StateDown, Reason: "gone", Open: 1, Total: 2, ToSource: 3, ToRecipient: 4, Failures: map[string]int64{"refused": 5}}},
	}
	dir := filepath.Join(t.TempDir(), "made", "on the way")
	stop := serve(t, dir, want)
	defer stop()
	c := Dial(dir)
	status, err := c.Status(t.Context())
	if err != nil || !reflect.DeepEqual(status, want.status) {
		t.Errorf("Status = %+v, %v", status, err)
	}
	links, err := c.Links(t.Context())
	if err != nil || !reflect.DeepEqual(links, want.links) {
		t.Errorf("Links = %+v, %v", links, err)
	}
	var refused *RefusedError
	if err := c.do(t.Context(), "GET", "/nothing", nil, nil); !errors.As(err, &refused) || refused.Status != 404 {
		t.Errorf("an unknown path gave %v", err)
	}
}

func TestTheLockDecidesWhoServes(t *testing.T) {
	dir := t.TempDir()
	stop := serve(t, dir, fixed{})
	if _, err := Listen(dir, fixed{}, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Listen gave %v, want ErrLocked", err)
	}
	if _, err := Dial(dir).Status(t.Context()); err != nil {
		t.Errorf("the first one no longer answers: %v", err)
	}
	stop()
	if _, err := os.Stat(SocketPath(dir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is still there: %v", err)
	}
	if _, err := Dial(dir).Status(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("after the stop: %v, want ErrNoAgent", err)
	}
}

func TestSocketOfAKilledAgentIsReplaced(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if _, err := Dial(dir).Status(t.Context()); !errors.Is(err, ErrNoAgent) {
		t.Errorf("a dead socket gave %v, want ErrNoAgent", err)
	}
	stop := serve(t, dir, fixed{})
	defer stop()
	if _, err := Dial(dir).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOnlyRootAndTheDockerGroupMayAsk(t *testing.T) {
	dir := t.TempDir()
	defer serve(t, dir, fixed{})()
	info, err := os.Stat(SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	want := fs.FileMode(0o600)
	if _, ok := dockerGroup(); ok {
		want = 0o660
	}
	if info.Mode().Perm() != want {
		t.Errorf("the socket's mode is %v, want %v", info.Mode().Perm(), want)
	}
}

func TestStateOutlivesTheBoot(t *testing.T) {
	for dir, want := range map[string]string{
		"/run/ambassador":  "/var/lib/ambassador",
		"/run/a/b/":        "/var/lib/a/b",
		"/var/lib/x":       "/var/lib/x",
		"/running/x":       "/running/x",
		"relative/run/dir": "relative/run/dir",
	} {
		if got := StateDir(dir); got != want {
			t.Errorf("the state of %q is in %q, want %q", dir, got, want)
		}
	}
}
