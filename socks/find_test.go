package socks

import (
	"net/netip"
	"testing"

	"github.com/linkrun/linkrun/link"
)

func TestFind(t *testing.T) {
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 77, 0, last}) }
	hosts := []link.Host{
		{Name: "DB", Addr: addr(2)},
		{Name: "db", Addr: addr(3)},
		{Name: "webdb", Addr: addr(4)},
		{Name: "webdb", Addr: addr(5)},
		{Name: "127.77.0.9", Addr: addr(6)},
		{Name: "", Addr: addr(7)},
	}
	for host, want := range map[string]netip.Addr{
		"DB":         addr(2),
		"db":         addr(3),
		"Db":         addr(2),
		"webdb":      addr(4),
		"WEBDB":      addr(4),
		"127.77.0.4": addr(4),
		"127.77.0.7": addr(7),
		"127.77.0.9": addr(6), // a name, if somebody insists
	} {
		if got, found := Find(hosts, host); !found || got != want {
			t.Errorf("Find(%q) = %v, %v, want %v", host, got, found, want)
		}
	}
	for _, host := range []string{"", "web", "webdb2", "webdb.example.org", "localhost", "127.0.0.1", "127.77.0.1", "127.77.0.8", "0.0.0.0", "::", "::1", "8.8.8.8"} {
		if got, found := Find(hosts, host); found {
			t.Errorf("Find(%q) = %v", host, got)
		}
	}
	if got, found := Find(nil, "webdb"); found {
		t.Errorf("without hosts, Find gives %v", got)
	}
}
