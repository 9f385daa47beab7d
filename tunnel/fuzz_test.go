package tunnel

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// Whatever a peer sends, the session lives or ends with an error, and nothing
// is left of it.
func FuzzFrames(f *testing.F) {
	hello, _ := requests[0].append(nil)
	frames := func(all ...any) []byte {
		var b []byte
		for _, one := range all {
			switch one := one.(type) {
			case frame:
				b = one.appendTo(b)
			case []byte:
				b = append(b, one...)
			}
		}
		return b
	}
	f.Add(frames(syn(1), data(1, len(hello)), hello))
	f.Add(frames(syn(1), data(1, len(hello)), hello, frame{kind: windowFrame, flags: finFlag, stream: 1}, resetFrame(1)))
	f.Add(frames(frame{kind: dataFrame, flags: synFlag | finFlag, stream: 1, length: 3}, []byte("abc")))
	f.Add(frames(frame{kind: pingFrame, flags: synFlag, length: 1}, frame{kind: pingFrame, flags: ackFlag, length: 1}))
	f.Add(frames(frame{kind: goAwayFrame}, syn(1), syn(3), resetFrame(3), syn(3)))
	f.Add(frames(frame{kind: windowFrame, flags: synFlag | ackFlag | finFlag | rstFlag, stream: 1, length: 1 << 31}))
	f.Add(frames(frame{kind: dataFrame, flags: rstFlag, stream: 1, length: 5}, []byte("hello"), syn(1)))
	f.Add(frames(frame{kind: socketFrame, stream: 1}))
	f.Fuzz(func(t *testing.T, in []byte) {
		ta, tb := net.Pipe()
		s := Server(tb, Config{MaxStreams: 4})
		var all sync.WaitGroup
		all.Go(func() { io.Copy(io.Discard, ta) })
		all.Go(func() {
			s.Serve(func(in *Incoming) {
				in.Grant()
				io.Copy(in.Stream, in.Stream)
				in.Stream.Close()
			})
		})
		ta.Write(in)
		ta.Close()
		<-s.Done()
		err := s.Err()
		s.Close()
		all.Wait()
		if err == nil || strings.ContainsAny(err.Error(), "\n\r") {
			t.Fatalf("the session ended with %v", err)
		}
		if got := s.Stats(); got.Open != 0 || got.Buffered != 0 || got.Lent != 0 {
			t.Fatalf("left over: %+v", got)
		}
	})
}
