package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/netns"
)

// newBareHost is a host without an agent.
func newBareHost(t *testing.T, e *enginetest.Engine) *host {
	t.Helper()
	h := &host{Engine: e, bin: suite.Binaries(t)}
	h.busybox = e.Image(t, "busybox")
	return h
}

// image builds the Dockerfile.
func (h *host) image(t *testing.T) (id string) {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(
		os.CopyFS(filepath.Join(dir, "bin"), os.DirFS(h.bin.Dir)),
		os.Mkdir(filepath.Join(dir, "bin", "link"), 0o755), // as `make image` does
	); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Dockerfile", ".dockerignore"} {
		b, err := os.ReadFile(filepath.Join("..", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return h.docker(t, "build", "--quiet", dir)
}

// hardened is how a sidecar may be run at most.
var hardened = []string{"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}

// sidecar runs an end of a link in the network of a container, and returns
// once it says that it is ready.
func (h *host) sidecar(t *testing.T, image, name, container string, flags []string, args ...string) {
	t.Helper()
	run := append([]string{"--network", "container:" + container}, hardened...)
	h.source(t, name, append(append(append(run, flags...), image), args...)...)
	h.says(t, name, "msg=ready")
}

// says waits until a container has said something.
func (h *host) says(t *testing.T, container, words string) {
	t.Helper()
	enginetest.Poll(t, soon, func() error {
		if said := h.logs(t, container); !strings.Contains(said, words) {
			return fmt.Errorf("%s does not say %q:\n%s", container, words, said)
		}
		return nil
	})
}

// volume makes a volume that goes with the test.
func (h *host) volume(t *testing.T, name string) {
	t.Helper()
	h.docker(t, "volume", "create", name)
	t.Cleanup(func() { h.docker(t, "volume", "rm", name) })
}

// pid is the process of a container, as the host sees it.
func (h *host) pid(t *testing.T, container string) int {
	t.Helper()
	pid, err := strconv.Atoi(h.docker(t, "inspect", "-f", "{{.State.Pid}}", container))
	if err != nil || pid == 0 {
		t.Fatalf("%s has no process: %v", container, err)
	}
	return pid
}

// within runs fn in the network of a container. Sockets that it makes stay
// there.
func (h *host) within(t *testing.T, container string, fn func() error) {
	t.Helper()
	ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", h.pid(t, container)))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// serveIn answers connections to a port in the network of a container.
func (h *host) serveIn(t *testing.T, container string, port int, handle func(*net.TCPConn)) {
	t.Helper()
	var ln net.Listener
	h.within(t, container, func() (err error) {
		ln, err = net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	})
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(time.Minute))
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
}

// dialIn connects in the network of a container.
func (h *host) dialIn(t *testing.T, container, address string) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	h.within(t, container, func() (err error) {
		d := net.Dialer{Timeout: soon}
		conn, err = d.DialContext(context.Background(), "tcp4", address)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.TCPConn)
}

// harmless fails the test if a container could do anything to its host.
func (h *host) harmless(t *testing.T, container string) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.pid(t, container)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "NoNewPrivs:\t1",
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
	} {
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("%s is not %q:\n%s", container, want, b)
		}
	}
	if got := h.docker(t, "inspect", "-f", "{{.HostConfig.ReadonlyRootfs}}", container); got != "true" {
		t.Errorf("the root of %s is not read-only", container)
	}
}

// copied is how many bytes a container's process has read and written;
// what is spliced does not count.
func (h *host) copied(t *testing.T, container string) (n int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", h.pid(t, container)))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var bytes int
		if _, err := fmt.Sscanf(line, "rchar: %d", &bytes); err == nil {
			n += bytes
		}
		if _, err := fmt.Sscanf(line, "wchar: %d", &bytes); err == nil {
			n += bytes
		}
	}
	return n
}

// TestSidecars links two containers without an agent, through a file in a
// volume. The recipient runs PostgreSQL's client.
func TestSidecars(t *testing.T) {
	e := suite.Engine(t)
	e.LeavesNothing(t)
	h := newBareHost(t, e)
	image, postgres := h.image(t), e.Image(t, "postgres")
	t.Cleanup(func() { h.docker(t, "rmi", image) })
	h.volume(t, "link")
	h.source(t, "db", "-e", "POSTGRES_PASSWORD=secret", postgres)
	h.eventually(t, "1 row", "exec", "db", "psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1")
	h.source(t, "web", "--add-host", "webdb:127.77.0.2", "-e", "PGPASSWORD=secret", postgres, "sleep", "1d")
	shared := []string{"-v", "link:/run/link"}
	h.sidecar(t, image, "db-end", "db", shared, "source", "--listen", "unix:/run/link/db.sock", "--to", "127.0.0.1:5432")
	h.sidecar(t, image, "web-end", "web", shared, "recipient", "--connect", "unix:/run/link/db.sock", "--listen", "127.77.0.2:5432")
	h.harmless(t, "db-end")
	h.harmless(t, "web-end")

	psql := []string{"exec", "web", "psql", "-h", "webdb", "-U", "postgres", "-Atc"}
	// 127.0.0.1 would be let in without a password.
	if got := h.docker(t, append(psql, "select inet_client_addr()")...); got != "127.77.0.1" {
		t.Errorf("the source sees %q", got)
	}
	if out, err := h.Docker("exec", "-e", "PGPASSWORD=", "web", "psql", "-w", "-h", "webdb", "-U", "postgres", "-c", "select 1"); err == nil {
		t.Errorf("nobody is asked for the password:\n%s", out)
	}
	h.docker(t, "exec", "web", "pgbench", "-h", "webdb", "-U", "postgres", "-i", "-q", "postgres")
	out := h.docker(t, "exec", "web", "pgbench", "-h", "webdb", "-U", "postgres", "-c", "8", "-j", "2", "-t", "100", "postgres")
	if !strings.Contains(out, "number of transactions actually processed: 800/800") {
		t.Errorf("pgbench printed:\n%s", out)
	}
	// It is the link that lets them through, and nothing else.
	if out, err := h.Docker("exec", "-e", "PGCONNECT_TIMEOUT=1", "web", "psql", "-h", h.address(t, "db"), "-U", "postgres", "-c", "select 1"); err == nil {
		t.Errorf("the source is reached without the link:\n%s", out)
	}

	// The source's end goes and comes back; a session of the client's stays.
	conn := h.dialIn(t, "web", "127.77.0.2:5432")
	h.docker(t, "stop", "db-end")
	h.within(t, "web", func() error {
		enginetest.Poll(t, soon, func() error {
			c, err := net.Dial("tcp4", "127.77.0.2:5432")
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("connecting while the source's end is away gives %v", err)
			}
			return nil
		})
		return nil
	})
	conn.Write([]byte{0, 0, 0, 8, 4, 210, 22, 47}) // asks whether TLS is wanted
	if answer := make([]byte, 1); true {
		if _, err := io.ReadFull(conn, answer); err != nil || answer[0] != 'N' {
			t.Errorf("the connection of before reads %q, %v", answer, err)
		}
	}
	conn.Close()
	h.docker(t, "start", "db-end")
	h.eventually(t, "1", append(psql, "select 1")...)

	// Both stop at once, and well, when they are told to.
	for _, name := range []string{"web-end", "db-end"} {
		h.docker(t, "stop", name)
		if code := h.docker(t, "inspect", "-f", "{{.State.ExitCode}}", name); code != "0" {
			t.Errorf("%s ended with %s:\n%s", name, code, h.logs(t, name))
		}
	}
}

// TestSidecarsSplice looks at what goes through two sidecars, byte by byte.
func TestSidecarsSplice(t *testing.T) {
	e := suite.Engine(t)
	e.LeavesNothing(t)
	h := newBareHost(t, e)
	image := h.image(t)
	t.Cleanup(func() { h.docker(t, "rmi", image) })
	h.volume(t, "link")
	h.source(t, "db", h.busybox, "sleep", "1d")
	h.source(t, "web", h.busybox, "sleep", "1d")
	shared := []string{"-v", "link:/run/link"}
	h.sidecar(t, image, "db-end", "db", shared, "source", "--listen", "unix:/run/link/db.sock", "--to", "127.0.0.1:7000,127.0.0.1:7001")
	h.sidecar(t, image, "web-end", "web", shared, "recipient", "--connect", "unix:/run/link/db.sock", "--listen", "127.77.0.2:7000,127.77.0.2:17001=7001")

	const size = 64 << 20
	h.serveIn(t, "db", 7000, func(conn *net.TCPConn) {
		n, err := io.Copy(io.Discard, conn) // ends with the half-close
		fmt.Fprintf(conn, "%d %v", n, err)
	})
	before := map[string]int{"db-end": h.copied(t, "db-end"), "web-end": h.copied(t, "web-end")}
	conn := h.dialIn(t, "web", "127.77.0.2:7000")
	if _, err := io.Copy(conn, io.LimitReader(zeros{}, size)); err != nil {
		t.Fatal(err)
	}
	conn.CloseWrite()
	if got, err := io.ReadAll(conn); string(got) != fmt.Sprint(size, " <nil>") || err != nil {
		t.Errorf("the source has read %q, %v", got, err)
	}
	for name, n := range before {
		if more := h.copied(t, name) - n; more > size/100 {
			t.Errorf("%s has copied %d bytes of %d", name, more, size)
		} else {
			t.Logf("%s has copied %d bytes of %d", name, more, size)
		}
	}

	// A reset passes, both ways.
	ended := make(chan error, 1)
	h.serveIn(t, "db", 7001, func(conn *net.TCPConn) {
		what := make([]byte, 1)
		io.ReadFull(conn, what)
		if bytes.Equal(what, []byte("r")) {
			conn.SetLinger(0)
			return
		}
		conn.Write(what)
		_, err := conn.Read(what)
		ended <- err
	})
	conn = h.dialIn(t, "web", "127.77.0.2:17001")
	conn.Write([]byte("r"))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the recipient reads %v; want a reset", err)
	}
	conn = h.dialIn(t, "web", "127.77.0.2:17001")
	conn.Write([]byte("w"))
	io.ReadFull(conn, make([]byte, 1))
	conn.SetLinger(0)
	conn.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the source reads %v; want a reset", err)
		}
	case <-time.After(soon):
		t.Error("the source sees no reset")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestSidecarsOverTLS has them in two containers of a network that lets them
// reach each other, where nobody else gets anything from the source's end.
func TestSidecarsOverTLS(t *testing.T) {
	e := suite.Engine(t)
	e.LeavesNothing(t)
	h := newBareHost(t, e)
	image, redis := h.image(t), e.Image(t, "redis")
	t.Cleanup(func() { h.docker(t, "rmi", image) })
	h.docker(t, "network", "create", "open")
	t.Cleanup(func() { h.docker(t, "network", "rm", "open") })

	identities := t.TempDir()
	authority, err := identity.InitAuthority(filepath.Join(identities, "authority"), "test.example")
	if err != nil {
		t.Fatal(err)
	}
	mounted := func(name string) []string {
		dir := filepath.Join(identities, name)
		credential, err := authority.First(name)
		if err == nil {
			err = identity.Save(dir, credential)
		}
		if err == nil { // nobody's, as the sidecar is
			err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error { return os.Chown(path, 65534, 65534) })
		}
		if err != nil {
			t.Fatal(err)
		}
		return []string{"-v", dir + ":/identity:ro"}
	}
	if err := os.Chmod(identities, 0o755); err != nil {
		t.Fatal(err)
	}

	h.source(t, "db", "--network", "open", redis)
	h.source(t, "web", "--network", "open", redis, "sleep", "1d")
	h.sidecar(t, image, "db-end", "db", mounted("hostb"),
		"source", "--listen", "tls::7443", "--to", "127.0.0.1:6379", "--allow", "hosta,web-*", "--identity", "/identity")
	connect := func(host string) []string {
		return []string{"recipient", "--connect", "tls:db:7443", "--expect", host, "--listen", "127.77.0.2:6379", "--identity", "/identity"}
	}
	h.sidecar(t, image, "web-end", "web", mounted("hosta"), connect("hostb")...)
	h.harmless(t, "db-end")
	h.harmless(t, "web-end")
	if got := h.docker(t, "exec", "web", "redis-cli", "-h", "127.77.0.2", "ping"); got != "PONG" {
		t.Errorf("redis-cli printed %q", got)
	}
	h.docker(t, "exec", "web", "redis-benchmark", "-h", "127.77.0.2", "-n", "2000", "-c", "50", "-q", "-t", "set,get")

	// Whoever is somebody else is refused, and both say so.
	for name, c := range map[string]struct{ host, expect, sourceSays, recipientSays string }{
		"stranger": {"hostc", "hostb", `msg="refused a host"`, `msg="peer cannot be reached`},
		"mistaken": {"web-2", "hostd", "from=", `it is spiffe://test.example/host/hostb, not host \"hostd\"`},
	} {
		h.source(t, name, "--network", "open", h.busybox, "sleep", "1d")
		args := append([]string{"--network", "container:" + name}, hardened...)
		args = append(append(args, mounted(c.host)...), image)
		h.source(t, name+"-end", append(args, connect(c.expect)...)...)
		h.says(t, name+"-end", c.recipientSays)
		h.says(t, "db-end", c.sourceSays)
		if _, err := h.ask(name, "127.77.0.2", 6379); err == nil {
			t.Errorf("%s is connected", name)
		}
	}
	if got := h.docker(t, "exec", "web", "redis-cli", "-h", "127.77.0.2", "ping"); got != "PONG" {
		t.Errorf("redis-cli printed %q", got)
	}
}

// TestClassicAmbassador runs the image as people run the ambassador container:
// one beside the source, its port published, and one beside the recipient, on
// another host by rights, which leads there.
func TestClassicAmbassador(t *testing.T) {
	e := enginetest.Start(t, enginetest.Options{ICC: true})
	h := newBareHost(t, e)
	image, redis := h.image(t), e.Image(t, "redis")
	h.source(t, "redis", redis)
	h.source(t, "redis_ambassador", append(slices.Clone(hardened), "--link", "redis:redis", "-p", "6379:6379", image)...)
	h.says(t, "redis_ambassador", "msg=ready")
	h.harmless(t, "redis_ambassador")
	if said := h.logs(t, "redis_ambassador"); strings.Count(said, "msg=forwarding") != 1 {
		t.Errorf("one port was to be forwarded, once:\n%s", said)
	}
	gateway := h.docker(t, "inspect", "-f", "{{.NetworkSettings.Gateway}}", "redis_ambassador")
	h.source(t, "far_ambassador", append(slices.Clone(hardened), "--expose", "6379", "-e", "REDIS_PORT_6379_TCP=tcp://"+gateway+":6379", image)...)
	h.says(t, "far_ambassador", "msg=ready")
	client := []string{"run", "--rm", "--link", "far_ambassador:redis", redis, "redis-cli", "-h", "redis"}
	if got := h.docker(t, append(client, "ping")...); got != "PONG" {
		t.Errorf("redis-cli printed %q", got)
	}
	value := strings.Repeat("x", 100000)
	h.docker(t, append(client, "set", "key", value)...)
	if got := h.docker(t, append(client, "get", "key")...); got != value {
		t.Errorf("%d bytes came back of %d", len(got), len(value))
	}

	// Names, and a port below 1024, over UDP and TCP.
	h.source(t, "dns", e.Image(t, "dns"))
	h.source(t, "dns_ambassador", append(slices.Clone(hardened), "--link", "dns", "--expose", "53", "--expose", "53/udp", image)...)
	h.says(t, "dns_ambassador", "msg=ready")
	for _, how := range []string{"+notcp", "+tcp"} {
		h.eventually(t, "192.0.2.1", "run", "--rm", "--link", "dns_ambassador:resolver", e.Image(t, "dns"),
			"kdig", how, "+short", "+retry=0", "+time=1", "@resolver", "a.test")
	}

	h.docker(t, "stop", "redis_ambassador")
	if code := h.docker(t, "inspect", "-f", "{{.State.ExitCode}}", "redis_ambassador"); code != "0" {
		t.Errorf("it ended with %s:\n%s", code, h.logs(t, "redis_ambassador"))
	}

	// Where the kernel keeps the low ports from nobody, it says what helps.
	h.source(t, "low", "--link", "dns", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1024", image)
	h.says(t, "low", "permission denied")
	h.says(t, "low", "hint: ports below 1024 take root")
}
