package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/link"
)

// The flags of `docker run`, from Docker 20.10 to 29.7. It does not matter
// what they mean, only which of them take a value: that decides which word is
// the image. Behind a slash stands the shorthand. Some are hidden from
// `docker run --help`, which is why asking it is not enough.
const (
	switches = `detach/d disable-content-trust help init interactive/i no-healthcheck oom-kill-disable
		privileged publish-all/P quiet/q read-only rm sig-proxy tty/t use-api-socket`

	options = `add-host annotation attach/a blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent
		cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares/c
		cpus cpuset-cpus cpuset-mems detach-keys device device-cgroup-rule device-read-bps device-read-iops
		device-write-bps device-write-iops dns dns-opt dns-option dns-search domainname entrypoint env/e
		env-file expose gpus group-add health-cmd health-interval health-retries health-start-interval
		health-start-period health-timeout hostname/h io-maxbandwidth io-maxiops ip ip6 ipc isolation
		kernel-memory label/l label-file link link-local-ip log-driver log-opt mac-address memory/m
		memory-reservation memory-swap memory-swappiness mount name net net-alias network network-alias
		oom-score-adj pid pids-limit platform publish/p pull restart runtime security-opt shm-size
		stop-signal stop-timeout storage-opt sysctl tmpfs ulimit user/u userns uts volume/v volume-driver
		volumes-from workdir/w`
)

// given is one flag as it was given. Repeating all of them, in order, as
// --name=value says the same as the words they were read from.
type given struct {
	name  string
	value string
}

func (g given) word() string { return "--" + g.name + "=" + g.value }

// invocation is the words after `linkrun`, understood.
type invocation struct {
	flags []given // of docker run, without --link
	image string
	args  []string // after the image

	links   []link.Spec
	env     link.Mode  // "" when not given
	socks   link.Socks // likewise
	timeout time.Duration

	help, version bool
	own           bool // one of linkrun's own flags was given
}

// defaultTimeout is how long a recipient waits for its links at each start.
const defaultTimeout = 10 * time.Second

// flag is what has to be known of a flag.
type flag struct {
	name, shorthand string
	isSwitch        bool
}

// parse finds the flags and the image, as docker run does. unknown is asked,
// at most once, for flags that this version has never heard of.
func parse(words []string, unknown func() ([]flag, error)) (*invocation, error) {
	inv, err := parseWith(nil, words)
	if notExist := (*pflag.NotExistError)(nil); errors.As(err, &notExist) {
		more, askErr := unknown()
		if askErr != nil {
			return nil, askErr
		}
		inv, err = parseWith(more, words)
	}
	if err != nil {
		return nil, fail(flagHint(err), "%w", err)
	}
	return inv, nil
}

func flagHint(err error) string {
	if invalid := (*pflag.InvalidValueError)(nil); errors.As(err, &invalid) && invalid.GetFlag().Name == "link" {
		return "a link is written SOURCE[@HOST][:ALIAS]"
	}
	return "see `linkrun --help`, and `docker run --help` for the flags of docker"
}

func parseWith(more []flag, words []string) (*invocation, error) {
	inv := &invocation{timeout: defaultTimeout}
	set := pflag.NewFlagSet("linkrun", pflag.ContinueOnError)
	set.SetInterspersed(false)
	set.Usage = func() {}
	for _, f := range append(knownFlags(), more...) {
		if set.Lookup(f.name) != nil || f.shorthand != "" && set.ShorthandLookup(f.shorthand) != nil {
			continue
		}
		added := set.VarPF(&recorder{flag: f, inv: inv}, f.name, f.shorthand, "")
		switch {
		case f.isSwitch:
			added.NoOptDefVal = "true"
		case f.name == "link-socks":
			added.NoOptDefVal = string(link.SocksOn)
		}
	}
	if err := set.Parse(words); err != nil {
		return nil, err
	}
	if rest := set.Args(); len(rest) > 0 {
		inv.image, inv.args = rest[0], rest[1:]
	}
	return inv, nil
}

func knownFlags() []flag {
	flags := []flag{
		{name: "link-env"}, {name: "link-socks"}, {name: "link-timeout"}, {name: "version", isSwitch: true}, // linkrun's own
	}
	for i, list := range []string{switches, options} {
		for word := range strings.FieldsSeq(list) {
			name, shorthand, _ := strings.Cut(word, "/")
			flags = append(flags, flag{name, shorthand, i == 0})
		}
	}
	return flags
}

// recorder is a pflag.Value that keeps every occurrence of its flag.
type recorder struct {
	flag
	inv *invocation
}

var _ pflag.Value = (*recorder)(nil)

func (r *recorder) String() string { return "" }
func (r *recorder) Type() string   { return "" }

func (r *recorder) Set(value string) (err error) {
	on := false
	if r.isSwitch {
		if on, err = strconv.ParseBool(value); err != nil {
			return err
		}
	}
	switch r.name {
	case "link":
		spec, err := link.ParseSpec(value)
		if err != nil {
			return err
		}
		r.inv.links = append(r.inv.links, spec)
	case "link-env":
		r.inv.own = true
		r.inv.env, err = link.ParseMode(value)
	case "link-socks":
		r.inv.own = true
		r.inv.socks, err = link.ParseSocks(value)
	case "link-timeout":
		r.inv.own = true
		r.inv.timeout, err = time.ParseDuration(value)
		if err == nil && r.inv.timeout <= 0 {
			err = errors.New("it has to be more than nothing")
		}
	case "version":
		r.inv.own, r.inv.version = true, on
	case "help":
		r.inv.help = on
	case "env":
		if name, _, _ := strings.Cut(value, "="); name == "" {
			return fmt.Errorf("invalid environment variable: %s", value)
		}
		fallthrough
	default:
		r.inv.flags = append(r.inv.flags, given{r.name, value})
	}
	return err
}

// last returns the value that counts of a flag which docker takes once, and
// whether it was given at all.
func (inv *invocation) last(name string) (value string, found bool) {
	for _, g := range inv.flags {
		if g.name == name {
			value, found = g.value, true
		}
	}
	return value, found
}

// all returns the values of a flag, and of its other spellings, in order.
func (inv *invocation) all(names ...string) (values []string) {
	for _, g := range inv.flags {
		for _, name := range names {
			if g.name == name {
				values = append(values, g.value)
			}
		}
	}
	return values
}

// without returns the flags other than those named.
func (inv *invocation) without(names ...string) (flags []given) {
next:
	for _, g := range inv.flags {
		for _, name := range names {
			if g.name == name {
				continue next
			}
		}
		flags = append(flags, g)
	}
	return flags
}
