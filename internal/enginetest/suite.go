package enginetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Suite is what the tests of one package share: an engine and the project's
// binaries, each made when a test first asks for it. The zero Suite is ready:
//
//	var suite enginetest.Suite
//
//	func TestMain(m *testing.M) { suite.Main(m) }
type Suite struct {
	Options Options // of the engine

	mu       sync.Mutex
	engine   *Engine
	binaries *Binaries
	failed   error // why there is no engine: to start one is tried once
}

// Main runs the tests, and then, also when they are interrupted, stops what
// they shared.
func (s *Suite) Main(m *testing.M) {
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupt
		s.close()
		os.Exit(1)
	}()
	code := m.Run()
	if err := s.close(); err != nil {
		fmt.Fprintln(os.Stderr, "enginetest:", err)
		code = 1
	}
	os.Exit(code)
}

func (s *Suite) close() error {
	s.mu.Lock() // and keep it: nothing is to start any more
	var errs []error
	if s.engine != nil {
		errs = append(errs, s.engine.stop())
	}
	if s.binaries != nil {
		errs = append(errs, os.RemoveAll(filepath.Dir(s.binaries.Dir)))
	}
	return errors.Join(errs...)
}

// Engine is the engine the tests share. It skips the test where there can be
// none; see Require.
func (s *Suite) Engine(t testing.TB) *Engine {
	t.Helper()
	Require(t, Root, Dockerd)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil && s.failed == nil {
		s.engine, s.failed = start(s.Options)
	}
	if s.failed != nil {
		t.Fatal(s.failed)
	}
	s.engine.logOnFailure(t)
	return s.engine
}

// Binaries are the project's programs, made from the checkout as it is.
type Binaries struct {
	Dir        string // as `make build` makes it: static, and nothing else in it
	Linkrun    string
	Ambassador string

	// Checked is the ambassador that exits with status 66 if it had a data
	// race. Empty unless the tests themselves run under the race detector.
	Checked string
}

// Binaries builds the programs, once.
func (s *Suite) Binaries(t testing.TB) Binaries {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.binaries == nil {
		b, err := build()
		if err != nil {
			t.Fatal(err)
		}
		s.binaries = b
	}
	return *s.binaries
}

func build() (_ *Binaries, err error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	top := folder(newName()) // swept up like an engine's, should the test be killed
	if err := os.Mkdir(top, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(top)
		}
	}()
	dir := filepath.Join(top, "bin")
	b := &Binaries{
		Dir:        dir,
		Linkrun:    filepath.Join(dir, "linkrun"),
		Ambassador: filepath.Join(dir, "ambassador"),
	}
	if err := goBuild(root, "CGO_ENABLED=0", "-trimpath", "-o", dir+"/", "./cmd/linkrun", "./cmd/ambassador"); err != nil {
		return nil, err
	}
	if raceDetector {
		b.Checked = filepath.Join(top, "ambassador-checked")
		if err := goBuild(root, "CGO_ENABLED=1", "-race", "-o", b.Checked, "./cmd/ambassador"); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func goBuild(root, env string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", args[len(args)-1], err, out)
	}
	return nil
}
