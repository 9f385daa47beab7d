package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
)

// fakeEngine finds containers as the real one does: by id, name, or unique
// prefix of an id.
type fakeEngine struct {
	Engine
	containers []docker.Container
	asked      int
	err        error
}

func (f *fakeEngine) Container(_ context.Context, ref string) (docker.Container, error) {
	f.asked++
	if f.err != nil {
		return docker.Container{}, f.err
	}
	for _, c := range f.containers {
		if c.ID == ref || c.Name == ref {
			return c, nil
		}
	}
	var found []docker.Container
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, ref) {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return docker.Container{}, fmt.Errorf("inspecting %q: %w", ref, docker.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return docker.Container{}, fmt.Errorf("multiple IDs found with provided prefix: %s", ref)
}

func (f *fakeEngine) Named(_ context.Context, name string) (docker.Container, error) {
	for _, c := range f.containers {
		if f.err == nil && c.Name == name {
			return c, nil
		}
	}
	return docker.Container{}, cmp.Or(f.err, docker.ErrNotFound)
}

// id makes a container's id of a letter.
func id(letter string) string { return strings.Repeat(letter, 64) }

func TestResolve(t *testing.T) {
	running := func(name, idOf, mode string) docker.Container {
		return docker.Container{ID: id(idOf), Name: name, NetworkMode: mode, Running: true}
	}
	stopped := running("stopped", "5", "default")
	stopped.Running = false
	engine := &fakeEngine{containers: []docker.Container{
		running("db", "1", "default"),
		running("renamed", "2", "default"),
		running("sidecar", "3", "container:"+id("1")),
		running("deep", "4", "container:"+id("3")),
		stopped,
		running("on-host", "6", "host"),
		running("on-hosts-namespace", "7", "container:"+id("6")),
		running("orphan", "8", "container:"+id("f")),
		running("loop", "9", "container:"+id("9")),
		running("stranger", "d", "default"),
		running("twin", "ab", "default"),
		running("twins", "ac", "default"),
	}}
	for _, c := range []struct {
		name     string
		link     link.Link
		source   string // name of what it leads to
		down     string
		lookedAt int
	}{
		{"by name", link.Link{Source: "db"}, "db", "", 1},
		{"by name before the id", link.Link{Source: "db", ID: id("2")}, "db", "", 1},
		{"renamed: by id", link.Link{Source: "old", ID: id("2")}, "renamed", "", 1},
		{"by id as the name", link.Link{Source: id("2")}, "renamed", "", 1},
		{"by a short id", link.Link{Source: id("2")[:12]}, "renamed", "", 1},
		{"joined", link.Link{Source: "sidecar"}, "db", "", 2},
		{"joined twice", link.Link{Source: "deep"}, "db", "", 3},
		{"gone", link.Link{Source: "gone", ID: id("e")}, "", `there is no container "gone"`, 0},
		{"never there", link.Link{Source: "gone"}, "", `there is no container "gone"`, 0},
		// The engine finds "ddd…" for "d": the link must not lead there.
		{"prefix of a stranger's id", link.Link{Source: "ddd"}, "", `there is no container "ddd"`, 0},
		{"prefix of two strangers' ids", link.Link{Source: "a"}, "", `there is no container "a"`, 0},
		{"prefix of two strangers' ids, renamed", link.Link{Source: "a", ID: id("2")}, "renamed", "", 1},
		{"stopped", link.Link{Source: "stopped"}, "stopped", `container "stopped" is not running`, 1},
		{"host", link.Link{Source: "on-host"}, "on-host", `container "on-host" is on the host's network, which no link reaches`, 1},
		{"joined to host", link.Link{Source: "on-hosts-namespace"}, "on-host", `container "on-host" is on the host's network, which no link reaches`, 2},
		{"joined to nothing", link.Link{Source: "orphan"}, "orphan", `container "orphan" shares the network of "` + id("f") + `", which is gone`, 1},
		{"joined in a circle", link.Link{Source: "loop"}, "loop", `the network of container "loop" is shared too many times over`, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := resolve(t.Context(), newLookup(engine), c.link)
			if err != nil {
				t.Fatal(err)
			}
			if res.source.Name != c.source || res.down != c.down || len(res.via) != c.lookedAt {
				t.Errorf("led to %q by way of %d, down: %q; want %q by way of %d, down: %q",
					res.source.Name, len(res.via), res.down, c.source, c.lookedAt, c.down)
			}
			if c.source != "" && !concerns(docker.Event{Type: "container", Container: res.via[len(res.via)-1]}, c.link, res) {
				t.Error("news of the container it leads to is no concern of the link")
			}
		})
	}
}

func TestResolveTellsTroubleFromAbsence(t *testing.T) {
	engine := &fakeEngine{err: errors.New("engine on fire")}
	if _, err := resolve(t.Context(), newLookup(engine), link.Link{Source: "db", ID: id("1")}); !errors.Is(err, engine.err) {
		t.Errorf("got %v, want the engine's error", err)
	}
}

func TestLookupAsksOnce(t *testing.T) {
	engine := &fakeEngine{containers: []docker.Container{{ID: id("1"), Name: "db", Running: true}}}
	look := newLookup(engine)
	for range 1000 {
		if _, err := resolve(t.Context(), look, link.Link{Source: "db"}); err != nil {
			t.Fatal(err)
		}
	}
	if engine.asked != 1 {
		t.Errorf("asked %d times for one source", engine.asked)
	}
}

func TestConcerns(t *testing.T) {
	l := link.Link{Source: "db", ID: id("1")}
	res := resolution{via: []string{id("1"), id("2")}}
	for _, c := range []struct {
		event docker.Event
		want  bool
	}{
		{docker.Event{Type: "container", Action: "start", Container: id("9"), Name: "db"}, true},
		{docker.Event{Type: "container", Action: "rename", Container: id("9"), Name: "other"}, false},
		{docker.Event{Type: "container", Action: "die", Container: id("1"), Name: "renamed"}, true},
		{docker.Event{Type: "container", Action: "die", Container: id("2"), Name: "joined"}, true},
		{docker.Event{Type: "network", Action: "disconnect", Container: id("1"), Name: "bridge"}, true},
		{docker.Event{Type: "network", Action: "connect", Container: id("9"), Name: "db"}, false}, // a network of that name
		{docker.Event{Type: "network", Action: "create", Name: "db"}, false},
	} {
		if got := concerns(c.event, l, res); got != c.want {
			t.Errorf("%+v: %v, want %v", c.event, got, c.want)
		}
	}
}
