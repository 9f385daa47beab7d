package peering

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/internal/growth"
	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/internal/sockopt"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/tunnel"
)

// The tests of what befalls a host take processes that can be killed, each in
// a network namespace of its own: this program again, with its part in the
// environment.
const partVar = "LINKRUN_TEST_HOST"

func TestMain(m *testing.M) {
	if part := os.Getenv(partVar); part != "" {
		if err := playHost(part); err != nil {
			fmt.Fprintln(os.Stderr, "ERROR", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// part is what a process is told to be: a host that has one recipient's link
// to one source of the other host, and one source.
type part struct {
	Files  identity.Files
	Listen string // for the other host
	Peer   string // the other host; "" is none to call
	At     string // where it is
	Hold   time.Duration
	Link   string // the recipient's address of the link
	Source string // address of the source
}

// report is what a process says of itself.
type report struct {
	growth.Sample
	Hosts []Host
	Err   string
}

// up tells whether there is a session, and if not, why.
func (r report) up() (bool, string) {
	for _, h := range r.Hosts {
		return h.Up, h.Reason
	}
	return false, "no other host"
}

func (r report) streams() int {
	n := 0
	for _, h := range r.Hosts {
		n += h.Streams
	}
	return n
}

// playHost is main of such a process. It ends with its standard input.
func playHost(text string) error {
	var p part
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	store, err := identity.Open(p.Files)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	outside, err := tunnel.Listen(ctx, p.Listen)
	if err != nil {
		return err
	}
	links := net.ListenConfig{Control: resetIfKilled} // as the relay has it
	links.SetMultipathTCP(false)
	link, err := links.Listen(ctx, "tcp", p.Link)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	carrier := &carrier{part: p}
	carrier.hosts = &Hosts{
		Store:  store,
		Known:  map[string]string{p.Peer: p.At},
		Hold:   p.Hold,
		Handle: carrier.answer,
		Log:    log,
	}
	if p.Peer != "" {
		defer carrier.hosts.Want(p.Peer)()
	}
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() {
		if err := carrier.hosts.Run(ctx, outside); err != nil {
			log.Error("running", "err", err)
		}
	})
	parts.Go(func() { carrier.accept(ctx, link) })
	return carrier.command(os.Stdin, os.Stdout)
}

// carrier carries the connections of a process.
type carrier struct {
	part    part
	hosts   *Hosts
	buffers tunnel.Buffers

	mu    sync.Mutex
	every int      // how many connections it takes until something is lost; 0 is never
	asked int      // connections since
	lost  []func() // keeps it
}

// accept carries the recipient's connections until ctx ends.
func (c *carrier) accept(ctx context.Context, ln net.Listener) {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		conns.Go(func() { c.ask(ctx, conn.(*net.TCPConn)) })
	}
}

func (c *carrier) ask(ctx context.Context, conn *net.TCPConn) {
	c.leakSome()
	st, err := c.hosts.Ask(ctx, c.part.Peer, tunnel.Request{Kind: tunnel.TCP, Port: 5432, Source: "db", Recipient: "web"})
	if err != nil {
		conn.SetLinger(0)
		conn.Close()
		return
	}
	p := &tunnel.Pump{Conn: conn, Stream: st, Buffers: &c.buffers, AwaitAnswer: 10 * time.Second}
	p.Run()
}

// answer carries connections to the source.
func (c *carrier) answer(_ identity.Peer, in *tunnel.Incoming) {
	dialer := net.Dialer{Timeout: 5 * time.Second, Control: resetIfKilled}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.Dial("tcp", c.part.Source)
	if err != nil {
		in.Refuse(tunnel.StatusOf(err), err.Error())
		return
	}
	if err := in.Grant(); err != nil {
		in.Stream.Abort()
		conn.Close()
		return
	}
	p := &tunnel.Pump{Conn: conn.(*net.TCPConn), Stream: in.Stream, Buffers: &c.buffers}
	p.Run()
}

// resetIfKilled is for a socket before it is connected, or listens: there is no
// moment then at which a killed process would leave an end that is none.
func resetIfKilled(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { sockopt.ResetOnClose(int(fd)) })
}

// command does as told, one line at a time, until there are no more.
func (c *carrier) command(in io.Reader, out io.Writer) error {
	answers := json.NewEncoder(out)
	for lines := bufio.NewScanner(in); lines.Scan(); {
		r := report{Hosts: c.hosts.List()}
		switch name, rest, _ := strings.Cut(lines.Text(), " "); name {
		case "state":
		case "sample":
			sample, err := growth.Take()
			if err != nil {
				r.Err = err.Error()
			}
			r.Sample = sample
		case "stacks":
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		case "leak":
			c.mu.Lock()
			if _, err := fmt.Sscan(rest, &c.every); err != nil {
				r.Err = err.Error()
			}
			c.mu.Unlock()
		default:
			r.Err = "no such command: " + name
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// leakSome loses a descriptor, a goroutine and 64 KiB if the test wants that.
func (c *carrier) leakSome() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked++; c.every == 0 || c.asked%c.every != 0 {
		return
	}
	stuck, some := make(chan struct{}), make([]byte, 64<<10)
	go func() { <-stuck }()
	f, err := os.Open("/dev/null")
	if err != nil {
		return
	}
	c.lost = append(c.lost, func() {
		f.Close()
		close(stuck)
		runtime.KeepAlive(some)
	})
}

// process is such a process, seen by the test.
type process struct {
	part part
	ns   *netns.Namespace
	log  logbook.Log

	mu  sync.Mutex // for one command at a time
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// launch starts the process, in its namespace.
func (p *process) launch(t testing.TB) {
	t.Helper()
	text, err := json.Marshal(p.part)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), p.ns.FD()), self)
	p.cmd.Env = append(os.Environ(), partVar+"="+string(text))
	p.cmd.Stderr = &p.log
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = json.NewDecoder(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop ends the process as it should.
func (p *process) stop(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	p.in.Close()
	killer := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	err := p.cmd.Wait()
	if !killer.Stop() {
		err = cmp.Or(err, errors.New("it had to be killed"))
	}
	if err != nil {
		t.Errorf("%s ended with %v", p.part.Link, err)
	}
	p.cmd = nil
}

// kill ends the process at once.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p.cmd = nil
}

// tell has the process do something, and returns what it says.
func (p *process) tell(command string) (report, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return report{}, errors.New("it does not run")
	}
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		return report{}, err
	}
	var r report
	err := p.out.Decode(&r)
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	return r, err
}
