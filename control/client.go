package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// ErrNoAgent says that no agent serves at the socket. A socket that may not
// be opened is not this: that error is fs.ErrPermission.
var ErrNoAgent = errors.New("no ambassador serves here")

// RefusedError is the agent's answer to a request it understood and did not
// carry out.
type RefusedError struct {
	Status  int    `json:"-"` // of HTTP
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"` // what to do
}

func (e *RefusedError) Error() string { return e.Message }

// Client asks one agent. The zero Client is not usable; see Dial.
type Client struct {
	path string
	http http.Client
}

// Dial returns a client for the agent that keeps its socket in dir. It opens
// nothing: each request connects anew, so a client outlives an agent's
// restart.
func Dial(dir string) *Client {
	c := &Client{path: SocketPath(dir)}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 5 * time.Second}
			return d.DialContext(ctx, "unix", c.path)
		},
	}
	return c
}

// Status asks who serves.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/status", nil, &s)
}

// Links lists the links, by recipient and alias.
func (c *Client) Links(ctx context.Context) ([]Link, error) {
	var l []Link
	return l, c.do(ctx, http.MethodGet, "/links", nil, &l)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("asking the ambassador for %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://ambassador"+path, body)
	if err != nil {
		return fmt.Errorf("asking the ambassador for %s: %w", path, err)
	}
	res, err := c.http.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connecting to %q: %w", c.path, ErrNoAgent)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connecting to %q: %w", c.path, fs.ErrPermission)
	case err != nil:
		return fmt.Errorf("asking the ambassador at %q for %s: %w", c.path, path, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return readRefusal(res)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("reading the ambassador's answer to %s: %w", path, err)
	}
	return nil
}

func readRefusal(res *http.Response) error {
	refused := RefusedError{Status: res.StatusCode}
	if json.NewDecoder(res.Body).Decode(&refused) != nil || refused.Message == "" {
		refused.Message = fmt.Sprintf("the ambassador answered %q", res.Status)
	}
	return &refused
}
