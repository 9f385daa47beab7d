package e2e

import (
	"regexp"
	"strings"
	"testing"
)

// TestRefusalsAreDockers gives docker run and linkrun the same mistakes. Both
// have to refuse with the same status, linkrun in Docker's words and with a
// hint, and nothing may be left.
func TestRefusalsAreDockers(t *testing.T) {
	// The first container on the host's network has the engine keep a mount.
	e := suite.Engine(t)
	e.MustDocker(t, "run", "--rm", "--network", "host", e.Image(t, "busybox"), "true")
	h := newHostOn(t, e)
	h.echo(t, "db", nil, 5432)
	h.docker(t, "network", "create", "other")
	t.Cleanup(func() { h.docker(t, "network", "rm", "other") })
	h.source(t, "on-host", "--network", "host", h.busybox, "sleep", "1000")
	h.source(t, "stopped", h.busybox, "true")
	h.docker(t, "wait", "stopped")

	for _, c := range []struct {
		name string
		args string // before the image
		says string // of Docker's message, where it is not version-dependent
	}{
		{"empty", "--link=", "empty string specified for links"},
		{"two colons", "--link too:much:of:it", "bad format for links: too:much:of:it"},
		{"no source", "--link :alias", "could not get container for "},
		{"missing source", "--link bogus:alias", "could not get container for bogus"},
		{"missing source by id", "--link 0123456789ab:alias", "could not get container for 0123456789ab"},
		{"itself", "--name me --link me:alias", "could not get container for me"},
		{"source on the host's network", "--link on-host:alias", "conflicting options: host type networking can't be used with links"},
		{"stopped source", "--name web --link stopped:alias", "Cannot link to a non running container: /stopped AS /web/alias"},
		{"recipient on the host's network", "--network host --link db", "conflicting options: host type networking can't be used with links"},
		{"recipient in another's network", "--network container:db --link db", "conflicting options: container type network can't be used with links"},
		{"unknown flag", "--no-such-flag --link db", "unknown flag: --no-such-flag"},
		{"unknown shorthand", "-Z --link db", "unknown shorthand flag: 'Z' in -Z"},
		{"bad boolean", "--rm=perhaps --link db", `invalid argument "perhaps" for "--rm" flag`},
		{"bad value of docker's", "--memory lots --link db", ""},
		{"conflict of docker's", "--rm --restart always --link db", ""},
		{"taken name", "--name db --link db:alias", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := h.state(t)
			args := append(strings.Fields(c.args), h.busybox, "true")
			docker := run(t, h.Command(t.Context(), "docker", append([]string{"run"}, args...)...))
			if docker.code == 0 {
				t.Fatalf("docker run accepts it: %q", docker.out)
			}
			if strings.Contains(c.args, "--name web") || strings.Contains(c.args, "--name me") {
				h.Docker("rm", "-f", "web", "me") // docker leaves what it created before it failed
			} else {
				h.forgetCreated(t)
			}
			if now := h.state(t); now != before {
				t.Fatalf("cleaning up after docker did not work:\n%s\nbefore:\n%s", now, before)
			}

			r := h.try(t, args...)
			if r.code != docker.code {
				t.Errorf("exit status %d, docker's is %d; linkrun said %q, docker %q", r.code, docker.code, r.err, docker.err)
			}
			if !strings.Contains(r.err, c.says) || !strings.Contains(docker.err, c.says) && !strings.Contains(docker.err, oldClient) {
				t.Errorf("linkrun said %q, docker %q; want %q in both", r.err, docker.err, c.says)
			}
			if c.says != "" && !whatAndHint.MatchString(r.err) {
				t.Errorf("not one line what and one line what to do: %q", r.err)
			}
			if now := h.state(t); now != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", now, before)
			}
		})
	}
}

// oldClient is what docker's client says before version 28, without asking the
// engine, to a link with any --network that is not a user's.
const oldClient = "links are only supported for user-defined networks."

// whatAndHint is what a user sees of a mistake.
var whatAndHint = regexp.MustCompile(`^linkrun: [^\n]+\nlinkrun: hint: [^\n]+\n$`)

func (h *host) state(t *testing.T) string {
	t.Helper()
	s, err := h.State()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// forgetCreated removes the containers that docker run left without starting.
func (h *host) forgetCreated(t *testing.T) {
	t.Helper()
	for _, id := range strings.Fields(h.docker(t, "ps", "-aq", "--filter", "status=created")) {
		h.docker(t, "rm", "-f", id)
	}
}

// TestAcceptedOddities are specs that look wrong and that Docker takes.
func TestAcceptedOddities(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.echo(t, "other", nil, 5432)
	for _, c := range []struct {
		name, args, reach, want string
	}{
		{"form of inspect", "--link /db:/web/alias", "alias", "db"},
		{"leading slash in the alias", "--link db:/alias", "alias", "db"},
		{"same alias twice, the first wins", "--link db:alias --link other:alias", "alias", "db"},
		{"one source under two names", "--link db:one --link db:two", "two", "db"},
		{"dots and dashes", "--link db:my-db.example.com", "my-db.example.com", "db"},
		{"capitals", "--link db:DB", "DB", "db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"--rm"}, strings.Fields(c.args)...)
			if got := h.linkrun(t, append(args, h.busybox, "nc", c.reach, "5432")...); got != c.want+"\n" {
				t.Errorf("reached %q", got)
			}
		})
	}
	id := h.docker(t, "inspect", "-f", "{{.Id}}", "db")
	for _, ref := range []string{id, id[:12]} {
		if got := h.linkrun(t, "--rm", "--link", ref+":alias", h.busybox, "nc", "alias", "5432"); got != "db\n" {
			t.Errorf("by id %q reached %q", ref, got)
		}
	}
	h.source(t, "guest", "--network", "container:db", h.busybox, "sleep", "1000")
	if got := h.linkrun(t, "--rm", "--link", "guest:alias", h.busybox, "nc", "alias", "5432"); got != "db\n" {
		t.Errorf("a source in another's network reached %q", got)
	}
	// An alias that is empty is ignored, as by Docker, but not in silence.
	r := h.try(t, "--rm", "--link", "db:", h.busybox, "echo", "ran")
	if r.code != 0 || r.out != "ran\n" || !strings.Contains(r.err, "linkrun: ") {
		t.Errorf("empty alias: exit status %d, printed %q, said %q", r.code, r.out, r.err)
	}
}

// TestLabelsMakeALink has a container linked that linkrun never saw, and one
// whose label is corrupt.
func TestLabelsMakeALink(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.source(t, "web", "--label", "ambassador.link.webdb=db", h.busybox, "sleep", "1000")
	h.answers(t, "web", "127.77.0.2", 5432, "db")

	h.source(t, "corrupt", "--label", "ambassador.link.webdb=db", "--label", "ambassador.id.webdb=nonsense", h.busybox, "sleep", "1000")
	h.eventuallyLogs(t, `ambassador.id.webdb`, `hint=`)
	if got, err := h.ask("corrupt", "127.77.0.2", 5432); err == nil {
		t.Errorf("half a link answered %q", got)
	}
	var reason string
	for _, l := range h.links(t) {
		if l.Recipient == "corrupt" {
			reason = l.Reason
		}
	}
	if !strings.Contains(reason, `"nonsense"`) {
		t.Errorf("links says %q", reason)
	}
	h.answers(t, "web", "127.77.0.2", 5432, "db") // the others do not mind
}

// TestImagesMakeNoLink runs an image that asks to be let in to a container.
func TestImagesMakeNoLink(t *testing.T) {
	h := newHost(t)
	h.echo(t, "db", nil, 5432)
	h.source(t, "maker", h.busybox, "true")
	h.docker(t, "wait", "maker")
	h.docker(t, "commit", "--change", "LABEL ambassador.link.aaa=db", "maker", "greedy")
	t.Cleanup(func() { h.docker(t, "rmi", "greedy") })

	h.source(t, "intruder", "greedy", "sleep", "1000")
	h.source(t, "web", "--label", "ambassador.link.webdb=db", h.busybox, "sleep", "1000")
	h.answers(t, "web", "127.77.0.2", 5432, "db") // so the one before has been looked at, too
	h.refuses(t, "intruder", "127.77.0.2", 5432)
	if l := h.links(t); len(l) != 1 || l[0].Recipient != "web" {
		t.Errorf("links: %+v", l)
	}
	// Whoever runs it may ask for the very same link.
	if got := h.linkrun(t, "--rm", "--link", "db:aaa", "greedy", "nc", "aaa", "5432"); got != "db\n" {
		t.Errorf("reached %q", got)
	}
}
