package identity

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// KeepFresh renews the credential when two thirds of its life are over, until
// ctx ends. renew gets the next one from wherever the authority is. What fails
// is tried again, more often than not before the credential runs out.
func (s *Store) KeepFresh(ctx context.Context, renew func(context.Context, *Credential) (*Credential, error), log *slog.Logger) {
	for {
		c := s.Current()
		if !s.waitUntil(ctx, c.RenewAt()) {
			return
		}
		if s.Current() != c {
			continue // somebody else has
		}
		next, err := renew(ctx, c)
		if err == nil {
			err = s.Replace(next)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			log.Info("renewed the certificate", "now", next)
			continue
		}
		left := c.NotAfter.Sub(s.now())
		again := s.now().Add(retryAfter(left))
		if left > 0 {
			log.Warn("renewing the certificate; trying again", "err", err, "left", left.Round(time.Second))
		} else {
			log.Error("the certificate has expired and cannot be renewed; trying again", "err", err)
		}
		if !s.waitUntil(ctx, again) {
			return
		}
	}
}

// retryAfter leaves room for many more attempts, not all hosts' at a time.
// Once it is too late there is no hurry.
func retryAfter(left time.Duration) time.Duration {
	d := min(max(left/30, 500*time.Millisecond), 10*time.Minute)
	if left <= 0 {
		d = 10 * time.Second
	}
	return d/2 + rand.N(d/2+1)
}

// waitUntil waits for a moment of the wall clock, also when the host sleeps
// meanwhile or its clock is set. It returns false if ctx ends first, and early
// when the credential changes.
func (s *Store) waitUntil(ctx context.Context, t time.Time) bool {
	changed := s.Changed()
	for {
		left := t.Sub(s.now())
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(min(left, time.Minute))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-changed:
			timer.Stop()
			return true
		case <-timer.C:
		}
	}
}
