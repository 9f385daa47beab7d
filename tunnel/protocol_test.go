package tunnel

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The tables of the protocol's description have what is spoken here.
func TestProtocolIsDescribed(t *testing.T) {
	b, err := os.ReadFile("../doc/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	rows := map[string]string{}
	for s := OK; s <= Failed; s++ {
		rows[fmt.Sprintf("| %d | %v | ", s, s)] = "### Answer"
	}
	for k := TCP; k <= Socket; k++ {
		rows[fmt.Sprintf("| %d | %v | ", k, k)] = "### Request"
	}
	for row, section := range rows {
		_, rest, _ := strings.Cut(text, section)
		rest, _, _ = strings.Cut(rest, "\n#")
		if !strings.Contains(rest, row) {
			t.Errorf("%q lacks %q", section, row)
		}
	}
	for _, number := range []struct {
		is   int64
		text string
	}{
		{firstWindow, "Its first window is 256 KiB"},
		{maxWindow, "at most 16 MiB"},
		{streamRate, "2 GiB/s times the round trip"},
		{maxCredit, "credit of more than 1 GiB"},
		{maxBody, "at most 65,524 bytes"},
		{maxNumbers, "after 2²⁹ streams"},
		{maxPings, "More than 1,000 pings in a second"},
		{flooded, "1 MiB of answers"},
		{maxRest, "at most 1,024"},
		{maxText, "at most 1,024"},
		{maxName, "at most 255 printable"},
		{maxAdopted, "32 sessions"},
		{int64(Config{}.withDefaults().MaxStreams), "has 4,096 streams"},
		{int64(Config{}.withDefaults().MaxOpening), "At most 256 streams"},
		{Config{}.withDefaults().DeadAfter.Milliseconds(), "not heard of for 8 s"},
		{userTimeout.Milliseconds(), "not confirmed for 8 s"},
		{measureEvery.Milliseconds(), "every 5 s to measure"},
		{connectTime.Milliseconds(), "A connect may take\n1.5 s"},
		{handshakeTime.Milliseconds(), "a handshake 5 s, the first answer 5 s"},
		{answerTime.Milliseconds(), "within 10 s"},
	} {
		if !strings.Contains(text, number.text) {
			t.Errorf("%q is not said", number.text)
		}
		if !says(number.text, number.is) {
			t.Errorf("%q, but it is %d", number.text, number.is)
		}
	}
}

// says tells whether text has the number, in one of the forms that are used.
func says(text string, n int64) bool {
	grouped := fmt.Sprint(n)
	if n >= 1000 {
		grouped = fmt.Sprintf("%d,%03d", n/1000, n%1000)
	}
	forms := []string{grouped, fmt.Sprintf("%d KiB", n>>10), fmt.Sprintf("%d MiB", n>>20), fmt.Sprintf("%d GiB", n>>30),
		fmt.Sprintf("%v s", float64(n)/1000)}
	if n == 1<<29 {
		forms = append(forms, "2²⁹")
	}
	for _, form := range forms {
		if strings.Contains(text, form) {
			return true
		}
	}
	return false
}
