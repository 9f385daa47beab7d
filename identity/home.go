package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// AuthorityIn is where the authority is kept in the directory of a host that
// has it, see In.
func AuthorityIn(dir string) string { return filepath.Join(dir, "authority") }

// Joined is what a host remembers of the one whose authority let it join: who
// renews its certificate.
type Joined struct {
	Host    string `json:"host"`
	Address string `json:"address"` // HOST:PORT
}

func joinedIn(dir string) string { return filepath.Join(dir, "joined.json") }

// SaveJoined keeps j in the directory of a host, see In.
func SaveJoined(dir string, j Joined) error {
	b, err := json.Marshal(j)
	if err == nil {
		err = makeDir(dir)
	}
	if err == nil {
		err = writeFile(joinedIn(dir), append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("remembering the authority's host: %w", err)
	}
	return nil
}

// LoadJoined reads what SaveJoined has kept. It is the zero Joined for a host
// that has not joined.
func LoadJoined(dir string) (Joined, error) {
	b, err := os.ReadFile(joinedIn(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return Joined{}, nil
	}
	var j Joined
	if err == nil {
		err = json.Unmarshal(b, &j)
	}
	if err != nil {
		return Joined{}, fmt.Errorf("reading which host has the authority, in %q: %w", joinedIn(dir), err)
	}
	return j, nil
}
