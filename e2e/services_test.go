package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/linkrun/linkrun/internal/enginetest"
)

// TestPostgreSQL works with a database over a link, and looks at the link from
// the server's side.
func TestPostgreSQL(t *testing.T) {
	h := newHost(t)
	image := h.Image(t, "postgres")
	h.source(t, "db", "-e", "POSTGRES_PASSWORD=secret", image)
	// Whoever comes from the server itself needs no password, all others do.
	h.eventually(t, "1 row", "exec", "db", "psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select 1")
	h.docker(t, "exec", "db", "sh", "-c", `printf '%s\n' 'local all all trust' 'host all all 127.0.0.1/32 trust' 'host all all samehost trust' 'host all all all scram-sha-256' > "$PGDATA/pg_hba.conf"`)
	h.docker(t, "exec", "db", "psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "select pg_reload_conf()")

	h.start(t, "web", "--link", "db:webdb", "-e", "PGPASSWORD=secret", "--entrypoint", "sleep", image, "1000")
	answer := h.docker(t, "exec", "web", "psql", "-h", "webdb", "-U", "postgres", "-Atc", "select inet_client_addr()")
	if want := h.address(t, "web"); answer != want {
		t.Errorf("the server sees its client at %q, want the recipient's address %q", answer, want)
	}
	if log := h.logs(t, "db"); !strings.Contains(log, "host="+answer) {
		t.Errorf("the server's log does not name %s:\n%s", answer, log)
	}
	if out, err := h.Docker("exec", "-e", "PGPASSWORD=", "web", "psql", "-w", "-h", "webdb", "-U", "postgres", "-c", "select 1"); err == nil {
		t.Errorf("no password was asked for: a rule for the server's own host let the link pass: %s", out)
	}
	h.docker(t, "exec", "web", "pgbench", "-h", "webdb", "-U", "postgres", "-i", "-q", "postgres")
	out := h.docker(t, "exec", "web", "pgbench", "-h", "webdb", "-U", "postgres", "-c", "8", "-j", "2", "-t", "200", "postgres")
	if !strings.Contains(out, "number of transactions actually processed: 1600/1600") {
		t.Errorf("pgbench printed\n%s", out)
	}
	// A big result, and a big copy the other way.
	out = h.docker(t, "exec", "web", "sh", "-c", `psql -h webdb -U postgres -Atc "select repeat('x', 1000) from generate_series(1, 20000)" | cksum; psql -h webdb -U postgres -qAtc "create table t(a text)" && yes 0123456789 | head -n 500000 | psql -h webdb -U postgres -c 'copy t from stdin'`)
	if !strings.Contains(out, "COPY 500000") {
		t.Errorf("copying printed\n%s", out)
	}

	// A recipient without any address is a stranger, not the server itself.
	h.start(t, "lonely", "--network", "none", "--link", "db:webdb", "-e", "PGPASSWORD=secret", "--entrypoint", "sleep", image, "1000")
	if got := h.docker(t, "exec", "lonely", "psql", "-h", "webdb", "-U", "postgres", "-Atc", "select inet_client_addr()"); got != "192.0.0.8" {
		t.Errorf("a recipient without a network is seen at %q", got)
	}
}

// TestRedis runs Redis's own benchmark over a link.
func TestRedis(t *testing.T) {
	h := newHost(t)
	image := h.Image(t, "redis")
	h.source(t, "cache", image)
	h.start(t, "web", "--link", "cache", "--entrypoint", "sleep", image, "1000")
	h.eventually(t, "PONG", "exec", "web", "redis-cli", "-h", "cache", "ping")
	out := h.docker(t, "exec", "web", "redis-benchmark", "-h", "cache", "-n", "20000", "-c", "50", "-q", "-t", "set,get,lpush,mset,lrange_100")
	if strings.Contains(strings.ToLower(out), "error") || !strings.Contains(out, "GET:") {
		t.Errorf("redis-benchmark printed\n%s", out)
	}
	clients := h.docker(t, "exec", "web", "redis-cli", "-h", "cache", "client", "list")
	if want := "addr=" + h.address(t, "web") + ":"; !strings.Contains(clients, want) {
		t.Errorf("the server does not see its client at %q: %s", want, clients)
	}
}

// eventually runs a docker command until it prints what it should.
func (h *host) eventually(t *testing.T, want string, args ...string) {
	t.Helper()
	enginetest.Poll(t, 6*soon, func() error {
		out, err := h.Docker(args...)
		if err == nil && !strings.Contains(out, want) {
			return fmt.Errorf("%q printed %q", args, out)
		}
		return err
	})
}
