package frame_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// resets is how many connections the calling thread's namespace has refused.
func resets(t testing.TB) uint64 {
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Error(err)
		return 0
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		switch {
		case words[0] != "Tcp:":
		case names == nil:
			names = words
		default:
			for i, name := range names {
				if name == "OutRsts" {
					n, err := strconv.ParseUint(words[i], 10, 64)
					if err != nil {
						t.Error(err)
					}
					return n
				}
			}
		}
	}
	t.Error("the namespace does not count what it refused")
	return 0
}
