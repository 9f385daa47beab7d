package main

import "testing"

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 999: "999B", 1000: "1kB", 1234: "1.23kB", 80_000: "80kB", 1_500_000: "1.5MB", 2e9: "2GB", 9.2e18: "9.2EB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPortListIsShort(t *testing.T) {
	for _, c := range []struct {
		ports []string
		want  string
	}{
		{nil, "-"},
		{[]string{"1/tcp"}, "1/tcp"},
		{[]string{"1/tcp", "2/tcp", "3/tcp", "4/udp"}, "1/tcp,2/tcp,3/tcp,4/udp"},
		{[]string{"1/tcp", "2/tcp", "3/tcp", "4/udp", "5/udp"}, "1/tcp,2/tcp,3/tcp,… (5)"},
	} {
		if got := portList(c.ports); got != c.want {
			t.Errorf("portList(%q) = %q, want %q", c.ports, got, c.want)
		}
	}
}
