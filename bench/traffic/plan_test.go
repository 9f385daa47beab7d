package traffic

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAccountIsReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := account{rapid.Uint64().Draw(t, "total"), rapid.Uint64().Draw(t, "bytes"), time.Duration(rapid.Int64().Draw(t, "took"))}
		b := a.append(nil)
		if len(b) != accountSize || parseAccount(b) != a {
			t.Fatalf("%+v is read as %+v", a, parseAccount(b))
		}
		d := newDatagram(wantTally, rapid.Uint64().Draw(t, "run"), rapid.Uint64().Draw(t, "number"))
		run, number := d.run(), d.number()
		d.tell(a)
		if d.account() != a || d.run() != run || d.number() != number {
			t.Fatalf("a tally of %+v is read as %+v, of run %d number %d", a, d.account(), d.run(), d.number())
		}
	})
}

// FuzzRequest: what a server takes is what a client meant.
func FuzzRequest(f *testing.F) {
	for _, r := range []request{
		{want: wantReply, reply: RequestSize},
		{want: wantLast, reply: 1_000_000},
		{want: wantSink, warmup: time.Second},
		{want: wantBulk, warmup: time.Second, duration: time.Minute},
		{want: 'x'},
	} {
		var b [RequestSize]byte
		r.put(&b)
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var b, again [RequestSize]byte
		copy(b[:], text)
		r, err := parseRequest(&b)
		if err != nil {
			return
		}
		r.put(&again)
		if back, err := parseRequest(&again); err != nil || back != r {
			t.Errorf("%+v is read as %+v, %v", r, back, err)
		}
	})
}
