package main

import (
	"encoding/json"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Docker runs an executable named docker-linkrun in one of its cli-plugins
// folders for `docker linkrun`, with all words that came after `docker`
// (docker/cli, cli-plugins/manager).
const (
	pluginName     = "docker-linkrun"
	pluginCommand  = "linkrun"
	pluginMetadata = "docker-cli-plugin-metadata"

	pluginVariables    = "DOCKER_CLI_PLUGIN_"
	envOriginalCommand = "DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND"
	envSocket          = "DOCKER_CLI_PLUGIN_SOCKET"
)

func isPlugin(argv0 string) bool { return filepath.Base(argv0) == pluginName }

func writeMetadata(w io.Writer) error {
	return json.NewEncoder(w).Encode(map[string]string{
		"SchemaVersion":    "0.1.0",
		"Vendor":           "linkrun",
		"Version":          version(),
		"ShortDescription": "docker run with private links to other containers",
		"URL":              "https://github.com/linkrun/linkrun",
	})
}

// globalFlags are docker's own flags, before the command.
type globalFlags struct {
	words   []string // as given
	hosts   []string
	context string
	config  string
}

// splitGlobals divides the words of a plugin at its name.
func splitGlobals(words []string) (globalFlags, []string, error) {
	var g globalFlags
	set := pflag.NewFlagSet("docker", pflag.ContinueOnError)
	set.SetInterspersed(false)
	set.Usage = func() {}
	set.StringArrayVarP(&g.hosts, "host", "H", nil, "")
	set.StringVarP(&g.context, "context", "c", "", "")
	set.StringVar(&g.config, "config", "", "")
	for _, name := range []string{"tlscacert", "tlscert", "tlskey"} {
		set.String(name, "", "")
	}
	set.StringP("log-level", "l", "", "")
	set.BoolP("debug", "D", false, "")
	set.BoolP("version", "v", false, "")
	for _, name := range []string{"tls", "tlsverify", "help"} {
		set.Bool(name, false, "")
	}
	if err := set.Parse(words); err != nil {
		return g, nil, fail("see `docker --help`", "%w", err)
	}
	rest := set.Args()
	g.words = slices.Clip(words[:len(words)-len(rest)])
	switch {
	case len(rest) > 0 && rest[0] == pluginCommand:
		return g, rest[1:], nil
	default: // `docker help linkrun`
		return g, []string{"--help"}, nil
	}
}

// withoutPluginVariables drops what docker tells its plugins: the docker that
// linkrun becomes is none.
func withoutPluginVariables(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, pluginVariables) })
}
