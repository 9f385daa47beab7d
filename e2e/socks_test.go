package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/enginetest"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
)

// How curl says that a proxy refused: its exit status, and in brackets the
// reply of RFC 1928.
const (
	proxyRefused = 97
	notAllowed   = "(2)"
	connRefused  = "(5)"
)

// httpSource is a container with a web server on each port, which says the
// container's name and the port. The first one is exposed.
func (h *host) httpSource(t *testing.T, name string, flags []string, ports ...int) {
	t.Helper()
	script := ""
	for _, p := range ports {
		script += fmt.Sprintf("mkdir -p /srv/%d; echo %s %d > /srv/%d/index.html; httpd -f -p %d -h /srv/%d & ", p, name, p, p, p, p)
	}
	args := append([]string{fmt.Sprintf("--expose=%d", ports[0])}, flags...)
	h.source(t, name, append(args, h.busybox, "sh", "-c", script+"wait")...)
}

// curl fetches a page from inside a container.
func (h *host) curl(t *testing.T, container string, args ...string) result {
	t.Helper()
	return run(t, h.Command(t.Context(), "docker", append([]string{"exec", container, "curl", "-sS", "--max-time", "20"}, args...)...))
}

func (h *host) curlGets(t *testing.T, container, want string, args ...string) {
	t.Helper()
	enginetest.Poll(t, soon, func() error {
		if r := h.curl(t, container, args...); r.out != want+"\n" {
			return fmt.Errorf("curl %q in %s: exit status %d, got %q, said %q; want %q", args, container, r.code, r.out, r.err, want)
		}
		return nil
	})
}

func (h *host) curlRefused(t *testing.T, container, reply string, args ...string) {
	t.Helper()
	r := h.curl(t, container, args...)
	if r.code != proxyRefused || !strings.Contains(r.err, reply) {
		t.Errorf("curl %q in %s: exit status %d, got %q, said %q; want status %d and %s", args, container, r.code, r.out, r.err, proxyRefused, reply)
	}
}

// TestSocks reaches what is linked by SOCKS5, and tries everything else.
func TestSocks(t *testing.T) {
	h := newHost(t)
	image := h.Image(t, "socks")
	h.httpSource(t, "api", []string{"--hostname", "api.example", "--label", link.LabelSocksPorts + "=8000-8010"}, 80, 8001, 9001)
	h.httpSource(t, "other", nil, 80)
	h.start(t, "web", "--dns", "203.0.113.53", "--link-socks", "--link", "api:rest", image, "sleep", "1000")
	here := recordQueries(t, h.NetNS())
	there := recordQueries(t, h.processNetNS(t, "web"))

	const proxy = "-xsocks5h://127.77.0.1:1080"
	if env := h.docker(t, "exec", "web", "env"); !strings.Contains(env, "LINK_SOCKS5=socks5h://127.77.0.1:1080\n") || strings.Contains(strings.ToUpper(env), "ALL_PROXY") {
		t.Errorf("the recipient's variables are\n%s", env)
	}
	for _, name := range []string{"rest", "REST", "api", "api.example", "127.77.0.2"} {
		h.curlGets(t, "web", "api 80", proxy, "http://"+name+"/")
	}
	h.curlGets(t, "web", "api 80", "-xsocks5://127.77.0.1:1080", "http://rest/") // curl looks the name up itself, in /etc/hosts

	// What the source adds is reached by SOCKS only.
	h.curlGets(t, "web", "api 8001", proxy, "http://rest:8001/")
	h.refuses(t, "web", "rest", 8001)

	for _, url := range []string{
		"rest:81", "rest:9001", "rest:1080", // no such port, not exposed, nor the proxy's
		"other", "web", "localhost", "example.org", "rest.example.org", "ambassador",
		h.address(t, "api"), h.address(t, "other"), h.address(t, "web"),
		"127.0.0.1", "127.77.0.1:1080", "127.77.0.3", "172.17.0.1", "0.0.0.0", "203.0.113.1", "[::1]", "[2001:db8::1]", "[::ffff:127.77.0.3]",
	} {
		h.curlRefused(t, "web", notAllowed, proxy, "http://"+url+"/")
	}
	h.docker(t, "stop", "-t", "0", "api")
	enginetest.Poll(t, soon, func() error {
		if state := h.links(t)[0].State; state != "down" {
			return fmt.Errorf("the link is %s", state)
		}
		return nil
	})
	h.curlRefused(t, "web", connRefused, proxy, "http://rest/")
	h.docker(t, "start", "api")
	h.curlGets(t, "web", "api 80", proxy, "http://rest/")

	// Connections by SOCKS are the link's, and the recipient's port stays its own.
	if l := h.links(t)[0]; l.Total == 0 || l.ToSource == 0 || l.ToRecipient == 0 {
		t.Errorf("the link has carried %+v", l)
	}
	h.docker(t, "exec", "-d", "web", "nc", "-ll", "-p", "1080", "-e", "echo", "own")
	h.answers(t, "web", "127.0.0.1", 1080, "own")
	h.curlGets(t, "web", "api 80", proxy, "http://rest/")

	if asked := slices.Concat(here.list(), there.list()); len(asked) > 0 {
		t.Errorf("names were looked up: %q", asked)
	}
	// These do show: a name that the recipient looks up, and one that the host does.
	h.Docker("exec", "web", "nslookup", "-timeout=1", "control.example", "203.0.113.53")
	there.has(t, "control")
	h.Command(t.Context(), "busybox", "timeout", "2", "busybox", "nslookup", "control.example", "127.0.0.1").Run()
	here.has(t, "control")
}

// TestAllProxy has a recipient's programs use SOCKS5 without being told.
func TestAllProxy(t *testing.T) {
	h := newHost(t)
	h.httpSource(t, "api", nil, 80)
	h.httpSource(t, "other", nil, 80)
	h.start(t, "web", "--link-socks=all-proxy", "--link", "api", h.Image(t, "socks"), "sleep", "1000")
	h.curlGets(t, "web", "api 80", "http://api/")
	h.curlRefused(t, "web", notAllowed, "http://other/")
	// Without linkrun's help, a recipient that has the label is served as well,
	// and an image's label counts for nothing.
	h.source(t, "plain", "--label", "ambassador.link.rest=api", "--label", "ambassador.socks=on", h.Image(t, "socks"), "sleep", "1000")
	h.curlGets(t, "plain", "api 80", "-xsocks5h://127.77.0.1:1080", "http://rest/")
	h.docker(t, "commit", "--change", "LABEL ambassador.socks=on", "plain", "labelled")
	t.Cleanup(func() { h.docker(t, "rmi", "labelled") })
	h.source(t, "inherits", "--label", "ambassador.link.rest=/api", "labelled", "sleep", "1000")
	h.answersHTTP(t, "inherits", "api 80", "http://127.77.0.2/")
	if r := h.curl(t, "inherits", "-xsocks5h://127.77.0.1:1080", "http://rest/"); r.code != 7 { // the connection is refused
		t.Errorf("an image's label opened an address: %+v", r)
	}
}

func (h *host) answersHTTP(t *testing.T, container, want, url string) {
	t.Helper()
	h.curlGets(t, container, want, url)
}

// TestSocksPostgreSQL has psql, which knows no proxies, go through one all the
// same.
func TestSocksPostgreSQL(t *testing.T) {
	h := newHost(t)
	h.source(t, "db", "-e", "POSTGRES_PASSWORD=secret", h.Image(t, "postgres"))
	h.start(t, "web", "--link-socks", "--link", "db:webdb", "-e", "PGPASSWORD=secret", h.Image(t, "socks"), "sleep", "1000")
	h.docker(t, "exec", "web", "sh", "-c", `printf 'strict_chain\nproxy_dns\n[ProxyList]\nsocks5 127.77.0.1 1080\n' > /etc/proxychains.conf`)
	psql := []string{"exec", "web", "proxychains4", "-q", "-f", "/etc/proxychains.conf", "psql", "-h", "webdb", "-U", "postgres", "-Atc"}
	h.eventually(t, h.address(t, "web"), append(psql, "select inet_client_addr()")...)
	// Much of it, and byte for byte.
	want := h.docker(t, "exec", "web", "psql", "-h", "webdb", "-U", "postgres", "-Atc", "select md5(string_agg(i::text, ',')) from generate_series(1, 300000) i")
	got := h.docker(t, append(psql, "select i from generate_series(1, 300000) i")...)
	if sum := h.docker(t, append(psql, "select md5(string_agg(i::text, ',')) from generate_series(1, 300000) i")...); sum != want || strings.Count(got, "\n") != 300000-1 {
		t.Errorf("by SOCKS, the sum is %s and not %s, of %d lines", sum, want, strings.Count(got, "\n")+1)
	}
	psql[slices.Index(psql, "webdb")] = "elsewhere"
	if out, err := h.Docker(append(psql, "select 1")...); err == nil {
		t.Errorf("what is not linked was reached: %s", out)
	}
}

// TestSlowHandshakes keeps more handshakes waiting than there may be. Others
// are served, and nothing is left of them.
func TestSlowHandshakes(t *testing.T) {
	h := newHost(t)
	h.httpSource(t, "api", nil, 80)
	h.start(t, "web", "--link-socks", "--link", "api", h.Image(t, "socks"), "sleep", "1000")
	const proxy = "-xsocks5h://127.77.0.1:1080"
	h.curlGets(t, "web", "api 80", proxy, "http://api/")
	before := h.agentSockets(t)

	ns, err := netns.Open(h.processNetNS(t, "web"))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var slow []net.Conn
	defer func() {
		for _, c := range slow {
			c.Close()
		}
	}()
	for range 400 {
		if err := ns.Do(func() error {
			c, err := net.Dial("tcp", link.SocksAddr.String())
			if err == nil {
				slow = append(slow, c)
				_, err = c.Write([]byte{5, 1, 0, 5, 1, 0, 3}) // and not what its name is
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		if r := h.curl(t, "web", proxy, "http://api/"); r.out != "api 80\n" {
			t.Fatalf("beside slow handshakes: %+v", r)
		}
	}
	h.curlGets(t, "web", "api 80", "http://api/") // and the link itself, of course
	for _, c := range slow {
		c.Close()
	}
	slow = nil
	enginetest.Poll(t, soon, func() error {
		if now := h.agentSockets(t); now > before {
			return fmt.Errorf("the ambassador has %d sockets, before %d", now, before)
		}
		return nil
	})
}

// agentSockets counts the sockets that the ambassador has, but for those in
// stock.
func (h *host) agentSockets(t *testing.T) (n int) {
	t.Helper()
	list, err := enginetest.FDs(h.agent.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if strings.HasPrefix(fd, "socket:") {
			n++
		}
	}
	return n
}

// processNetNS is the path of a container's network namespace.
func (h *host) processNetNS(t *testing.T, container string) string {
	t.Helper()
	return "/proc/" + h.docker(t, "inspect", "-f", "{{.State.Pid}}", container) + "/ns/net"
}

// queries is what somebody asked a name server, wherever that is.
type queries struct {
	socket *os.File
	done   chan struct{}

	mu   sync.Mutex
	seen []string
}

// recordQueries looks at all packets that come and go in a namespace, at any of
// its interfaces, until the test ends.
func recordQueries(t *testing.T, namespace string) *queries {
	t.Helper()
	ns, err := netns.Open(namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	fd := -1
	if err := ns.Do(func() (err error) {
		all := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	q := &queries{socket: os.NewFile(uintptr(fd), "packets"), done: make(chan struct{})}
	go q.record()
	t.Cleanup(func() {
		q.socket.Close()
		<-q.done
	})
	return q
}

func (q *queries) record() {
	defer close(q.done)
	packet := make([]byte, 1<<16)
	for {
		n, err := q.socket.Read(packet)
		if err != nil {
			return
		}
		if asked, ok := nameQuery(packet[:n]); ok {
			q.mu.Lock()
			q.seen = append(q.seen, asked)
			q.mu.Unlock()
		}
	}
}

// nameQuery tells whether an IP packet goes to a name server: of DNS, of
// multicast DNS or of LLMNR.
func nameQuery(p []byte) (string, bool) {
	var proto byte
	var rest []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && len(p) >= int(p[0]&15)*4:
		proto, rest = p[9], p[int(p[0]&15)*4:]
	case len(p) >= 40 && p[0]>>4 == 6:
		proto, rest = p[6], p[40:]
	}
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP || len(rest) < 8 {
		return "", false
	}
	switch binary.BigEndian.Uint16(rest[2:]) {
	case 53, 5353, 5355:
		return strings.ToLower(string(rest)), true
	}
	return "", false
}

func (q *queries) list() []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.seen)
}

func (q *queries) has(t *testing.T, word string) {
	t.Helper()
	enginetest.Poll(t, soon, func() error {
		if !slices.ContainsFunc(q.list(), func(s string) bool { return strings.Contains(s, word) }) {
			return fmt.Errorf("a query for %q was not recorded", word)
		}
		return nil
	})
}

func errorOf(r result) error {
	return fmt.Errorf("exit status %d, got %q, said %q", r.code, r.out, r.err)
}
