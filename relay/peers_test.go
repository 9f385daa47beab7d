package relay

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Tests of what the relay costs have their peers in other processes, so that
// whatever is counted in this one is the relay's.

func TestMain(m *testing.M) {
	if role := os.Getenv("RELAY_TEST_PEER"); role != "" {
		if err := peer(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "peer:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	// Seven engines play each schedule; a run of its own may ask for more.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "rapid.checks" })
	if !chosen {
		flag.Set("rapid.checks", "12")
	}
	os.Exit(m.Run())
}

// startPeer runs this program again in a role. What it prints first is
// returned; it ends when its input does.
func startPeer(t testing.TB, role string, args ...string) (said string) {
	t.Helper()
	said, _ = startMortal(t, role, args...)
	return said
}

// startMortal is startPeer for a process that the test may kill.
func startMortal(t testing.TB, role string, args ...string) (said string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "RELAY_TEST_PEER="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil && !killed {
			t.Errorf("peer %s: %v", role, err)
		}
	})
	said, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("peer %s: %v", role, err)
	}
	return strings.TrimSpace(said), func() {
		killed = true
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
	}
}

// peer is what startPeer starts.
func peer(role string, args []string) error {
	RaiseFileLimit()
	// The end of the input is the end of the peer.
	defer io.Copy(io.Discard, os.Stdin)
	switch role {
	case "sink": // accepts, reads everything, closes
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					io.Copy(io.Discard, struct{ io.Reader }{c})
					c.Close()
				}()
			}
		}()
	case "pour": // bytes: accepts, sends, half-closes, waits for the end
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		c, err := l.Accept()
		if err != nil {
			return err
		}
		total, _ := strconv.Atoi(args[0])
		for p := make([]byte, 1<<20); total > 0; total -= len(p) {
			if _, err := c.Write(p[:min(len(p), total)]); err != nil {
				return err
			}
		}
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, struct{ io.Reader }{c})
	case "drain": // address: reads to the end
		c, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil {
			return err
		}
		c.Close()
		fmt.Println("done")
	case "send": // address, bytes, size of a write: sends, half-closes, waits for the end
		c, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		total, _ := strconv.Atoi(args[1])
		size, _ := strconv.Atoi(args[2])
		for p := make([]byte, size); total > 0; total -= len(p) {
			if _, err := c.Write(p[:min(size, total)]); err != nil {
				return err
			}
		}
		c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			return err
		}
		fmt.Println("done")
	case "ping": // address, times, size: sends and waits for the echo
		c, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		times, _ := strconv.Atoi(args[1])
		size, _ := strconv.Atoi(args[2])
		p := make([]byte, size)
		for range times {
			if _, err := c.Write(p); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, p); err != nil {
				return err
			}
		}
		c.Close()
		fmt.Println("done")
	case "echo":
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { io.Copy(c, c); c.Close() }()
			}
		}()
	case "relay": // address: relays to there
		to, err := netip.ParseAddrPort(args[0])
		if err != nil {
			return err
		}
		e := &Engine{}
		if err := e.Start(); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}
		if err == nil {
			err = unix.Listen(fd, 16)
		}
		if err != nil {
			return err
		}
		link := &Link{Source: &testSource{to: to}}
		if _, err := e.Serve(fd, func(netip.AddrPort) *Link { return link }); err != nil {
			return err
		}
		at, _ := localAddr(int32(fd))
		fmt.Println(at)
	case "hold": // address, number: holds connections open
		n, _ := strconv.Atoi(args[1])
		held := make([]net.Conn, n)
		for i := range held {
			var err error
			if held[i], err = net.Dial("tcp4", args[0]); err != nil {
				return err
			}
		}
		fmt.Println("done")
		io.Copy(io.Discard, os.Stdin)
		runtime.KeepAlive(held) // a collected connection is closed
	}
	return nil
}
