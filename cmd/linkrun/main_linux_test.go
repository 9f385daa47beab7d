package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/control"
)

func TestMain(m *testing.M) {
	if os.Getenv(scenarioVariable) != "" {
		os.Exit(scenarioMain())
	}
	testscript.Main(&suite{m}, map[string]func(){
		"docker":     fakeDocker,
		"ambassador": fakeAmbassador,
		"systemctl":  fakeSystemctl,
	})
}

// noExitDelay keeps programs with the race detector, which this one may be,
// from waiting a second before they exit.
const noExitDelay = "atexit_sleep_ms=0"

// suite builds the program before the tests: a static one, as it is
// installed, since what is tested is also what runs in containers.
type suite struct{ m *testing.M }

// built is where the program is, and realPath the PATH without fakes.
var built, realPath string

// builtDir returns the folder of the program. It reads the folders of the
// program's sources, so that go test does not repeat a result of before when
// they have changed.
func builtDir(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{".", "../../control", "../../docker", "../../gate", "../../link"} {
		if _, err := os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	return built
}

func (s *suite) Run() int {
	dir, err := os.MkdirTemp("", "linkrun-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // tests run it as another user, too
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	built = dir
	_, realPath, _ = strings.Cut(os.Getenv("PATH"), string(filepath.ListSeparator)) // the first entry is testscript's
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "linkrun"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building linkrun: %v\n%s", err, out)
		return 1
	}
	for _, name := range []string{pluginName, initName} {
		if err := os.Symlink("linkrun", filepath.Join(dir, name)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return s.m.Run()
}

// fakeDocker is the docker command of the scripts. It shows what it was asked
// for: one line per word, and the values it would pass into a container.
func fakeDocker() {
	words := os.Args[1:]
	run := slices.Index(words, "run")
	contains := func(sub ...string) bool { return strings.Contains(strings.Join(words, " "), strings.Join(sub, " ")) }
	switch {
	case contains("run --help") && run+2 == len(words):
		fmt.Print(fakeHelp)
		note("asked for help")
	case slices.Contains(words, "pull") && run < 0:
		fmt.Println("stdout of", strings.Join(words, " "))
		fmt.Fprintln(os.Stderr, "stderr of", strings.Join(words, " "))
		if os.Getenv("FAKE_PULL") == "fails" {
			os.Exit(1)
		}
		image := words[len(words)-1]
		if err := os.WriteFile(filepath.Join(os.Getenv("WORK"), image), nil, 0o666); err != nil {
			panic(err)
		}
	case contains("image inspect"):
		config := fakeImages()[words[len(words)-1]]
		json.NewEncoder(os.Stdout).Encode(config["Labels"])
	case contains("context inspect"):
		name := words[len(words)-1]
		host := os.Getenv("FAKE_CONTEXT_" + name)
		if host == "" {
			fmt.Fprintf(os.Stderr, "context %q: context not found\nmore\n", name)
			os.Exit(1)
		}
		fmt.Println(host)
	case slices.Contains(words, "until-told"):
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGTERM)
		fmt.Println("waiting")
		fmt.Println("told by", <-told)
		os.Exit(5)
	default:
		for _, w := range words {
			fmt.Printf("word %s\n", w)
		}
		for _, w := range words {
			if _, path, found := strings.Cut(w, "-file="); found && strings.HasPrefix(path, "/proc/self/") {
				text, err := os.ReadFile(path)
				if err != nil {
					panic(err)
				}
				for line := range strings.Lines(string(text)) {
					fmt.Print("reads ", line)
				}
			}
			if name, found := strings.CutPrefix(w, "--env="); found && !strings.Contains(name, "=") {
				if value, found := os.LookupEnv(name); found {
					fmt.Printf("passes %s=%q\n", name, value)
				} else {
					fmt.Printf("unsets %s\n", name)
				}
			}
		}
		for _, v := range os.Environ() {
			if strings.HasPrefix(v, pluginVariables) {
				fmt.Println("environment", v)
			}
		}
	}
}

// note leaves a line in a file for the script to read.
func note(line string) {
	f, err := os.OpenFile(filepath.Join(os.Getenv("WORK"), "notes"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

const fakeHelp = `
Usage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]

Options:
      --add-host list                  Add a custom host-to-IP mapping
                                       (host:ip)
  -d, --detach                         Run container in background
      --from-the-future string         Needs a value, as in
                                       --from-the-future x
  -F, --futuristic                     Does not
`

// fakeAmbassador is the agent that linkrun starts. It serves until it is
// killed, as the script's end does.
func fakeAmbassador() {
	serve := os.Args[1:]
	if len(serve) != 5 || serve[0] != "serve" || serve[1] != "--dir" || serve[3] != "--host" {
		fmt.Printf("unexpected words %q\n", serve)
		os.Exit(2)
	}
	if os.Getenv("FAKE_AMBASSADOR") == "fails" {
		fmt.Println("first line")
		fmt.Println("cannot go on")
		os.Exit(3)
	}
	note(fmt.Sprintf("ambassador %d", os.Getpid()))
	if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() && serve[4] != ofTheUnit {
		fmt.Println("not in a session of its own:", sid, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	id := cmp.Or(os.Getenv("FAKE_ENGINE_ID"), engineID)
	server, err := control.Listen(serve[2], fakeAgent{engineID: id, host: serve[4]}, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	server.Serve(ctx)
}

const ofTheUnit = "of the unit"

// fakeSystemctl has the unit of an ambassador, or not.
func fakeSystemctl() {
	note("systemctl " + strings.Join(os.Args[1:], " "))
	switch unit := os.Getenv("FAKE_UNIT"); {
	case unit == "none":
		os.Exit(1)
	case os.Args[1] == "start" && unit == "fails":
		fmt.Fprintln(os.Stderr, "Job for ambassador.service failed.")
		os.Exit(1)
	case os.Args[1] == "start":
		if err := exec.Command("ambassador", "serve", "--dir", os.Getenv("AMBASSADOR_DIR"), "--host", ofTheUnit).Start(); err != nil {
			panic(err)
		}
	}
}

// fakeAgent is what serves in tests. It can only tell who it is, and what
// there is on hostb.
type fakeAgent struct {
	control.Handler
	engineID, host string
}

func (a fakeAgent) Status() control.Status {
	return control.Status{EngineID: a.engineID, Engine: a.host}
}

func (a fakeAgent) Source(_ context.Context, host, source, recipient string) (control.Source, error) {
	refused := &control.RefusedError{Status: http.StatusNotFound,
		Message: fmt.Sprintf("host %q has no source %q that %q may be linked to", host, source, recipient), Hint: "there is a hint"}
	if host != "hostb" {
		refused.Message = fmt.Sprintf("host %q cannot be reached", host)
		return control.Source{}, refused
	}
	s := control.Source{Name: "db", Hostname: "dbhost", Env: []string{"PATH=/bin", "PASSWORD=far"}, Ports: []string{"5432/tcp", "53/udp"}}
	switch source {
	case "db", "sidecar":
	case "stopped":
		s.Name, s.Down = "stopped", "it is not running"
	case "odd":
		s.Ports = []string{"x"}
	default:
		return control.Source{}, refused
	}
	return s, nil
}
