//go:build !linux

package gate

import "errors"

// Containers run on Linux; elsewhere this only has to build.
func credentials(int) (process, error) { return process{}, errors.ErrUnsupported }
