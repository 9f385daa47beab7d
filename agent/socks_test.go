package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/socks"
	"github.com/linkrun/linkrun/tunnel"
)

// imageEngine is a fakeEngine that has images.
type imageEngine struct {
	fakeEngine
	images map[string]docker.Image
}

func (e *imageEngine) Image(_ context.Context, id string) (docker.Image, error) {
	img, ok := e.images[id]
	if !ok {
		return img, fmt.Errorf("image %q: %w", id, docker.ErrNotFound)
	}
	return img, nil
}

// linkedBySocks is a recipient with links in all states:
//
//	webdb    to db, up, which has port 5432 and allows 8000 to 8010
//	down     to gone, which is not running
//	early    to a source that has not been looked up
func linkedBySocks(t *testing.T) *recipient {
	t.Helper()
	r := &recipient{}
	r.view.Store(&docker.Container{Name: "web"})
	views := map[string]*view{
		"webdb": {res: resolution{source: docker.Container{Name: "renamed", Hostname: "db.example",
			Ports: []link.Port{{Number: 5432, Proto: link.TCP}, {Number: 53, Proto: link.UDP}}}}},
		"down": {res: resolution{source: docker.Container{Name: "gone", Ports: []link.Port{{Number: 80, Proto: link.TCP}}},
			down: `container "gone" is not running`}},
		"early":      nil,
		"odd:=alias": nil,
		"two names":  nil,
	}
	more, err := link.ParseSocksPorts("8000-8010")
	if err != nil {
		t.Fatal(err)
	}
	views["webdb"].more = more
	for alias := range views {
		if _, err := r.set.Add(link.Link{Alias: alias, Source: map[string]string{"webdb": "db", "down": "gone"}[alias]}); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range r.set.Links {
		c := newCarrier(l)
		c.view.Store(views[l.Alias])
		r.links = append(r.links, c)
	}
	return r
}

func TestSocksNames(t *testing.T) {
	r := linkedBySocks(t)
	for host, alias := range map[string]string{
		"webdb": "webdb", "WebDB": "webdb", "db": "webdb", "renamed": "webdb", "db.example": "webdb",
		"down": "down", "gone": "down", "early": "early",
		"odd:=alias": "odd:=alias", "two": "two names", "names": "two names", "two names": "two names",
		"127.77.0.2": "down", "127.77.0.6": "webdb",
	} {
		if c := r.byName(host); c == nil || c.link.Alias != alias {
			t.Errorf("%q is not found as %q", host, alias)
		}
	}
	for _, host := range []string{"", "web", "localhost", "example", "127.0.0.1", "127.77.0.1", "127.77.0.7", "172.17.0.2", "0.0.0.0", "::1", "webdb.example"} {
		if c := r.byName(host); c != nil {
			t.Errorf("%q is found as %q", host, c.link.Alias)
		}
	}
}

func TestSocksRefusals(t *testing.T) {
	r := linkedBySocks(t)
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	for _, tt := range []struct {
		host string
		port uint16
		want error
		text string
	}{
		{"other", 80, socks.ErrNotAllowed, `"other" is no link of "web": not allowed`},
		{"webdb", 5433, socks.ErrNotAllowed, `link "webdb" has no port 5433: not allowed`},
		{"webdb", 53, socks.ErrNotAllowed, `link "webdb" has no port 53: not allowed`}, // that is UDP
		{"webdb", 0, socks.ErrNotAllowed, `link "webdb" has no port 0: not allowed`},
		{"webdb", 8011, socks.ErrNotAllowed, `link "webdb" has no port 8011: not allowed`},
		{"webdb", 8010, syscall.ECONNREFUSED, `link "webdb": the source is down: file already closed: connection refused`}, // allowed, but led nowhere here
		{"down", 81, socks.ErrNotAllowed, `link "down" has no port 81: not allowed`},
		{"down", 80, syscall.ECONNREFUSED, `link "down": connection refused: container "gone" is not running`},
		{"early", 80, syscall.ECONNREFUSED, `link "early": connection refused: its source has not been looked up yet`},
	} {
		way, err := a.way(t.Context(), r, tt.host, tt.port)
		if way != nil || !errors.Is(err, tt.want) || err.Error() != tt.text {
			t.Errorf("to %s:%d: %v, want %s", tt.host, tt.port, err, tt.text)
		}
	}
}

// What a source's image says opens nothing, and what cannot be read neither.
func TestSocksPorts(t *testing.T) {
	for _, tt := range []struct {
		own, image string
		open       bool
	}{
		{"8000-8010", "", true},
		{"8000-8010", "all", true},
		{"8000-8010", "8000-8010", false},
		{"all", "all", false},
		{"", "", false},
		{"everything", "", false},
	} {
		var logged bytes.Buffer
		a := &Agent{log: slog.New(slog.NewTextHandler(&logged, nil)), engine: &imageEngine{images: map[string]docker.Image{
			"image": {Labels: map[string]string{link.LabelSocksPorts: tt.image}},
		}}}
		ctr := docker.Container{Name: "db", Image: "image", Labels: map[string]string{link.LabelSocksPorts: tt.own}}
		ports, err := a.socksPorts(t.Context(), ctr)
		if err != nil || ports.Contain(8005) != tt.open {
			t.Errorf("label %q, of the image %q: %v, %v", tt.own, tt.image, ports, err)
		}
		if warned := strings.Contains(logged.String(), "level=WARN"); warned != (tt.own == "everything") {
			t.Errorf("label %q is logged as\n%s", tt.own, logged.String())
		}
	}
	// An image that cannot be looked at is tried again, and opens nothing
	// meanwhile.
	a := &Agent{log: slog.New(slog.DiscardHandler), engine: &imageEngine{}}
	ports, err := a.socksPorts(t.Context(), docker.Container{Name: "db", Image: "image", Labels: map[string]string{link.LabelSocksPorts: "all"}})
	if !errors.Is(err, docker.ErrNotFound) || len(ports) > 0 {
		t.Errorf("without its image: %v, %v", ports, err)
	}
}

// What another host refuses for want of permission is not allowed here; the
// rest is what it would be of a source on this one.
func TestSocksRefusalsOfOtherHosts(t *testing.T) {
	for status, want := range map[tunnel.Status]error{
		tunnel.Denied:      socks.ErrNotAllowed,
		tunnel.NoSource:    socks.ErrNotAllowed,
		tunnel.NoPort:      socks.ErrNotAllowed,
		tunnel.Down:        syscall.ECONNREFUSED,
		tunnel.Refused:     syscall.ECONNREFUSED,
		tunnel.Unreachable: syscall.EHOSTUNREACH,
		tunnel.TimedOut:    os.ErrDeadlineExceeded,
	} {
		if err := refusalOf(&tunnel.Refusal{Status: status}); !errors.Is(err, want) || errors.Is(err, socks.ErrNotAllowed) != (want == socks.ErrNotAllowed) {
			t.Errorf("%v is %v, want %v", status, err, want)
		}
	}
	if err := refusalOf(tunnel.ErrLost); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("a session that is lost is %v", err)
	}
}
