// Package logbook keeps what is logged, for tests that read it while it is
// written. It says nothing about what a line looks like.
package logbook

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds the wait for a line that has to come.
const patience = 20 * time.Second

// Log is a log for several goroutines. The zero value is empty.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is all that was written up to now.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Only waits for a line with all of the words, and returns it. The test fails
// if none comes, or if there is another one.
func (l *Log) Only(t testing.TB, words ...string) string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		found := l.with(words)
		switch {
		case len(found) == 1:
			return found[0]
		case len(found) > 1 || time.Now().After(deadline):
			t.Fatalf("%d lines have %q, want one:\n%s", len(found), words, l)
		}
	}
}

// Has tells whether there is a line with all of the words.
func (l *Log) Has(words ...string) bool { return len(l.with(words)) > 0 }

// with is the lines that have all of the words.
func (l *Log) with(words []string) (found []string) {
next:
	for line := range strings.Lines(l.String()) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		found = append(found, strings.TrimSpace(line))
	}
	return found
}
