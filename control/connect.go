package control

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/linkrun/linkrun/internal/descriptor"
)

// The statuses of HTTP by which Connect says why not.
const (
	StatusNotAllowed  = http.StatusForbidden          // it is no port of the recipient's links
	StatusRefused     = http.StatusServiceUnavailable // the source is down, or refuses
	StatusUnreachable = http.StatusGatewayTimeout     // there is no way to the source, or no answer from it
)

// Way is the open way to a source. Exactly one of its methods is called, once.
type Way interface {
	// Carry takes over client, a non-blocking stream socket, and relays
	// between it and the source. It owns the descriptor.
	Carry(client int)
	Close() error
}

// ConnectHandler connects those who may ask to where a recipient's links lead.
type ConnectHandler interface {
	// Connect opens the way to a port of what a recipient calls host.
	Connect(ctx context.Context, recipient, host string, port uint16) (Way, error)
}

// upgraded is what the server says before the connection is the source's.
const upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: link\r\n\r\n"

// Connect returns a stream socket that is connected to a port of what a
// recipient calls host: a name or address of one of its links. The caller closes
// it. Of a *RefusedError, the status is one of those above if it is about the
// connection.
func (c *Client) Connect(ctx context.Context, recipient, host string, port uint16) (fd int, err error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return -1, fmt.Errorf("connecting to %q: %w", c.path, ErrNoAgent)
	case err != nil:
		return -1, fmt.Errorf("connecting to %q: %w", c.path, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	q := url.Values{"host": {host}, "port": {strconv.Itoa(int(port))}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://ambassador/recipients/"+url.PathEscape(recipient)+"/connect?"+q.Encode(), nil)
	if err == nil {
		err = req.Write(conn)
	}
	var head []byte
	if err == nil {
		head, err = readHead(conn)
	}
	var res *http.Response
	if err == nil {
		res, err = http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head), conn)), req)
	}
	switch {
	case ctx.Err() != nil:
		return -1, fmt.Errorf("asking the ambassador for a connection: %w", context.Cause(ctx))
	case err != nil:
		return -1, fmt.Errorf("asking the ambassador for a connection: %w", err)
	case res.StatusCode == http.StatusSwitchingProtocols:
		return descriptor.Duplicate(conn.(*net.UnixConn))
	}
	defer res.Body.Close()
	return -1, readRefusal(res)
}

// readHead reads as far as the empty line behind a response's headers, and not
// a byte further: what follows may be the source's.
func readHead(r io.Reader) ([]byte, error) {
	const most = 4096
	var head []byte
	b := make([]byte, 1)
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if head = append(head, b[0]); len(head) == most {
			return nil, errors.New("the answer is too long")
		}
	}
	return head, nil
}

func connectRoutes(mux *http.ServeMux, h ConnectHandler) {
	mux.HandleFunc("POST /recipients/{recipient}/connect", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		port, err := strconv.ParseUint(q.Get("port"), 10, 16)
		if err != nil {
			answerOr(w, nil, &RefusedError{Status: http.StatusBadRequest, Message: fmt.Sprintf("%q is no port", q.Get("port"))})
			return
		}
		way, err := h.Connect(r.Context(), r.PathValue("recipient"), q.Get("host"), uint16(port))
		if err != nil {
			answerOr(w, nil, err)
			return
		}
		if fd, err := upgrade(w); err == nil {
			way.Carry(fd)
			return
		}
		way.Close()
	})
}

// upgrade takes the client's socket out of HTTP.
func upgrade(w http.ResponseWriter) (fd int, err error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	if n := buffered.Reader.Buffered(); n > 0 {
		return -1, fmt.Errorf("%d bytes came before the answer", n)
	}
	if _, err := io.WriteString(conn, upgraded); err != nil {
		return -1, err
	}
	return descriptor.Duplicate(conn.(syscall.Conn))
}
