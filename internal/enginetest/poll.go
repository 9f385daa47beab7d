package enginetest

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// Poll asks until cond returns nil, and fails the test with what it returned
// last if that takes too long.
func Poll(t testing.TB, within time.Duration, cond func() error) {
	t.Helper()
	if err := until(within, cond); err != nil {
		t.Fatal(err)
	}
}

func until(within time.Duration, cond func() error) error {
	deadline := time.Now().Add(within)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := cond()
		if err == nil {
			return nil
		}
		if perm := (*permanentError)(nil); errors.As(err, &perm) {
			return perm.error
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still after %v: %w", within, err)
		}
		time.Sleep(pause)
	}
}

// permanent marks an error that asking again does not change.
func permanent(err error) error { return &permanentError{err} }

type permanentError struct{ error }
