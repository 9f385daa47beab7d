//go:build linux

package portmap

import (
	"log/slog"
)

// OpenRefused opens a Map where the kernel refuses the program with err.
func OpenRefused[L any](ns Namespace, sink Sink, log *slog.Logger, err error) (*Map[L], error) {
	return open[L](ns, sink, log, func(int) (program, error) { return nil, err })
}

// Keys returns how many keys the program has been told.
func (m *Map[L]) Keys() int {
	n := 0
	for _, keys := range m.ports.(*steered).have {
		n += len(keys)
	}
	return n
}
