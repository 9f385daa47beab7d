package socks

import (
	"container/list"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/armon/go-socks5"
	"golang.org/x/sys/unix"
)

// handshake is one client and what became of it. It is the library's rules and
// dialer for that client.
//
// The library asks in this order: Resolve for a name, whatever is to be done
// with it; Allow; dial. Resolve says nothing, so that the library neither looks
// names up itself nor gives away which exist, before Allow has had a look.
type handshake struct {
	server *Server
	socket *os.File
	ctx    context.Context
	cancel context.CancelCauseFunc
	place  *list.Element // among those under way; nil once given up. Guarded by server.mu

	asked    bool // Allow let the request pass
	host     string
	port     uint16
	reply    reply // what a refusal has to say; 0 leaves it to the library
	why      error // of a refusal
	way      Way
	answered bool // the client was told that it is connected
}

func newHandshake(s *Server, client int) *handshake {
	h := &handshake{server: s, socket: newFile(client)}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	return h
}

// lingering is how long a client that was refused may take to hang up.
const lingering = time.Second

// run returns when the client's socket is closed, or somebody else's.
func (h *handshake) run() {
	defer h.cancel(nil)
	deadline := time.Now().Add(h.server.timeout())
	ctx, cancel := context.WithDeadline(h.ctx, deadline)
	defer cancel()
	var err error
	if h.waitUntil(deadline) {
		err = h.negotiate(ctx)
	}
	log := h.server.log().With("host", h.host, "port", h.port)
	switch {
	case h.way != nil && h.answered:
		if err := h.handOn(); err != nil {
			log.Warn("a connection by SOCKS is lost", "err", err)
			return
		}
		log.Debug("connected by SOCKS")
		return
	case h.way != nil:
		h.way.Close()
	}
	if why := context.Cause(h.ctx); why != nil {
		log.Debug("gave a SOCKS handshake up", "err", why)
		h.reset()
		return
	}
	log.Debug("refused a SOCKS handshake", "err", errors.Join(err, h.why))
	h.hangUp()
}

// negotiate has the library talk to the client. Whatever it is that panics, a
// client's bytes must not end a process that carries others.
func (h *handshake) negotiate(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			h.server.log().Error("a SOCKS handshake panicked", "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	conf := &socks5.Config{
		Resolver: noNames{},
		Rules:    h,
		Dial:     func(context.Context, string, string) (net.Conn, error) { return h.dial(ctx) },
		Logger:   log.New(io.Discard, "", 0), // it prints what clients send as it is
	}
	if h.server.Password != "" {
		conf.Credentials = password(h.server.Password)
	}
	server, err := socks5.New(conf)
	if err != nil {
		return err
	}
	return server.ServeConn(client{h})
}

// Allow takes down what is asked for. The rest of the decision is Connect's.
func (h *handshake) Allow(ctx context.Context, req *socks5.Request) (context.Context, bool) {
	if req.Command != socks5.ConnectCommand {
		h.refuse(commandNotSupported, fmt.Errorf("command %d is none that is carried", req.Command))
		return ctx, false
	}
	host := hostOf(req.DestAddr)
	if host == "" {
		// The library would dial "", which is the machine it runs on.
		h.refuse(notAllowed, errors.New("it names no host"))
		return ctx, false
	}
	h.asked, h.host, h.port = true, host, uint16(req.DestAddr.Port)
	return ctx, true
}

// hostOf is the name or address that is asked for, in one spelling of those
// that mean the same: some clients write an address as a name, others an IPv4
// address as one of IPv6. It is "" if there is none.
func hostOf(to *socks5.AddrSpec) string {
	host := strings.TrimSuffix(to.FQDN, ".")
	addr, ok := netip.AddrFromSlice(to.IP)
	if to.FQDN != "" {
		var err error
		addr, err = netip.ParseAddr(host)
		ok = err == nil
	}
	if ok {
		return addr.Unmap().String()
	}
	return host
}

// dial connects to what Allow took down, and nowhere else.
func (h *handshake) dial(ctx context.Context) (net.Conn, error) {
	if !h.asked {
		h.refuse(notAllowed, ErrNotAllowed)
		return nil, ErrNotAllowed
	}
	way, err := h.server.Connect(ctx, h.host, h.port)
	if err != nil {
		h.refuse(replyTo(err), err)
		return nil, err
	}
	h.way = way
	return carried{}, nil
}

func (h *handshake) refuse(r reply, why error) { h.reply, h.why = r, why }

// handOn gives the client's socket away. The file keeps none of it: a second
// descriptor survives the first.
func (h *handshake) handOn() error {
	fd, err := h.duplicate()
	if err != nil {
		h.way.Close()
		h.reset()
		return err
	}
	h.socket.Close()
	h.way.Carry(fd)
	return nil
}

func (h *handshake) duplicate() (fd int, err error) {
	controlErr := h.control(func(old int) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return -1, fmt.Errorf("handing a client on: %w", err)
	}
	return fd, nil
}

// hangUp closes the socket of a client that was told why. Were it closed with
// bytes unread, the kernel would answer them with a reset, which overtakes what
// the client was told.
func (h *handshake) hangUp() {
	defer h.socket.Close()
	h.control(func(fd int) { unix.Shutdown(fd, unix.SHUT_WR) })
	if !h.waitUntil(time.Now().Add(lingering)) {
		return
	}
	const plenty = 1 << 16 // bytes
	io.Copy(io.Discard, io.LimitReader(h.socket, plenty))
}

func (h *handshake) reset() {
	h.control(func(fd int) { unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) })
	h.socket.Close()
}

// waitUntil is how long the client is waited for. It is false if there is no
// waiting any more: giveUp may have come just before.
func (h *handshake) waitUntil(t time.Time) bool {
	if err := h.socket.SetReadDeadline(t); err != nil {
		h.giveUp(err)
	}
	return h.ctx.Err() == nil
}

var past = time.Unix(1, 0)

// giveUp makes run return soon, from another goroutine.
func (h *handshake) giveUp(why error) {
	h.cancel(why)
	h.socket.SetReadDeadline(past)
}

func (h *handshake) control(fn func(fd int)) error {
	raw, err := h.socket.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { fn(int(fd)) })
}

// noNames keeps the library from looking up names in DNS. Without an address
// the name itself is dialed.
type noNames struct{}

func (noNames) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// password is the credentials of a Server. The library's own compares in a time
// that tells how much of a guess is right.
type password string

func (p password) Valid(_, given string) bool {
	return subtle.ConstantTimeCompare([]byte(p), []byte(given)) == 1
}
