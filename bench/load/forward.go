package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/linkrun/linkrun/identity"
)

// secureForward is one end of the plainest tunnel there can be: a TLS
// connection for each connection, and two goroutines that copy. It is what
// load secure-forward LISTEN TO IDENTITY SIDE does; SIDE is source or
// recipient.
func secureForward(ctx context.Context, args []string) error {
	store, err := identity.Open(identity.In(args[2]))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	dial := func() (net.Conn, error) { return net.Dial("tcp", args[1]) }
	switch args[3] {
	case "source":
		ln = tls.NewListener(ln, bulky(store.ServerTLS(secureProtocol)))
	case "recipient":
		config := bulky(store.ClientTLS(secureProtocol, ""))
		dial = func() (net.Conn, error) { return tls.Dial("tcp", args[1], config) }
	default:
		return fmt.Errorf("%q is no side", args[3])
	}
	return acceptEach(ctx, ln, func(conn net.Conn) {
		defer conn.Close()
		other, err := dial()
		if err != nil {
			return
		}
		defer other.Close()
		var ways sync.WaitGroup
		ways.Go(func() { copyWay(other, conn) })
		ways.Go(func() { copyWay(conn, other) })
		ways.Wait()
	})
}

// acceptEach accepts connections until ctx ends, and closes ln. Each is
// handled in a goroutine that ends with the process: this one has nothing else
// to do.
func acceptEach(ctx context.Context, ln net.Listener, handle func(net.Conn)) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go handle(conn)
	}
}

// copyWay copies one direction, by 64 KiB, and passes its end on.
func copyWay(to, from net.Conn) {
	io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 64<<10))
	to.(interface{ CloseWrite() error }).CloseWrite()
}
