package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/enginetest"
)

// allowed is the label by which a source lets hosta's containers in.
const allowed = "ambassador.allow=hosta/*"

// TestLinkBetweenHosts works with a database on another host, over the same
// link as on its own.
func TestLinkBetweenHosts(t *testing.T) {
	a, b := twoHosts(t)
	image, imageA := b.Image(t, "postgres"), a.Image(t, "postgres")
	b.source(t, "db", "-e", "POSTGRES_PASSWORD=secret", "--label", allowed, image)
	b.eventually(t, "1 row", "exec", "db", "psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1")
	b.docker(t, "exec", "db", "sh", "-c", `printf '%s\n' 'local all all trust' 'host all all 127.0.0.1/32 trust' 'host all all samehost trust' 'host all all all scram-sha-256' > "$PGDATA/pg_hba.conf"`)
	b.docker(t, "exec", "db", "psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select pg_reload_conf()")

	// As long as the link needs no session yet, one has to be made first.
	a.start(t, "web", "--link", "db@hostb:webdb", "-e", "PGPASSWORD=secret", "--entrypoint", "sleep", imageA, "1000")
	b.start(t, "web", "--link", "db:webdb", "-e", "PGPASSWORD=secret", "--entrypoint", "sleep", image, "1000")

	t.Run("pgbench", func(t *testing.T) {
		a.docker(t, "exec", "web", "pgbench", "-h", "webdb", "-U", "postgres", "-i", "-q", "postgres")
		out := a.docker(t, "exec", "web", "pgbench", "-h", "webdb", "-U", "postgres", "-c", "8", "-j", "2", "-t", "200", "postgres")
		if !strings.Contains(out, "number of transactions actually processed: 1600/1600") {
			t.Errorf("pgbench printed\n%s", out)
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "actually processed") || strings.Contains(line, "tps") {
				t.Log(strings.TrimSpace(line))
			}
		}
		if got := a.docker(t, "exec", "web", "psql", "-h", "webdb", "-U", "postgres", "-Atc", "select inet_client_addr()"); got != "192.0.0.8" {
			t.Errorf("the server sees a client of another host at %q", got)
		}
		if out, err := a.Docker("exec", "-e", "PGPASSWORD=", "web", "psql", "-w", "-h", "webdb", "-U", "postgres", "-c", "select 1"); err == nil {
			t.Errorf("no password was asked for: a rule about addresses let another host pass: %s", out)
		}
		out = a.docker(t, "exec", "web", "sh", "-c", `psql -h webdb -U postgres -qAtc "create table t(a text)" && yes 0123456789 | head -n 500000 | psql -h webdb -U postgres -c 'copy t from stdin'`)
		if !strings.Contains(out, "COPY 500000") {
			t.Errorf("copying printed\n%s", out)
		}
	})

	t.Run("variables and hosts", func(t *testing.T) {
		for what, format := range map[string]string{
			"variables": "{{json .Config.Env}}",
			"hosts":     "{{json .HostConfig.ExtraHosts}}",
		} {
			far, near := inspected(t, a, "web", format), inspected(t, b, "web", format)
			if !slices.Equal(far, near) {
				t.Errorf("%s of the link to another host\n%q\nof the local one\n%q", what, far, near)
			}
			t.Logf("%d %s, equal", len(far), what)
		}
		far, near := environment(t, a, "web"), environment(t, b, "web")
		if !slices.Equal(far, near) || !slices.Contains(far, "WEBDB_ENV_POSTGRES_PASSWORD=secret") {
			t.Errorf("the processes' variables of the link to another host\n%q\nof the local one\n%q", far, near)
		}
		l := a.link(t, "web")
		if l.Source != "db@hostb" || l.State != control.StateUp || l.Total == 0 || l.ToSource < 5_000_000 || !slices.Equal(l.Ports, []string{"5432/tcp"}) {
			t.Errorf("links says %+v", l)
		}
	})

	t.Run("nothing else listens", func(t *testing.T) {
		for _, h := range []*host{a, b} {
			out, err := h.Command(t.Context(), "ss", "-H", "-tuln").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); len(lines) != 1 || !strings.Contains(lines[0], ":7443 ") {
				t.Errorf("these ports are open on a host:\n%s", out)
			}
			t.Logf("ss: %s", strings.Join(strings.Fields(string(out)), " "))
		}
	})

	t.Run("nothing but its ports", func(t *testing.T) {
		if _, err := a.ask("web", "webdb", 5433); err == nil {
			t.Error("a port that is not exposed answers")
		}
	})
}

// inspected is a list from docker inspect, in order.
func inspected(t *testing.T, h *host, container, format string) []string {
	t.Helper()
	var list []string
	if err := json.Unmarshal([]byte(h.docker(t, "inspect", "-f", format, container)), &list); err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// environment is the link's variables of a container's first process.
func environment(t *testing.T, h *host, container string) []string {
	t.Helper()
	vars := strings.Split(h.docker(t, "exec", container, "cat", "/proc/1/environ"), "\x00")
	vars = slices.DeleteFunc(vars, func(v string) bool { return !strings.HasPrefix(v, "WEBDB_") })
	slices.Sort(vars)
	return vars
}

// link is the only link of a recipient.
func (h *host) link(t *testing.T, recipient string) control.Link {
	t.Helper()
	var found []control.Link
	for _, l := range h.links(t) {
		if l.Recipient == recipient {
			found = append(found, l)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%q has the links %+v", recipient, found)
	}
	return found[0]
}

// down waits until a recipient's link is down for a reason.
func (h *host) down(t *testing.T, recipient, reason string) {
	t.Helper()
	enginetest.Poll(t, 2*soon, func() error {
		if l := h.link(t, recipient); l.State != control.StateDown || !strings.Contains(l.Reason, reason) {
			return fmt.Errorf("the link is %s: %s", l.State, l.Reason)
		}
		return h.refused(recipient, "webdb", 5432)
	})
	t.Logf("down: %s", h.link(t, recipient).Reason)
}

// TestHostsComeAndGo takes a link between hosts through all that may happen to
// either end.
func TestHostsComeAndGo(t *testing.T) {
	a, b := twoHosts(t)
	b.echo(t, "db", []string{"--label", allowed, "-e", "WHICH=first"}, 5432)
	a.start(t, "web", "--link", "db@hostb:webdb", a.busybox, "sleep", "1000")
	a.answers(t, "web", "webdb", 5432, "db")

	t.Run("source stopped and started", func(t *testing.T) {
		b.docker(t, "stop", "-t", "0", "db")
		a.down(t, "web", `host "hostb" says: container "db" is not running`)
		b.docker(t, "start", "db")
		a.back(t, "db")
	})
	t.Run("source restarted", func(t *testing.T) {
		b.docker(t, "restart", "-t", "0", "db")
		a.back(t, "db")
	})
	t.Run("recipient restarted", func(t *testing.T) {
		a.docker(t, "restart", "-t", "0", "web")
		a.back(t, "db")
	})
	t.Run("source re-created with other variables", func(t *testing.T) {
		b.docker(t, "rm", "-f", "db")
		a.down(t, "web", `there is no source "db" that "web" may be linked to`)
		b.docker(t, append([]string{"run", "-d", "--name", "db"}, echoArgs(b, []string{"--label", allowed, "-e", "WHICH=second"}, "new", 5432, 6543)...)...)
		a.back(t, "new")
		a.answers(t, "web", "webdb", 6543, "new")
		a.docker(t, "restart", "-t", "0", "web")
		a.back(t, "new")
		vars := environment(t, a, "web")
		if !slices.Contains(vars, "WEBDB_ENV_WHICH=second") || !slices.Contains(vars, "WEBDB_PORT_6543_TCP_PORT=6543") {
			t.Errorf("after a restart the recipient has %q", vars)
		}
	})
	t.Run("the recipient's ambassador killed", func(t *testing.T) {
		a.agent.kill()
		a.startAgent(t)
		a.back(t, "new")
	})
	t.Run("the source's ambassador killed", func(t *testing.T) {
		b.agent.kill()
		a.down(t, "web", `host "hostb" cannot be reached`)
		b.startAgent(t)
		a.back(t, "new")
	})
	t.Run("recipient renamed", func(t *testing.T) {
		a.docker(t, "rename", "web", "shop")
		defer a.back(t, "new")
		defer a.docker(t, "rename", "shop", "web")
		a.answers(t, "shop", "webdb", 5432, "new")
	})
	t.Run("the cable pulled", func(t *testing.T) {
		cable := func(state string) {
			t.Helper()
			if out, err := b.Command(t.Context(), "ip", "link", "set", wire, state).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		cable("down")
		a.down(t, "web", `host "hostb" cannot be reached`)
		cable("up")
		a.back(t, "new")
	})
}

// TestHeldConnections has a host go while clients come: with --hold they wait
// for it.
func TestHeldConnections(t *testing.T) {
	a, b := twoHosts(t)
	b.echo(t, "db", []string{"--label", allowed}, 5432)
	a.start(t, "web", "--link", "db@hostb:webdb", a.busybox, "sleep", "1000")
	a.answers(t, "web", "webdb", 5432, "db")
	a.agent.stop(t)
	a.serve = append(a.serve, "--hold", "20s")
	a.startAgent(t)
	a.answers(t, "web", "webdb", 5432, "db")

	b.agent.kill()
	enginetest.Poll(t, soon, func() error {
		if l := a.link(t, "web"); l.State != control.StateDown || !strings.Contains(l.Reason, `host "hostb" cannot be reached`) {
			return fmt.Errorf("the link is %s: %s", l.State, l.Reason)
		}
		return nil
	})
	answer := make(chan string, 1)
	go func() {
		out, err := a.Docker("exec", "web", "nc", "-w", "15", "webdb", "5432")
		answer <- fmt.Sprint(out, err)
	}()
	enginetest.Poll(t, soon, func() error {
		if open := a.link(t, "web").Open; open != 1 {
			return fmt.Errorf("%d connections wait", open)
		}
		return nil
	})
	b.startAgent(t)
	if got := <-answer; got != "db<nil>" {
		t.Errorf("a client that had to wait got %q", got)
	}
}

// TestDatagramsBetweenHosts resolves names over a link to a server on another
// host, by UDP and by TCP.
func TestDatagramsBetweenHosts(t *testing.T) {
	a, b := twoHosts(t)
	image := a.Image(t, "dns")
	b.source(t, "ns", "--label", allowed, b.Image(t, "dns"))
	a.start(t, "web", "--link", "ns@hostb:resolver", image)
	a.resolves(t, "resolver")
	a.resolves(t, "127.0.0.1") // the recipient's own, on the same port
	a.eventually(t, "4444444444", "exec", "web", "kdig", "@resolver", "big.test", "TXT")
	out := a.docker(t, "exec", "web", "sh", "-c",
		"for i in $(seq 300); do kdig +short +retry=0 +time=5 @resolver a.test & [ $((i % 30)) = 0 ] && wait; done; wait")
	got := strings.Count(out, "192.0.2.1")
	t.Logf("%d of 300 clients got their answer", got)
	if got != 300 {
		t.Errorf("%d of 300 clients got their answer", got)
	}
	b.docker(t, "restart", "-t", "0", "ns")
	a.resolves(t, "resolver")
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	// As editors do: nobody reads half of it.
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// TestNoIdentity asks for another host where nobody has said who this one is.
func TestNoIdentity(t *testing.T) {
	h := newHostOn(t, suite.Engine(t), "--identity", filepath.Join(t.TempDir(), "none"))
	h.eventuallyLogs(t, "msg=ready") // nothing of the engine's changes any more
	before, err := h.State()
	if err != nil {
		t.Fatal(err)
	}
	r := h.try(t, "--name", "web", "--link", "db@hostb:webdb", h.busybox, "true")
	want := "linkrun: host \"hostb\" cannot be reached: this host has no identity, by which others would know it\n" +
		"linkrun: hint: make one with `ambassador ca init`, or with `ambassador token` there and `ambassador join` here\n"
	if r.code != 125 || r.out != "" || r.err != want {
		t.Errorf("exit status %d, printed\n%s%s", r.code, r.out, r.err)
	}
	if after, err := h.State(); err != nil || after != before {
		t.Errorf("the refusal left something behind (%v):\n%s", err, after)
	}
	// A container that asks by its label runs, with its link down.
	h.source(t, "web", "--label", "ambassador.link.webdb=db@hostb", h.busybox, "sleep", "1000")
	enginetest.Poll(t, soon, func() error {
		l := h.links(t)
		if len(l) != 1 || l[0].State != control.StateDown || !strings.Contains(l[0].Reason, "has no identity") {
			return fmt.Errorf("links: %+v", l)
		}
		return nil
	})
	if out, err := h.Docker("exec", "web", "nc", "-w", "2", "127.77.0.2", "5432"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("connecting printed %q, %v", out, err)
	}
}

// TestPermissions asks for what nobody has allowed, and takes back what
// somebody had.
func TestPermissions(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "policy")
	writeFile(t, rules, "# nothing yet\n")
	a, b := twoHosts(t, "--policy", rules)
	b.echo(t, "closed", nil, 5432)
	b.echo(t, "open", []string{"--label", "ambassador.allow=hosta/web:5432", "--label", "ambassador.allow.env=ports", "-e", "SECRET=x"}, 5432, 6543)
	b.source(t, "held", append([]string{"--expose=7000", b.busybox}, "nc", "-ll", "-p", "7000", "-e", "cat")...)
	a.eventuallyLogs(t, "msg=ready")
	before, err := a.State()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("refused", func(t *testing.T) {
		for _, c := range []struct{ name, link, err, hint string }{
			{"no label", "closed@hostb", `host "hostb" has no source "closed" that "web" may be linked to`,
				"there, a container of that name has to allow it: --label ambassador.allow=hosta/web"},
			{"no container", "none@hostb", `host "hostb" has no source "none" that "web" may be linked to`,
				"there, a container of that name has to allow it: --label ambassador.allow=hosta/web"},
			{"no host", "db@hostc", `host "hostc" cannot be reached: `, "does `ambassador serve --listen` run there, and is its address known here? See `ambassador peers`"},
			{"this host", "db@hosta", `host "hosta" is this host`, "link to it without the host: db"},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := a.try(t, "--name", "web", "--link", c.link+":webdb", a.busybox, "true")
				lines := strings.Split(strings.TrimSuffix(r.err, "\n"), "\n")
				if r.code != 125 || r.out != "" || len(lines) != 2 || !strings.HasPrefix(lines[0], "linkrun: "+c.err) || lines[1] != "linkrun: hint: "+c.hint {
					t.Errorf("exit status %d, printed\n%s%s", r.code, r.out, r.err)
				}
				t.Logf("%s", strings.Join(lines, " / "))
			})
		}
		if after, err := a.State(); err != nil || after != before {
			t.Errorf("refusals left something behind (%v):\n%s", err, after)
		}
		b.eventuallyLogs(t, "audit: deny", "host=hosta", "recipient=web", "source=closed")
	})

	t.Run("by label", func(t *testing.T) {
		a.start(t, "web", "--link", "open@hostb:webdb", a.busybox, "sleep", "1000")
		a.answers(t, "web", "webdb", 5432, "open")
		if _, err := a.ask("web", "webdb", 6543); err == nil {
			t.Error("a port that the label does not name answers")
		}
		if vars := environment(t, a, "web"); slices.ContainsFunc(vars, func(v string) bool { return strings.Contains(v, "SECRET") || strings.Contains(v, "6543") }) {
			t.Errorf("the recipient was told %q", vars)
		}
		b.eventuallyLogs(t, "audit: allow", "host=hosta", "recipient=web", "source=open", "port=5432/tcp", "label")
		if r := a.try(t, "--name", "other", "--link", "open@hostb", a.busybox, "true"); r.code != 125 {
			t.Errorf("another recipient is let in: exit status %d, %s", r.code, r.err)
		}
	})

	t.Run("withdrawn", func(t *testing.T) {
		writeFile(t, rules, "allow hosta/op held:7000\n")
		enginetest.Poll(t, soon, func() error {
			if r := a.try(t, "--rm", "--name", "op", "--link", "held@hostb", a.busybox, "true"); r.code != 0 {
				return fmt.Errorf("exit status %d, %s", r.code, r.err)
			}
			return nil
		})
		a.start(t, "op", "--link", "held@hostb", a.busybox, "sh", "-c",
			"mkfifo /f; sleep 1000 > /f & (echo hello; cat /f) | nc held 7000; echo over; sleep 1000")
		a.eventually(t, "hello", "logs", "op")
		start := time.Now()
		writeFile(t, rules, "# not any more\n")
		enginetest.Poll(t, soon, func() error {
			if open := a.link(t, "op").Open; open != 0 {
				return fmt.Errorf("%d connections are open", open)
			}
			return nil
		})
		t.Logf("cut after %v", time.Since(start).Round(time.Millisecond))
		b.eventuallyLogs(t, "audit: cut", "host=hosta", "recipient=op", "source=held", "port=7000/tcp", "since=", "policy:1")
		enginetest.Poll(t, soon, func() error { return a.refused("op", "held", 7000) })
		t.Logf("%s", a.link(t, "op").Reason)
	})
}
