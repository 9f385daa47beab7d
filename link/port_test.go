package link

import (
	"slices"
	"strings"
	"testing"
)

func TestParsePort(t *testing.T) {
	for in, want := range map[string]Port{
		"5432/tcp":  {5432, TCP},
		"53/UDP":    {53, UDP},
		"1/sctp":    {1, SCTP},
		"80":        {80, TCP},
		"65535/tcp": {65535, TCP},
	} {
		if got, err := ParsePort(in); got != want || err != nil {
			t.Errorf("ParsePort(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":          `parsing port "": the number has to be 1 to 65535`,
		"0/tcp":     `parsing port "0/tcp": the number has to be 1 to 65535`,
		"65536/tcp": `parsing port "65536/tcp": the number has to be 1 to 65535`,
		"1-2/tcp":   `parsing port "1-2/tcp": the number has to be 1 to 65535`,
		"80/icmp":   `parsing port "80/icmp": the protocol has to be tcp, udp or sctp`,
		"80/":       `parsing port "80/": the protocol has to be tcp, udp or sctp`,
	} {
		if _, err := ParsePort(in); err == nil || err.Error() != want {
			t.Errorf("ParsePort(%q) gives error %v, want %s", in, err, want)
		}
	}
}

// The order of moby's TestSortPorts.
func TestComparePorts(t *testing.T) {
	got := ports(t, "6379/tcp 6376/udp 6380/tcp 6376/sctp 6381/tcp 6381/udp 6375/udp 6375/sctp")
	slices.SortFunc(got, Port.Compare)
	var text []string
	for _, p := range got {
		text = append(text, p.String())
	}
	const want = "6379/tcp 6380/tcp 6381/tcp 6375/sctp 6376/sctp 6375/udp 6376/udp 6381/udp"
	if strings.Join(text, " ") != want {
		t.Errorf("got %v, want %s", text, want)
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"5432/tcp", "53/udp", "1/SCTP", "80", "0/tcp", "65536", "/", "+1/tcp"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		p, err := ParsePort(in)
		if err != nil {
			return
		}
		if again, err := ParsePort(p.String()); again != p || err != nil {
			t.Fatalf("ParsePort(%q) = %v, and again %v, %v", in, p, again, err)
		}
	})
}
