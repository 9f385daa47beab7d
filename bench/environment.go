package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fact is a line of what a run was made on and with.
type fact struct{ name, value string }

func environment(ctx context.Context, b *bench, args []string, started time.Time) []fact {
	facts := []fact{
		{"date", started.UTC().Format("2006-01-02")},
		{"command", strings.TrimSpace("go run ./bench " + strings.Join(args, " "))},
		{"measured", fmt.Sprintf("%s of every peer in turn, %v each, in %v",
			plural(b.rounds, "round"), b.time, time.Since(started).Round(time.Second))},
		{"revision", revision(ctx)},
		{"machine", machine()},
		{"kernel", kernel()},
		{"congestion control", setting("net/ipv4/tcp_congestion_control")},
		{"rules on the bridge", bridgeRules(ctx, b.stage)},
	}
	for _, v := range []struct {
		name    string
		command []string
	}{
		{"Docker Engine", []string{"dockerd", "--version"}},
		{"HAProxy", []string{"haproxy", "-v"}},
		{"socat", []string{"socat", "-V"}},
		{"Go", []string{"go", "version"}},
		{"iperf3", []string{"iperf3", "--version"}},
		{"PostgreSQL", []string{"postgres", "--version"}},
		{"Redis", []string{"redis-server", "--version"}},
		{"nginx", []string{"nginx", "-v"}},
		{"wrk", []string{"wrk", "--version"}},
	} {
		facts = append(facts, fact{v.name, b.version(ctx, v.name, v.command)})
	}
	return facts
}

var versionNumber = regexp.MustCompile(`\d+\.[\w.+~-]+`)

// version asks a program, where it is used: in its image, or on the host.
func (b *bench) version(ctx context.Context, name string, command []string) string {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	services := map[string]string{"iperf3": iperfService, "PostgreSQL": dbService, "Redis": cacheService, "nginx": webService}
	if svc, ok := services[name]; ok {
		c := b.stage.sources[svc]
		cmd = place{netns: c.netns(), files: &c}.command(ctx, command...)
	}
	out, _ := cmd.CombinedOutput() // some end with an error after they told
	if v := versionNumber.FindString(string(out)); v != "" {
		return v
	}
	return "not installed"
}

// revision is that of the checkout.
func revision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%h of %cs").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func machine() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	model := "unknown processor"
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	if strings.Contains(string(text), " hypervisor") {
		model += ", virtual"
	}
	var info unix.Sysinfo_t
	unix.Sysinfo(&info)
	return fmt.Sprintf("%s, %s, %d GiB", plural(runtime.NumCPU(), "core"), model, (uint64(info.Totalram)*uint64(info.Unit)+1<<29)>>30)
}

func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return "Linux " + unix.ByteSliceToString(name.Release[:])
}

// setting reads a sysctl.
func setting(path string) string {
	text, err := os.ReadFile("/proc/sys/" + path)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// bridgeRules says whether packets over the engine's bridge meet the rules of
// its firewall, as they do where inter-container communication is restricted.
func bridgeRules(ctx context.Context, s *stage) string {
	out, err := s.engine.Command(ctx, "cat", "/proc/sys/net/bridge/bridge-nf-call-iptables").Output()
	if err == nil && strings.TrimSpace(string(out)) == "1" {
		return "apply (`bridge-nf-call-iptables` is 1)"
	}
	return "do not apply"
}
