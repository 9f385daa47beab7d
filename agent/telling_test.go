package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/tunnel"
)

func TestTellingErrors(t *testing.T) {
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for _, c := range []struct {
		in   []byte
		want string
	}{
		{nil, "EOF"},
		{[]byte{0, 0}, "unexpected EOF"},
		{frame("{}")[:5], "unexpected EOF"},
		{[]byte{255, 0, 0, 0}, "reading about a source: the peer broke the protocol: 4278190080 bytes"},
		{frame("[]"), "reading about a source: the peer broke the protocol: json: "},
		{frame(`{"name":"db","ports":["x"]}`), `reading about source "db": the peer broke the protocol: parsing port "x"`},
		{frame(`{"name":"db","env":["A=\u0000"]}`), `reading about source "db": the peer broke the protocol: a variable has a NUL in it`},
	} {
		if _, err := readTelling(bytes.NewReader(c.in)); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q gives %v, want %q", c.in, err, c.want)
		}
	}
	long := telling{Name: "db", Env: []string{"A=" + strings.Repeat("x", maxTelling)}}
	if _, err := long.append(nil); err == nil || err.Error() != `telling about source "db": 4194341 bytes are too many` {
		t.Errorf("error %v", err)
	}
}

// What another host says is shown to people, and logged.
func TestTellingIsClean(t *testing.T) {
	b, err := telling{Status: tunnel.Down, Reason: "a\x1b[2Jb\nc", Name: "d\tb"}.append(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readTelling(bytes.NewReader(b))
	if err != nil || got.Reason != "a?[2Jb?c" || got.Name != "d?b" {
		t.Errorf("got %+v, %v", got, err)
	}
	b, _ = telling{Status: tunnel.NoSource}.append(nil)
	if got, err = readTelling(bytes.NewReader(b)); err != nil || got.Reason != "no such source" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzTelling(f *testing.F) {
	for _, t := range []telling{
		{},
		{Name: "db", Hostname: "h", Env: []string{"A=b", "C=d\ne"}, Ports: []string{"5432/tcp", "53/udp"}},
		{Status: tunnel.Down, Reason: "it is not running", Name: "db"},
	} {
		b, err := t.append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		got, err := readTelling(r)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, tunnel.ErrViolation) {
				t.Fatalf("%q gives %v", in, err)
			}
			return
		}
		if len(got.ports()) != len(got.Ports) {
			t.Fatalf("%+v has ports that cannot be read", got)
		}
		b, err := got.append(nil)
		if err != nil {
			return // escaped, it is longer
		}
		again, err := readTelling(bytes.NewReader(b))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}
