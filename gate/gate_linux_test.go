package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the other processes the tests need.
func TestMain(m *testing.M) {
	address := os.Getenv("GATE_TEST_ADDRESS")
	switch os.Getenv("GATE_TEST_ROLE") {
	case "init":
		os.Exit(initMain(address))
	case "stray":
		n, _ := strconv.Atoi(os.Args[1])
		for range n {
			if conn, err := net.Dial("unix", address); err == nil {
				conn.Write([]byte("GET / HTTP/1.0\r\n"))
				b, _ := io.ReadAll(conn)
				os.Stdout.Write(b)
				conn.Close()
			}
		}
	default:
		os.Exit(m.Run())
	}
}

func initMain(address string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	fmt.Println("waiting")
	w, err := wait(ctx, address, anyone)
	if s := (*SignalError)(nil); errors.As(err, &s) {
		fmt.Println(s)
		return s.ExitCode()
	}
	if err != nil {
		fmt.Println(err)
		return 125
	}
	fmt.Printf("%q\n", w.Env)
	return 0
}

// role starts this binary as another process.
func role(t *testing.T, role, address string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), "GATE_TEST_ROLE="+role, "GATE_TEST_ADDRESS="+address, "GORACE=atexit_sleep_ms=0")
	return cmd
}

func anyone(process) error { return nil }

func addressOf(t *testing.T) string {
	return fmt.Sprintf("@gate-test-%d-%s", os.Getpid(), t.Name())
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// serve runs g.Serve and returns its result through the channel.
func serve(ctx context.Context, g *Gate, ln net.Listener) <-chan error {
	done := make(chan error, 1)
	go func() { done <- g.Serve(ctx, ln) }()
	return done
}

func result(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("Serve does not return")
		return nil
	}
}

func self(pid, uid int) bool { return pid == os.Getpid() && uid == os.Getuid() }

var word = Word{Env: []string{"DB_PORT=tcp://127.77.0.2:80"}, Prefixes: []string{"DB"}, Kept: []string{"DB_NAME"}}

// leaks fails the test when it ends with more descriptors or goroutines than
// it began with.
func leaks(t *testing.T) {
	t.Helper()
	signal.Ignored(syscall.SIGTERM) // os/signal keeps a goroutine once it was used
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	signal.Stop(c)
	count := func() (int, int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds), runtime.NumGoroutine()
	}
	fds, goroutines := count()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for {
			f, g := count()
			if f <= fds && g <= goroutines {
				return
			}
			if time.Now().After(deadline) {
				b := make([]byte, 1<<20)
				t.Errorf("%d descriptors, were %d; %d goroutines, were %d\n%s", f, fds, g, goroutines, b[:runtime.Stack(b, true)])
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func TestWord(t *testing.T) {
	leaks(t)
	ln := listen(t, addressOf(t))
	done := serve(t.Context(), &Gate{Word: fixed(word), Verify: self}, ln)
	got, err := wait(t.Context(), addressOf(t), anyone)
	if err != nil || got.Env[0] != word.Env[0] || got.Kept[0] != word.Kept[0] {
		t.Errorf("got %+v, %v, want %+v", got, err, word)
	}
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := net.Dial("unix", addressOf(t)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("once the word is given, a connection gives %v", err)
	}
}

func TestErrorWord(t *testing.T) {
	want := Word{Error: "label ambassador.link.x is bad", Hint: "create the container anew"}
	done := serve(t.Context(), &Gate{Word: fixed(want), Verify: self}, listen(t, addressOf(t)))
	got, err := wait(t.Context(), addressOf(t), anyone)
	if err != nil || got.Error != want.Error || got.Hint != want.Hint {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A word of a megabyte takes many writes and reads.
func TestLongWord(t *testing.T) {
	long := Word{Env: []string{"DB_ENV_X=" + strings.Repeat("<\n\"é", 200_000)}, Prefixes: []string{"DB"}}
	done := serve(t.Context(), &Gate{Word: fixed(long), Verify: self}, listen(t, addressOf(t)))
	got, err := wait(t.Context(), addressOf(t), anyone)
	if err != nil || len(got.Env) != 1 || got.Env[0] != long.Env[0] {
		t.Errorf("the word arrives changed: %v", err)
	}
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// The init is there long before the gate.
func TestGateComesLater(t *testing.T) {
	leaks(t)
	type outcome struct {
		w   Word
		err error
	}
	done := make(chan outcome, 1)
	trying := make(chan struct{})
	go func() {
		close(trying)
		w, err := wait(t.Context(), addressOf(t), anyone)
		done <- outcome{w, err}
	}()
	<-trying
	served := serve(t.Context(), &Gate{Word: fixed(word), Verify: self}, listen(t, addressOf(t)))
	if got := <-done; got.err != nil || len(got.w.Env) != 1 {
		t.Errorf("got %+v", got)
	}
	if err := result(t, served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestSilence(t *testing.T) {
	leaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := wait(ctx, addressOf(t), anyone)
	want := "no word from the ambassador: dial unix " + addressOf(t) + ": connect: connection refused"
	if !errors.Is(err, ErrSilent) || !errors.Is(err, syscall.ECONNREFUSED) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// Someone listens and says nothing, or stops in the middle. The init does not
// take half a word, and asks again until the time is over.
func TestHalfWord(t *testing.T) {
	leaks(t)
	b, _ := word.encode()
	ln := listen(t, addressOf(t))
	attempts := make(chan struct{}, 100)
	go func() {
		for n := 0; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write(b[:min(n*10, len(b)-1)])
			conn.Close()
			attempts <- struct{}{}
			if n == 5 {
				break
			}
		}
		ln.Close()
		again, err := net.Listen("unix", ln.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		(&Gate{Word: fixed(word), Verify: self}).Serve(t.Context(), again)
	}()
	got, err := wait(t.Context(), addressOf(t), anyone)
	if err != nil || len(got.Env) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	if len(attempts) != 6 {
		t.Errorf("%d attempts before, want 6", len(attempts))
	}
}

func TestMuteServer(t *testing.T) {
	leaks(t)
	ln := listen(t, addressOf(t))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := ln.Accept(); err == nil {
			accepted <- conn
		}
	}()
	_, err := wait(ctx, addressOf(t), anyone)
	if !errors.Is(err, ErrSilent) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	(<-accepted).Close()
}

// A server that is neither outside of the pid namespace nor root's is not
// believed.
func TestImpostor(t *testing.T) {
	leaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	serveCtx, stop := context.WithCancel(t.Context())
	done := serve(serveCtx, &Gate{Word: fixed(word), Verify: func(int, int) bool { return true }}, listen(t, addressOf(t)))
	_, err := wait(ctx, addressOf(t), func(peer process) error {
		peer.uid = 1000
		return isAmbassador(peer)
	})
	stop()
	<-done
	want := fmt.Sprintf("no word from the ambassador: process %d of user 1000 is not the ambassador", os.Getpid())
	if err == nil || !strings.HasPrefix(err.Error(), want) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestIsAmbassador(t *testing.T) {
	for _, tt := range []struct {
		peer process
		err  string
	}{
		{process{0, 0}, ""},
		{process{0, 65534}, ""}, // with user namespaces, the host's root
		{process{77, 0}, ""},
		{process{77, 1000}, "process 77 of user 1000 is not the ambassador"},
	} {
		if err := isAmbassador(tt.peer); (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("isAmbassador(%+v) = %v", tt.peer, err)
		}
	}
}

// Whatever else is in the namespace connects, sends things and hangs up. It
// gets nothing, and the init still gets its word.
func TestStrays(t *testing.T) {
	leaks(t)
	ln := listen(t, addressOf(t))
	done := serve(t.Context(), &Gate{Word: fixed(word), Verify: self}, ln)

	// Connections held open before the init comes, and ones with data.
	silent, err := net.Dial("unix", addressOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	// The first connection is this process's own, so the word went there.
	if err := result(t, done); err != nil {
		t.Fatal(err)
	}

	ln = listen(t, addressOf(t))
	stray := role(t, "stray", addressOf(t), "1000")
	var got bytes.Buffer
	stray.Stdout = &got
	init := role(t, "init", addressOf(t))
	initPID := make(chan int, 1)
	done = serve(t.Context(), &Gate{Word: fixed(word), Verify: func() func(pid, uid int) bool {
		want := 0
		return func(pid, uid int) bool {
			if want == 0 {
				select {
				case want = <-initPID:
				default:
				}
			}
			return pid == want
		}
	}()}, ln)
	if err := stray.Run(); err != nil {
		t.Fatal(err)
	}
	if got.Len() > 0 {
		t.Errorf("a stray got %q", got.String())
	}
	out, err := init.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := init.Start(); err != nil {
		t.Fatal(err)
	}
	initPID <- init.Process.Pid
	b, _ := io.ReadAll(out)
	if err := init.Wait(); err != nil || string(b) != "waiting\n[\"DB_PORT=tcp://127.77.0.2:80\"]\n" {
		t.Errorf("the init says %q, %v", b, err)
	}
	if err := result(t, done); err != nil {
		t.Error(err)
	}
}

// An init that is paused in the middle of its word has it whole in the end.
func TestSlowReader(t *testing.T) {
	leaks(t)
	long := Word{Env: []string{"DB_ENV_X=" + strings.Repeat("x", 4<<20)}, Prefixes: []string{"DB"}}
	ln := listen(t, addressOf(t))
	done := serve(t.Context(), &Gate{Word: fixed(long), Verify: self, WriteTimeout: 50 * time.Millisecond}, ln)
	slow, err := net.Dial("unix", addressOf(t))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	slow.Read(make([]byte, 100))
	got, err := wait(t.Context(), addressOf(t), anyone)
	if err != nil || len(got.Env) != 1 || got.Env[0] != long.Env[0] {
		t.Errorf("the second attempt gives %v", err)
	}
	if err := result(t, done); err != nil {
		t.Error(err)
	}
	rest, err := io.ReadAll(slow)
	if err != nil || len(rest) >= 4<<20 {
		t.Errorf("the first attempt read %d bytes, %v", len(rest), err)
	}
}

func TestServeEnds(t *testing.T) {
	leaks(t)
	ln := listen(t, addressOf(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := serve(ctx, &Gate{Verify: self}, ln)
	cancel()
	if err := result(t, done); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := net.Dial("unix", addressOf(t)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the socket is still there: %v", err)
	}

	closed := listen(t, addressOf(t))
	closed.Close()
	if err := result(t, serve(t.Context(), &Gate{Verify: self}, closed)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed socket gives %v", err)
	}
}

// Serve survives a shortage of descriptors.
func TestAcceptFails(t *testing.T) {
	leaks(t)
	ln := &failingListener{Listener: listen(t, addressOf(t)), failures: 3}
	done := serve(t.Context(), &Gate{Word: fixed(word), Verify: self}, ln)
	if got, err := wait(t.Context(), addressOf(t), anyone); err != nil || len(got.Env) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := result(t, done); err != nil {
		t.Error(err)
	}
}

type failingListener struct {
	net.Listener
	failures int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestSignals(t *testing.T) {
	for _, tt := range []struct {
		name  string
		signo syscall.Signal
		code  int
		flags uintptr
	}{
		{"TERM", syscall.SIGTERM, 143, 0},
		{"INT", syscall.SIGINT, 130, 0},
		{"QUIT", syscall.SIGQUIT, 131, 0},
		{"HUP", syscall.SIGHUP, 129, 0},
		{"USR1", syscall.SIGUSR1, 138, 0},
		{"RTMIN+3", 37, 165, 0},
		{"TERM as process 1", syscall.SIGTERM, 143, syscall.CLONE_NEWPID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.flags != 0 && os.Getuid() != 0 {
				if os.Getenv("CI") == "true" {
					t.Fatal("needs root")
				}
				t.Skip("SKIPPED: making a pid namespace needs root")
			}
			cmd := role(t, "init", addressOf(t))
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: tt.flags}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			ln := listen(t, addressOf(t))
			// A signal this process ignores, under nohup for one, the other
			// would ignore too.
			caught := make(chan os.Signal, 1)
			signal.Notify(caught, tt.signo)
			defer signal.Stop(caught)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// It asks only after it has set its handlers.
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			cmd.Process.Signal(tt.signo)
			b, _ := io.ReadAll(out)
			cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != tt.code || !strings.Contains(string(b), "ended by signal: ") {
				t.Errorf("exit status %d, want %d; output %q", got, tt.code, b)
			}
		})
	}
}

// The program to come finds the signals as the init found them.
func TestSignalsRestored(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	before := ignoredSignals(t)
	release := catchSignals(func() {})
	during := ignoredSignals(t)
	if err := release(); err != nil {
		t.Errorf("a signal was caught: %v", err)
	}
	if after := ignoredSignals(t); during != before || after != before {
		t.Errorf("ignored signals were %x, then %x, are %x", before, during, after)
	}
}

func ignoredSignals(t *testing.T) (mask uint64) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		fmt.Sscanf(line, "SigIgn: %x", &mask)
	}
	if mask == 0 {
		t.Fatal("no signal is ignored")
	}
	return mask
}

// A signal that comes together with the word counts: nobody else sees it.
func TestSignalWithWord(t *testing.T) {
	cancelled := false
	release := catchSignals(func() { cancelled = true })
	// Sent to this thread, it has arrived when the call returns.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	if s := release(); s == nil || s.ExitCode() != 140 || !cancelled {
		t.Errorf("got %v, cancelled %v", s, cancelled)
	}
}

func fixed(w Word) func() Word { return func() Word { return w } }
