package main

import "runtime/debug"

const usage = `Usage: linkrun [flags] IMAGE [COMMAND] [ARG...]

Runs a container like docker run, with private links to other containers.
Takes every flag of docker run. These are carried by linkrun:

      --link SOURCE[:ALIAS]    reach the exposed ports of the container SOURCE
                               under the name ALIAS, on any network, whatever
                               the engine lets containers do to each other.
                               NAME@HOST is a container on another host
      --link-env all|ports|none
                               variables to set about the sources: ports leaves
                               out their own environment, which often holds
                               passwords (default all)
      --link-socks[=all-proxy] reach the sources by SOCKS5 as well, at the address
                               in the variable LINK_SOCKS5; with all-proxy, it is
                               in ALL_PROXY and all_proxy too
      --link-timeout DURATION  how long the container's program is held back
                               until its links stand, at each start (default 10s)
      --help                   this text; see docker run --help for the rest
      --version                print the version

An ambassador on the engine's machine carries the links. As root, linkrun
starts one if none serves. Without --link, linkrun is docker run.

Environment:
  AMBASSADOR_DIR               where the ambassador keeps its socket
                               (default /run/ambassador)
  DOCKER_HOST, DOCKER_CONTEXT  the engine, as for docker

Example:
  $ docker run -d --name db postgres
  $ linkrun -d --name web --link db:webdb web-image
  $ docker exec web psql -h webdb -U postgres

Installed as docker-linkrun in a folder for Docker's plugins, it is also
docker linkrun.
`

// version is the module's version, or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
