package control

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connecting leads to sources that greet, and send back what they get.
type connecting struct {
	fixed
	closed chan struct{}
}

func (c connecting) Connect(ctx context.Context, recipient, host string, port uint16) (Way, error) {
	switch {
	case host == "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	case recipient != "a web" || host != "x y/z" || port != 65535:
		return nil, &RefusedError{Status: StatusNotAllowed, Message: "not allowed", Hint: "ask"}
	}
	return greeting(c), nil
}

type greeting connecting

func (g greeting) Carry(client int) {
	f := os.NewFile(uintptr(client), "client")
	io.WriteString(f, "hello ") // right behind the answer
	go func() {
		defer f.Close()
		io.Copy(f, f)
	}()
}

func (g greeting) Close() error {
	close(g.closed)
	return nil
}

func TestConnect(t *testing.T) {
	dir := t.TempDir()
	defer serve(t, dir, connecting{})()
	c := Dial(dir)
	fd, err := c.Connect(t.Context(), "a web", "x y/z", 65535)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	f.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(f, strings.Repeat("x", 1<<16))
	unix.Shutdown(fd, unix.SHUT_WR)
	if got, err := io.ReadAll(f); err != nil || string(got) != "hello "+strings.Repeat("x", 1<<16) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}

	_, err = c.Connect(t.Context(), "a web", "other", 80)
	var refused *RefusedError
	if !errors.As(err, &refused) || *refused != (RefusedError{Status: StatusNotAllowed, Message: "not allowed", Hint: "ask"}) {
		t.Errorf("refused with %#v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Connect(ctx, "a web", "slow", 80); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v", err)
	}
	if _, err := Dial(t.TempDir()).Connect(t.Context(), "a web", "other", 80); !errors.Is(err, ErrNoAgent) {
		t.Errorf("without an ambassador: %v", err)
	}
}

// Bytes that come before the answer are no part of HTTP, nor of a connection
// that nobody has opened yet.
func TestConnectAheadOfTheAnswer(t *testing.T) {
	dir := t.TempDir()
	h := connecting{closed: make(chan struct{})}
	defer serve(t, dir, h)()
	conn, err := net.Dial("unix", SocketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /recipients/a%20web/connect?host=x+y%2Fz&port=65535 HTTP/1.1\r\nHost: x\r\n\r\nahead")
	select {
	case <-h.closed:
	case <-time.After(10 * time.Second):
		t.Error("the way to the source stays open")
	}
}

func TestConnectBadPort(t *testing.T) {
	dir := t.TempDir()
	defer serve(t, dir, connecting{})()
	var refused *RefusedError
	err := Dial(dir).do(t.Context(), "POST", "/recipients/web/connect?host=x&port=65536", nil, nil)
	if !errors.As(err, &refused) || refused.Status != 400 || refused.Message != `"65536" is no port` {
		t.Errorf("a port that is none gave %v", err)
	}
}
