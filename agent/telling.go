package agent

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/tunnel"
)

// telling is what the host of a source says about it to the host of a
// recipient, in answer to a watch and whenever it changes. On the stream it is
// four bytes of length and that much JSON.
type telling struct {
	Status   tunnel.Status `json:"status"` // OK, Down, or NoSource
	Reason   string        `json:"reason,omitempty"`
	Name     string        `json:"name,omitempty"` // "" when there is no source for this recipient
	Hostname string        `json:"hostname,omitempty"`
	Env      []string      `json:"env,omitempty"`   // what the recipient may know
	Ports    []string      `json:"ports,omitempty"` // that the recipient may connect to, "5432/tcp"
}

// maxTelling bounds a telling, in bytes. A program's environment has 2 MiB at
// most, execve(2).
const maxTelling = 4 << 20

func (t telling) append(b []byte) ([]byte, error) {
	body, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	if len(body) > maxTelling {
		return nil, fmt.Errorf("telling about source %q: %d bytes are too many", t.Name, len(body))
	}
	return append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...), nil
}

// readTelling reads one telling, and no further.
func readTelling(r io.Reader) (telling, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return telling{}, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxTelling {
		return telling{}, fmt.Errorf("reading about a source: %w: %d bytes", tunnel.ErrViolation, n)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n))) // grows with what really comes
	if err == nil && len(body) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return telling{}, err
	}
	var t telling
	if err := json.Unmarshal(body, &t); err != nil {
		return telling{}, fmt.Errorf("reading about a source: %w: %w", tunnel.ErrViolation, err)
	}
	return t.checked()
}

// checked is t without what has no place in a log, a hosts file or an
// environment. The other host has an identity, but need not be well.
func (t telling) checked() (telling, error) {
	t.Reason, t.Name, t.Hostname = line(t.Reason), line(t.Name), line(t.Hostname)
	for _, v := range t.Env {
		if strings.ContainsRune(v, 0) {
			return telling{}, fmt.Errorf("reading about source %q: %w: a variable has a NUL in it", t.Name, tunnel.ErrViolation)
		}
	}
	for _, p := range t.Ports {
		if _, err := link.ParsePort(p); err != nil {
			return telling{}, fmt.Errorf("reading about source %q: %w: %w", t.Name, tunnel.ErrViolation, err)
		}
	}
	if t.Status != tunnel.OK && t.Reason == "" {
		t.Reason = t.Status.String()
	}
	return t, nil
}

func line(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// ports are those of t, which has been checked.
func (t telling) ports() []link.Port {
	ports := make([]link.Port, 0, len(t.Ports))
	for _, s := range t.Ports {
		if p, err := link.ParsePort(s); err == nil {
			ports = append(ports, p)
		}
	}
	return ports
}
