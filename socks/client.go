package socks

import (
	"io"
	"net"
	"os"
	"slices"
	"time"
)

// client is a client's connection as the library sees it: until the client has
// been told that it is connected. Then the library sees it end, and with it all
// that the library does, while the socket is somebody else's.
type client struct{ h *handshake }

var _ net.Conn = client{}

// Read reads a byte. The library reads through a buffer, which would swallow
// what a client sends right behind its request, for the source.
func (c client) Read(p []byte) (int, error) {
	if c.h.answered {
		return 0, io.EOF
	}
	return c.h.socket.Read(p[:min(len(p), 1)])
}

// Write passes on what the library says, but for the reason of a refusal, which
// it would guess from the text of an error.
func (c client) Write(p []byte) (int, error) {
	if c.h.reply != 0 && len(p) > 1 {
		p = slices.Clone(p)
		p[1] = byte(c.h.reply)
	}
	// A handful of bytes into an empty buffer: this never waits for the client.
	n, err := c.h.socket.Write(p)
	if err == nil && c.h.way != nil {
		c.h.answered = true
	}
	return n, err
}

// Close does nothing: how a client is left depends on how it went.
func (client) Close() error { return nil }

func (client) LocalAddr() net.Addr                { return nowhere }
func (client) RemoteAddr() net.Addr               { return nowhere }
func (client) SetDeadline(time.Time) error        { return os.ErrNoDeadline }
func (client) SetReadDeadline(t time.Time) error  { return os.ErrNoDeadline }
func (client) SetWriteDeadline(t time.Time) error { return os.ErrNoDeadline }

// nowhere is what clients are told about addresses. The library takes it for
// granted that an address is a *net.TCPAddr, and gives it to the client, whom
// those of sources do not concern.
var nowhere = &net.TCPAddr{IP: net.IPv4zero.To4()}

// carried stands for the source's end. To the library it has hung up already.
type carried struct{}

var _ net.Conn = carried{}

func (carried) Read([]byte) (int, error)         { return 0, io.EOF }
func (carried) Write([]byte) (int, error)        { return 0, io.ErrClosedPipe }
func (carried) Close() error                     { return nil }
func (carried) LocalAddr() net.Addr              { return nowhere }
func (carried) RemoteAddr() net.Addr             { return nowhere }
func (carried) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (carried) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (carried) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
