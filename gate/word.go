// Package gate holds a recipient's entrypoint back until its links stand: the
// ambassador gives the word on a socket inside the recipient's network
// namespace, and the init in front of the entrypoint waits for it. It makes
// no links, enters no namespace and starts no program.
//
// The word is one JSON object, written by the ambassador and ended by closing
// the connection. The init sends nothing: the kernel tells either side who
// the other one is.
package gate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/linkrun/linkrun/link"
)

// Address is where the ambassador gives the word: an abstract socket, since
// that belongs to the network namespace and needs no file system that both
// sides can reach.
const Address = "@ambassador.gate"

// maxWord bounds a word in bytes. The kernel gives a program 6 MiB for its
// arguments and environment at most (fs/exec.c, _STK_LIM / 4 * 3).
const maxWord = 8 << 20

// Word is what a recipient is told before its entrypoint may run.
type Word struct {
	// Error, when not empty, is why it must not run; Hint says what to do.
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`

	// Env is the variables of the links, as "NAME=value". They replace all
	// that the links with these Prefixes set when the container was created,
	// except those in Kept, which are the image's or the user's.
	Env      []string `json:"env,omitempty"`
	Prefixes []string `json:"prefixes,omitempty"`
	Kept     []string `json:"kept,omitempty"`
}

// Apply returns environ with the links' variables made current.
func (w Word) Apply(environ []string) []string {
	fresh := make([]string, 0, len(environ)+len(w.Env))
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if !w.ofLink(name) || slices.Contains(w.Kept, name) {
			fresh = append(fresh, v)
		}
	}
	for _, v := range w.Env {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(w.Kept, name) {
			fresh = append(fresh, v)
		}
	}
	return fresh
}

func (w Word) ofLink(name string) bool {
	return slices.ContainsFunc(w.Prefixes, func(prefix string) bool { return link.IsVariable(prefix, name) })
}

// encode formats w to be written. A word that is too long to be read becomes
// one that says so.
func (w Word) encode() ([]byte, error) {
	b, err := json.Marshal(w)
	if err == nil && len(b) > maxWord {
		return Word{
			Error: fmt.Sprintf("the variables of the links take %d bytes, more than a program can be given", len(b)),
			Hint:  "start the container with --link-env ports or --link-env none",
		}.encode()
	}
	if err != nil {
		return nil, fmt.Errorf("encoding the word: %w", err)
	}
	return b, nil
}

// read reads a word up to the end of r.
func read(r io.Reader) (Word, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxWord+1))
	if err != nil {
		return Word{}, fmt.Errorf("reading the word: %w", err)
	}
	return parse(b)
}

// parse checks a word as far as it can do harm: it sets nothing but variables
// of links. A container that shares the network namespace can open the socket
// first, and shall not slip an LD_PRELOAD into its neighbour.
func parse(b []byte) (Word, error) {
	if len(b) > maxWord {
		return Word{}, errors.New("reading the word: it does not end")
	}
	var w Word
	if err := json.Unmarshal(b, &w); err != nil {
		return Word{}, fmt.Errorf("reading the word: %w", err)
	}
	for _, v := range w.Env {
		name, value, found := strings.Cut(v, "=")
		if !found || !w.ofLink(name) || strings.Contains(value, "\x00") {
			return Word{}, fmt.Errorf("reading the word: the variable %q is not one of a link", name)
		}
	}
	return w, nil
}
