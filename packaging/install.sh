#!/bin/bash
# Installs what `make build` left in bin/: both programs, the link that makes
# `docker linkrun` work, and the systemd unit. DESTDIR is put before every path.
#
#   packaging/install.sh [PREFIX]     (default /usr/local)
set -euo pipefail

prefix=${1:-/usr/local}
root=${DESTDIR-}$prefix
cd "$(dirname "$0")/.."
[[ -x bin/linkrun && -x bin/ambassador ]] || { echo 'install: bin/ is empty: run make build first' >&2; exit 1; }

install -D -m 755 -t "$root/bin" bin/linkrun bin/ambassador
mkdir -p "$root/lib/docker/cli-plugins"
ln -sf "$prefix/bin/linkrun" "$root/lib/docker/cli-plugins/docker-linkrun"
sed "s#/usr/local/bin/#$prefix/bin/#" packaging/ambassador.service |
	install -D -m 644 /dev/stdin "$root/lib/systemd/system/ambassador.service"

[[ -n ${DESTDIR-} || ! -d /run/systemd/system ]] || systemctl daemon-reload
cat <<END
Installed linkrun and ambassador in $prefix/bin.
Serve links from now on, and after each boot:

    systemctl enable --now ambassador

Members of the group docker may use linkrun; they can already do through the
engine whatever root can.
END
