package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// service is a server in a container of its own, the source. Every peer leads
// to the same ones.
type service struct {
	name  string
	port  uint16
	image string   // of images/build.sh
	flags []string // of docker run
	args  []string // after the image
}

// The names of the services.
const (
	loadService  = "load" // the bench's own server
	idleService  = "idle" // another one of these
	iperfService = "iperf3"
	dbService    = "postgres"
	cacheService = "redis"
	webService   = "nginx"
)

// stage is where everything takes place: a private engine, the sources in it,
// and the programs.
type stage struct {
	tb         testing.TB
	engine     *enginetest.Engine
	dir        string // for files; goes with the stage
	fileLimit  int    // of descriptors in one process
	load       string // the program of bench/load
	ambassador string
	services   []service
	sources    map[string]container
	daemons    []*daemon // all that were started
}

// container is a running container.
type container struct {
	name string
	pid  int
	addr netip.Addr // on the default bridge
}

func (c container) netns() string { return fmt.Sprintf("/proc/%d/ns/net", c.pid) }

// newStage starts an engine and the sources. They end with the test, or what
// stands in for it.
func newStage(ctx context.Context, tb testing.TB, ambassador string) (*stage, error) {
	// Daemons are not in everyone's.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	limit, err := raiseFileLimit()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "linkrun-bench-")
	if err != nil {
		return nil, err
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	s := &stage{tb: tb, dir: dir, fileLimit: limit, ambassador: ambassador, sources: make(map[string]container)}
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.path("nginx.conf"), []byte(nginxConfig), 0o644); err != nil {
		return nil, err
	}
	s.services = s.plan()
	s.engine = enginetest.Start(tb, enginetest.Options{})
	for _, svc := range s.services {
		if s.sources[svc.name], err = s.startSource(svc.name, svc); err != nil {
			return nil, err
		}
	}
	return s, s.fillDatabase(ctx)
}

// raiseFileLimit lets what the stage starts, which inherits it, have as many
// descriptors as possible.
func raiseFileLimit() (int, error) {
	// By this call and not that of package unix: Go would put the limit back
	// for whatever it starts.
	most := syscall.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &most) == nil {
		return int(most.Cur), nil
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raising the limit of open files to %d: %w", limit.Max, err)
	}
	return int(limit.Cur), nil
}

// plan is what the sources serve.
func (s *stage) plan() []service {
	load := []string{
		"-v", s.load + ":/load:ro",
		"--ulimit", fmt.Sprintf("nofile=%d:%[1]d", s.fileLimit),
		"--cap-add", "NET_ADMIN", // for long queues, see traffic.Listen
	}
	return []service{
		{loadService, 7000, "busybox", append(publish(7000, "tcp", "udp"), load...), []string{"/load", "serve", "0.0.0.0:7000"}},
		{idleService, 7001, "busybox", append([]string{"--expose", "7001"}, load...), []string{"/load", "serve", "0.0.0.0:7001"}},
		{iperfService, 5201, "iperf3", publish(5201, "tcp"), nil},
		{dbService, 5432, "postgres", append(publish(5432, "tcp"), "-e", "POSTGRES_PASSWORD="+password, "--shm-size=256m"), nil},
		{cacheService, 6379, "redis", publish(6379, "tcp"), nil},
		{webService, 80, "nginx", append(publish(80, "tcp"), "-v", s.path("nginx.conf")+":/etc/nginx/nginx.conf:ro"), nil},
	}
}

// service finds a service by its name.
func (s *stage) service(name string) service {
	i := slices.IndexFunc(s.services, func(svc service) bool { return svc.name == name })
	return s.services[i]
}

const password = "secret"

// nginxConfig differs from that of the image in that nothing is logged: that
// would measure the engine's log.
const nginxConfig = `
daemon off;
worker_processes 1;
error_log /dev/stderr;
events { worker_connections 4096; }
http {
	access_log off;
	keepalive_requests 1000000;
	server { listen 80; root /srv; }
}
`

// build makes the programs from the checkout.
func (s *stage) build(ctx context.Context) error {
	s.load = s.path("load")
	targets := map[string]string{s.load: "./bench/load"}
	if s.ambassador == "" {
		s.ambassador = s.path("ambassador")
		targets[s.ambassador] = "./cmd/ambassador"
	}
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("looking for the module: %w", err)
	}
	for out, pkg := range targets {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, pkg)
		cmd.Dir = strings.TrimSpace(string(root))
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", pkg, err, text)
		}
	}
	return nil
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// startSource starts a container that serves.
func (s *stage) startSource(name string, svc service, flags ...string) (container, error) {
	args := append([]string{"run", "-d", "--name", name, "--stop-timeout=1"}, svc.flags...)
	args = append(append(args, flags...), s.engine.Image(s.tb, svc.image))
	if _, err := s.engine.Docker(append(args, svc.args...)...); err != nil {
		return container{}, err
	}
	return s.inspect(name)
}

// publish are the flags that publish a port on loopback, which is how
// docker-proxy leads to it.
func publish(port uint16, protos ...string) (flags []string) {
	for _, proto := range protos {
		flags = append(flags, "-p", fmt.Sprintf("127.0.0.1:%d:%[1]d/%s", port, proto))
	}
	return flags
}

// startRecipient starts a container that does nothing: clients are run in its
// network namespace.
func (s *stage) startRecipient(name string, flags ...string) (container, error) {
	args := append([]string{"run", "-d", "--name", name, "--stop-timeout=1"}, flags...)
	args = append(args, s.engine.Image(s.tb, "busybox"), "sleep", "100000")
	if _, err := s.engine.Docker(args...); err != nil {
		return container{}, err
	}
	return s.inspect(name)
}

func (s *stage) remove(names ...string) error {
	_, err := s.engine.Docker(append([]string{"rm", "-f", "-v"}, names...)...)
	return err
}

func (s *stage) inspect(name string) (container, error) {
	out, err := s.engine.Docker("inspect", "-f", "{{.State.Pid}} {{.NetworkSettings.IPAddress}}", name)
	if err != nil {
		return container{}, err
	}
	pid, addr, _ := strings.Cut(out, " ")
	c := container{name: name}
	if c.pid, err = strconv.Atoi(pid); err != nil || c.pid == 0 {
		return c, fmt.Errorf("container %q does not run", name)
	}
	c.addr, _ = netip.ParseAddr(addr)
	return c, nil
}

// fillDatabase makes the tables that pgbench reads from.
func (s *stage) fillDatabase(ctx context.Context) error {
	if err := poll(ctx, time.Minute, func() error {
		_, err := s.engine.Docker("exec", dbService, "pg_isready", "-q", "-h", "127.0.0.1")
		return err
	}); err != nil {
		return fmt.Errorf("waiting for the database: %w", err)
	}
	_, err := s.engine.Docker("exec", dbService, "pgbench", "-h", "127.0.0.1", "-i", "-q", "-s", "5", "postgres")
	return err
}

// place is where a program runs: in a network namespace, and, for programs of
// an image, with the files of a container.
type place struct {
	netns string
	files *container
}

// command is a program at a place.
func (p place) command(ctx context.Context, args ...string) *exec.Cmd {
	enter := []string{"--net=" + p.netns}
	if p.files != nil {
		enter = append(enter, fmt.Sprintf("--mount=/proc/%d/ns/mnt", p.files.pid))
	}
	return exec.CommandContext(ctx, "nsenter", append(append(enter, "--"), args...)...)
}

// output runs a program at a place and returns what it printed.
func (p place) output(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := p.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("running %s: %w: %s", args[0], err, bytes.TrimSpace(append(stdout.Bytes(), stderr.Bytes()...)))
	}
	return stdout.Bytes(), nil
}

// poll asks until cond returns nil, or returns what it returned last if that
// takes too long.
func poll(ctx context.Context, within time.Duration, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
