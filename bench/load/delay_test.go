package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"testing"
	"time"
)

// TestDelay sends bytes over a long line and back: they come out as they went
// in, not before it is time, and not faster than the line is.
func TestDelay(t *testing.T) {
	echo := listen(t, "127.0.0.1:0")
	go func() {
		conn, err := echo.Accept()
		if err != nil {
			return
		}
		io.Copy(conn, conn)
		conn.(*net.TCPConn).CloseWrite()
	}()
	free := listen(t, "127.0.0.1:0")
	at := free.Addr().String()
	free.Close()
	const each, megabits = 20 * time.Millisecond, 800
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- delay(ctx, []string{at, echo.Addr().String(), each.String(), "800"}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var conn net.Conn
	for end := time.Now().Add(10 * time.Second); conn == nil; time.Sleep(time.Millisecond) {
		var err error
		if conn, err = net.Dial("tcp", at); err != nil && time.Now().After(end) {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	sent := make([]byte, 4<<20)
	rand.Read(sent)
	began := time.Now()
	go func() {
		conn.Write(sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
	line := time.Duration(float64(len(sent)) * 8 / megabits * float64(time.Microsecond))
	if took, least := time.Since(began), 2*each+line; took < least {
		t.Errorf("it took %v, and the line takes %v", took, least)
	}
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}
