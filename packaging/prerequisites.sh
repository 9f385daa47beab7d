#!/bin/bash
# Installs, through apt, what the demo and the tests need and this machine
# lacks: a Docker Engine above all. As root; otherwise it says what to install.
# No service is started: both run an engine of their own.
#
#   packaging/prerequisites.sh PROGRAM...
set -euo pipefail

# The Debian package of each program, where it has another name.
declare -A package=(
	[dockerd]=docker.io
	[docker]=docker.io
	[ip]=iproute2
	[nsenter]=util-linux
	[setpriv]=util-linux
	[systemd-analyze]=systemd
	[umount]=mount
	[busybox]=busybox-static
	[cc]='gcc libc6-dev'
	[psql]=postgresql-client
)

main() {
	local program
	declare -A missing=()
	PATH+=:/usr/sbin:/sbin
	for program in "$@"; do
		command -v "$program" >/dev/null || missing[${package[$program]-$program}]=
	done
	((${#missing[@]})) || return 0
	if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
		say "missing here, and only root can install them, through apt: ${!missing[*]}"
		exit 1
	fi
	say "installing ${!missing[*]}"
	hold_services
	[[ -n $(compgen -G '/var/lib/apt/lists/*_Packages*') ]] || apt-get update -qq
	# shellcheck disable=SC2068 # a key may be two packages
	apt_install ${!missing[@]} || { apt-get update -qq && apt_install ${!missing[@]}; }
}

apt_install() {
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$@" </dev/null >/dev/null
}

# hold_services forbids packages to start their services, as long as this
# script runs, by the file Debian asks for that (invoke-rc.d(8)). Where there
# is one, its author has decided.
hold_services() {
	local policy=/usr/sbin/policy-rc.d
	[[ ! -e $policy ]] || return 0
	# shellcheck disable=SC2064
	trap "rm -f $policy" EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
}

say() { echo "prerequisites: $*" >&2; }

main "$@"
