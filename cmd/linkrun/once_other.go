//go:build !linux

package main

import "errors"

// Recipients are made on the engine's machine; elsewhere this only has to build.
func newMemoryFile(string) (string, error) { return "", errors.ErrUnsupported }
