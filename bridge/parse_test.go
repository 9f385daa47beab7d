package bridge

import (
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func seed(attributes ...*nl.RtAttr) []byte {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = 7
	body := msg.Serialize()
	for _, a := range attributes {
		body = append(body, a.Serialize()...)
	}
	return body
}

func FuzzParseLink(f *testing.F) {
	f.Add(seed())
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	info.AddRtAttr(unix.IFLA_INFO_SLAVE_KIND, nl.ZeroTerminated("bridge"))
	info.AddRtAttr(unix.IFLA_INFO_SLAVE_DATA, nil).AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	f.Add(seed(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("veth1")), nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(3)), info))
	f.Fuzz(func(t *testing.T, body []byte) {
		l, err := parseLink(body)
		if err != nil {
			return
		}
		s := stateOf([]wireLink{l})
		_ = s.String()
		s.duties(map[string]bool{l.name: true})
	})
}

func TestSeedIsRead(t *testing.T) {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	info.AddRtAttr(unix.IFLA_INFO_SLAVE_KIND, nl.ZeroTerminated("bridge"))
	info.AddRtAttr(unix.IFLA_INFO_SLAVE_DATA|unix.NLA_F_NESTED, nil).AddRtAttr(nl.IFLA_BRPORT_ISOLATED, []byte{1})
	l, err := parseLink(seed(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(3)), info))
	if err != nil || l.index != 7 || l.master != 3 || l.kind != "veth" || !l.isolated {
		t.Errorf("read %+v, %v", l, err)
	}
	for _, body := range [][]byte{nil, seed()[:15], append(seed(), 9, 0, 1, 0), append(seed(), 3, 0, 1, 0)} {
		if _, err := parseLink(body); err == nil {
			t.Errorf("%v is read", body)
		}
	}
}

// What others wrote into an alias comes out as it went in, whatever is noted
// behind it meanwhile.
func TestMarkKeepsWhatOthersWrote(t *testing.T) {
	things := rapid.SampledFrom([]string{isolated, knobs[0].name, knobs[1].name})
	rapid.Check(t, func(t *rapid.T) {
		others := mark(rapid.StringMatching(`[ -~]{0,20}[!-~]|`).Draw(t, "others"))
		m, noted := others, map[string]bool{}
		for range rapid.IntRange(0, 9).Draw(t, "n") {
			thing := things.Draw(t, "thing")
			if rapid.Bool().Draw(t, "with") {
				m, noted[thing] = m.with(thing), true
			} else {
				m, noted[thing] = m.without(thing), false
			}
			for thing, want := range noted {
				if m.has(thing) != want {
					t.Fatalf("%q has %s: %t", m, thing, !want)
				}
			}
		}
		for thing := range noted {
			m = m.without(thing)
		}
		if m != others {
			t.Fatalf("%q became %q", others, m)
		}
	})
}
