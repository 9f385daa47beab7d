package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Handler answers the requests. Its methods are called concurrently. One that
// is also an ICCHandler answers for what passes between containers, too, a
// PeersHandler for the sessions with other hosts, a SourceHandler for sources
// there, and a ConnectHandler for whoever connects as a recipient does.
type Handler interface {
	Status() Status
	Links() []Link
}

// Server serves a Handler on the socket of a directory it holds the lock of.
type Server struct {
	http http.Server
	ln   net.Listener
	lock *os.File
}

// ErrLocked says that another agent holds the directory.
var ErrLocked = errors.New("another ambassador serves there")

// Listen takes the lock of dir, making dir where it is missing, and opens the
// socket. The lock, not the socket file, says who serves: a socket file left
// by a killed agent is replaced. The caller calls Serve or Close.
func Listen(dir string, h Handler, log *slog.Logger) (*Server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making %q: %w", dir, err)
	}
	lock, err := takeLock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	ln, err := listen(SocketPath(dir))
	if err != nil {
		lock.Close()
		return nil, err
	}
	s := &Server{ln: ln, lock: lock}
	s.http = http.Server{
		Handler:           routes(h),
		ReadHeaderTimeout: 5 * time.Second, // a client that says nothing must not hold a connection
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Serve answers until ctx ends, then lets the requests under way finish,
// within a second. It closes the server.
func (s *Server) Serve(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		s.http.Shutdown(grace)
	})
	err := s.http.Serve(s.ln)
	if !stop() {
		<-stopped
	}
	s.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving %q: %w", s.ln.Addr(), err)
}

// Close stops at once, removes the socket and gives the lock up. It may be
// called more than once.
func (s *Server) Close() error {
	err := s.http.Close()
	s.ln.Close() // also removes the file; a no-op after http.Close closed it
	s.lock.Close()
	return err
}

func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening lock: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking %q: %w", path, ErrLocked)
		}
		return nil, fmt.Errorf("locking %q: %w", path, err)
	}
	return f, nil
}

// listen opens the socket with the permissions of the engine's own: root and
// the docker group, where there is one. Whoever may start any container may
// ask for links; nobody else, since the answers carry names and addresses.
func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replacing socket: %w", err)
	}
	// The umask closes the moment between bind and chmod.
	old := syscall.Umask(0o177)
	ln, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if gid, ok := dockerGroup(); ok {
		if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
			ln.Close()
			return nil, fmt.Errorf("giving %q to the docker group: %w", path, err)
		}
	}
	return ln, nil
}

func dockerGroup() (int, bool) {
	g, err := user.LookupGroup("docker")
	if err != nil {
		return 0, false
	}
	gid, err := strconv.Atoi(g.Gid)
	return gid, err == nil
}

func routes(h Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, h.Status()) })
	if c, ok := h.(ConnectHandler); ok {
		connectRoutes(mux, c)
	}
	if icc, ok := h.(ICCHandler); ok {
		iccRoutes(mux, icc)
	}
	if peers, ok := h.(PeersHandler); ok {
		peersRoutes(mux, peers)
	}
	if sources, ok := h.(SourceHandler); ok {
		sourceRoutes(mux, sources)
	}
	mux.HandleFunc("GET /links", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, h.Links()) })
	return mux
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
