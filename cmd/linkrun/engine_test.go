package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// fakeEngine answers as much of the Engine API as linkrun asks for, and takes
// containers to be created, which it then refuses.
type fakeEngine struct {
	version string // "28.5.2" when empty
	pulled  string // a folder with a file for each image that was pulled

	mu      sync.Mutex
	created []created
}

// created is what a docker CLI wanted to have.
type created struct {
	query string
	body  map[string]any
}

const engineID = "6a9b1c4e-fake"

// id makes a container's id of one digit.
func id(digit string) string { return strings.Repeat(digit, 64) }

type object = map[string]any

// The containers of the fake engine.
func fakeContainers() map[string]object {
	list := []object{
		fakeContainer("db", id("a"), object{
			"Env":          []string{"PATH=/bin", "PASSWORD=gordon", "URL=a=b", "KEY=1\n2"},
			"ExposedPorts": object{"5432/tcp": object{}},
		}),
		fakeContainer("cache", id("b"), object{"ExposedPorts": object{"6379/tcp": object{}, "6380/tcp": object{}, "53/udp": object{}}}),
		fakeContainer("stopped", id("c"), object{}),
		fakeContainer("onhost", id("d"), object{}),
		fakeContainer("joined", id("e"), object{}),
		fakeContainer("twice", id("f"), object{}),
		fakeContainer("lost", id("1"), object{}),
		fakeContainer("circle", id("2"), object{}),
		fakeContainer("huge", id("3"), object{"ExposedPorts": manyPorts(20_000)}),
		fakeContainer("nohost", id("4"), object{"Hostname": ""}),
	}
	byName := make(map[string]object)
	for _, c := range list {
		name := strings.TrimPrefix(c["Name"].(string), "/")
		byName[name], byName[c["Id"].(string)] = c, c
	}
	byName["stopped"]["State"] = object{"Running": false}
	for name, mode := range map[string]string{
		"onhost": "host", "joined": "container:" + id("a"), "twice": "container:" + id("e"),
		"lost": "container:" + id("9"), "circle": "container:" + id("2"),
	} {
		byName[name]["HostConfig"] = object{"NetworkMode": mode}
	}
	return byName
}

func fakeContainer(name, id string, config object) object {
	if _, set := config["Hostname"]; !set {
		config["Hostname"] = id[:12]
	}
	return object{
		"Id": id, "Name": "/" + name, "Config": config,
		"State":      object{"Running": true, "Pid": 4242},
		"HostConfig": object{"NetworkMode": "default"},
	}
}

func manyPorts(n int) object {
	ports := object{}
	for i := range n {
		ports[fmt.Sprintf("%d/tcp", i+1)] = object{}
	}
	return ports
}

// The images of the fake engine, all of which have the same id.
func fakeImages() map[string]object {
	former := strings.Repeat("7", 64)
	return map[string]object{
		"app": {"Entrypoint": []string{"/entry", "-x"}, "Cmd": []string{"serve", "--all"},
			"Env": []string{"PATH=/bin", "DB_PORT=of the image", "WEBDB_ENV_PASSWORD=of the image"}},
		"bare":   {"Cmd": []string{"sh"}},
		"empty":  {},
		"late":   {"Cmd": []string{"sh"}}, // has to be pulled
		"orphan": {"Entrypoint": []string{initPath}},
		"committed": {
			"Entrypoint": []string{initPath}, "Cmd": []string{"--timeout=3s", "--entrypoint=2", "--", "/entry", "-x", "serve"},
			"Env": []string{"DB_PORT=stale", "DB_NAME=of the image", "OLD_PORT=stale", "OTHER=1",
				"LINK_SOCKS5=socks5h://127.77.0.1:1080", "ALL_PROXY=socks5h://127.77.0.1:1080", "all_proxy=of the image"},
			"Labels": object{"ambassador.link.db": "db", "ambassador.id.db": former, "ambassador.link.old": "old",
				"ambassador.env": "ports", "ambassador.env.kept": "DB_NAME", "ambassador.socks": "all-proxy", "other": "label"},
		},
	}
}

func (e *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := regexp.MustCompile(`^/v1\.\d+`).ReplaceAllString(r.URL.Path, "")
	w.Header().Set("Api-Version", "1.51")
	w.Header().Set("Ostype", "linux")
	name := func(prefix, suffix string) string {
		return strings.TrimSuffix(strings.TrimPrefix(path, prefix), suffix)
	}
	switch {
	case path == "/_ping":
		fmt.Fprint(w, "OK")
	case path == "/info":
		answer(w, http.StatusOK, object{"ID": engineID, "ServerVersion": cmp.Or(e.version, "28.5.2")})
	case path == "/containers/create":
		c := created{query: r.URL.RawQuery}
		if err := json.NewDecoder(r.Body).Decode(&c.body); err != nil {
			panic(err)
		}
		e.mu.Lock()
		e.created = append(e.created, c)
		e.mu.Unlock()
		answer(w, http.StatusConflict, object{"message": "the fake engine makes no container"})
	case strings.HasPrefix(path, "/containers/"):
		name := name("/containers/", "/json")
		if c, found := fakeContainers()[name]; found {
			answer(w, http.StatusOK, c)
			return
		}
		if name == "two" {
			answer(w, http.StatusBadRequest, object{"message": "multiple IDs found with provided prefix: two"})
			return
		}
		answer(w, http.StatusNotFound, object{"message": "No such container: " + name})
	case strings.HasPrefix(path, "/images/"):
		name := name("/images/", "/json")
		config, found := fakeImages()[name]
		if name == "late" {
			_, err := os.Stat(filepath.Join(e.pulled, "late:latest"))
			found = err == nil
		}
		if !found {
			answer(w, http.StatusNotFound, object{"message": "No such image: " + name})
			return
		}
		answer(w, http.StatusOK, object{"Id": "sha256:" + id("0"), "Config": config})
	default:
		answer(w, http.StatusNotFound, object{"message": "not faked: " + path})
	}
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// serve lets the engine answer at a socket until stop is called, which
// returns the address.
func (e *fakeEngine) serve(socket string) (host string, stop func(), err error) {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: e}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ln)
	}()
	return "unix://" + socket, func() {
		server.Close()
		<-done
	}, nil
}

// startEngine serves an engine for the time of a test.
func startEngine(t testing.TB, e *fakeEngine) (host string) {
	t.Helper()
	// Not t.TempDir: its name can be too long for a socket.
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		t.Fatal(err)
	}
	host, stop, err := e.serve(filepath.Join(dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		os.RemoveAll(dir)
	})
	return host
}

// last takes the container that was asked for last.
func (e *fakeEngine) last() (created, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.created) == 0 {
		return created{}, false
	}
	c := e.created[len(e.created)-1]
	e.created = nil
	return c, true
}
