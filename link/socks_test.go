package link

import (
	"slices"
	"strings"
	"testing"
)

func TestSocks(t *testing.T) {
	for value, want := range map[string]string{
		"off":       "",
		"on":        "LINK_SOCKS5=socks5h://127.77.0.1:1080",
		"all-proxy": "LINK_SOCKS5=socks5h://127.77.0.1:1080 ALL_PROXY=socks5h://127.77.0.1:1080 all_proxy=socks5h://127.77.0.1:1080",
	} {
		s, err := ParseSocks(value)
		if got := strings.Join(s.Variables(), " "); err != nil || got != want || s.On() != (want != "") {
			t.Errorf("ParseSocks(%q) = %q, %v: on %v, variables %q", value, s, err, s.On(), got)
		}
	}
	for _, value := range []string{"", "true", "ON", "all"} {
		if s, err := ParseSocks(value); err == nil || err.Error() != "it has to be on, off or all-proxy" || s.On() {
			t.Errorf("ParseSocks(%q) = %q, %v", value, s, err)
		}
	}
}

func TestSocksLabel(t *testing.T) {
	image := map[string]string{LabelSocks: "all-proxy"}
	if s, err := ParseLabels(WithoutInherited(image, image)); err != nil || s.Socks.On() {
		t.Errorf("an image gives its containers a SOCKS5 address: %q, %v", s.Socks, err)
	}
	own := Set{Socks: SocksAll}
	labels := own.Labels()
	labels[LabelSocks] = Distinguish(LabelSocks, labels[LabelSocks], image)
	if s, err := ParseLabels(WithoutInherited(labels, image)); err != nil || s.Socks != SocksAll {
		t.Errorf("what the user asks for is taken for the image's: %q, %v", s.Socks, err)
	}
	for _, off := range []Set{{}, {Socks: SocksOff}} {
		if labels := off.Labels(); len(labels) > 0 {
			t.Errorf("without SOCKS there are labels %q", labels)
		}
	}
	_, err := ParseLabels(map[string]string{LabelSocks: "yes"})
	if want := `parsing label "ambassador.socks" with value "yes": it has to be on, off or all-proxy`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if !IsLabel(LabelSocks) || IsLabel(LabelSocksPorts) {
		t.Error("a recipient's labels and a source's are confused")
	}
}

func TestParseSocksPorts(t *testing.T) {
	probes := []uint16{0, 1, 79, 80, 81, 7999, 8000, 8005, 8010, 8011, 9000, 65535}
	for value, want := range map[string][]uint16{
		"all":            probes[1:],
		"80":             {80},
		"8000-8010,80":   {80, 8000, 8005, 8010},
		"65535-65535":    {65535},
		"80,80,79-81":    {79, 80, 81},
		"8000-8010,9000": {8000, 8005, 8010, 9000},
	} {
		p, err := ParseSocksPorts(value)
		if err != nil {
			t.Errorf("ParseSocksPorts(%q): %v", value, err)
		}
		for _, port := range probes {
			if got := p.Contain(port); got != slices.Contains(want, port) {
				t.Errorf("%q has port %d: %v", value, port, got)
			}
		}
	}
	for value, item := range map[string]string{
		"": "", "0": "0", "65536": "65536", "a": "a", "80,": "", "80 ,81": "80 ", "90-80": "90-80", "-80": "-80", "80-": "80-",
		"1-2-3": "1-2-3", "80/tcp": "80/tcp", "ALL": "ALL", "+80": "+80",
	} {
		p, err := ParseSocksPorts(value)
		want := `"` + item + `" has to be a port from 1 to 65535, or a range such as 8000-8010`
		if err == nil || err.Error() != want || len(p) > 0 {
			t.Errorf("ParseSocksPorts(%q) = %v, %v, want error %s", value, p, err, want)
		}
	}
}

func FuzzParseSocksPorts(f *testing.F) {
	for _, s := range []string{"all", "80", "8000-8010,9000", "1-65535", "0", "-", ","} {
		f.Add(s, uint16(80))
	}
	f.Fuzz(func(t *testing.T, s string, port uint16) {
		p, err := ParseSocksPorts(s)
		if err != nil && len(p) > 0 {
			t.Fatalf("%q gives %v with its error", s, p)
		}
		if p.Contain(0) {
			t.Fatalf("%q has port 0", s)
		}
		if err != nil && p.Contain(port) {
			t.Fatalf("%q, which is wrong, has port %d", s, port)
		}
	})
}
