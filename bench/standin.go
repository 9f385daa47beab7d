package main

import (
	"fmt"
	"testing"
)

// standIn takes the place of a test where there is none, for what enginetest
// asks of one: to fail, and to clean up. The rest of testing.TB is nil.
type standIn struct {
	testing.TB
	cleanups []func()
	failed   bool
}

// failure is how standIn leaves the function that failed.
type failure struct{ error }

func (s *standIn) Helper()           {}
func (s *standIn) Cleanup(fn func()) { s.cleanups = append(s.cleanups, fn) }
func (s *standIn) Failed() bool      { return s.failed }

func (s *standIn) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (s *standIn) Error(args ...any)               { s.failed = true; s.Logf("%s", fmt.Sprint(args...)) }
func (s *standIn) Errorf(format string, args ...any) {
	s.Error(fmt.Sprintf(format, args...))
}

func (s *standIn) Fatal(args ...any) {
	s.failed = true
	panic(failure{fmt.Errorf("%s", fmt.Sprint(args...))})
}
func (s *standIn) Fatalf(format string, args ...any) { s.Fatal(fmt.Sprintf(format, args...)) }
func (s *standIn) Skipf(format string, args ...any)  { s.Fatal(fmt.Sprintf(format, args...)) }

// try runs fn, and what was registered to clean up after it.
func (s *standIn) try(fn func() error) (err error) {
	defer func() {
		if s.failed = s.failed || err != nil; s.failed && err == nil {
			err = fmt.Errorf("cleaning up failed")
		}
	}()
	defer func() {
		for i := len(s.cleanups) - 1; i >= 0; i-- {
			s.cleanups[i]()
		}
	}()
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(failure)
			if !ok {
				panic(r)
			}
			err = f.error
		}
	}()
	return fn()
}
