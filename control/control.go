// Package control is the agent's API on its unix socket, and the client for
// it. It decides nothing: a Handler, the agent, answers.
//
// The API is HTTP with JSON bodies. The socket's file permissions are its
// access control: root, and the group that may use the engine's socket.
package control

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultDir is where an agent keeps its socket and lock when nothing else is
// said.
const DefaultDir = "/run/ambassador"

// Dir is the directory AMBASSADOR_DIR names, else DefaultDir.
func Dir() string { return cmp.Or(os.Getenv("AMBASSADOR_DIR"), DefaultDir) }

// StateDir is where the agent of a directory keeps what has to outlive it: the
// directory itself, but for one below /run, where nothing outlives a boot,
// the one of the same name below /var/lib. It follows from dir alone, so that
// a command finds it without the agent; it may not exist yet.
func StateDir(dir string) string {
	if name, found := strings.CutPrefix(filepath.Clean(dir), "/run/"); found {
		return filepath.Join("/var/lib", name)
	}
	return dir
}

// SocketPath is the agent's socket in dir.
func SocketPath(dir string) string { return filepath.Join(dir, "ambassador.sock") }

// Status says who serves.
type Status struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Engine   string    `json:"engine"`    // the engine's address
	EngineID string    `json:"engine_id"` // the engine's own id
	Since    time.Time `json:"since"`
}

// The states of a link.
const (
	StateUp   = "up"   // connections are carried
	StateDown = "down" // connections are refused; Reason says why
)

// Link is one link as `ambassador links` shows it.
type Link struct {
	Recipient string   `json:"recipient"`
	Alias     string   `json:"alias"`
	Source    string   `json:"source"`
	Address   string   `json:"address"` // the alias's, inside the recipient
	Ports     []string `json:"ports"`   // "5432/tcp"
	State     string   `json:"state"`
	Reason    string   `json:"reason,omitempty"`

	Open        int64            `json:"open"`  // connections now
	Total       int64            `json:"total"` // connections since the link is up
	ToSource    int64            `json:"to_source_bytes"`
	ToRecipient int64            `json:"to_recipient_bytes"`
	Failures    map[string]int64 `json:"failures,omitempty"` // by cause
}
