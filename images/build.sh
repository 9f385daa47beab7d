#!/bin/bash
# Makes small images from Debian packages, for the demo and the tests: there
# may be no registry to pull from.
#
#   images/build.sh NAME...     import linkrun/NAME into the engine of DOCKER_HOST
#   images/build.sh -n NAME...  make the tar files only, and print their paths
#
# Nothing is installed and no service is started: the packages are downloaded
# (apt checks the signatures) and unpacked into a folder. Of that, only the
# named programs and the shared libraries they load go into the image, beside
# busybox for a shell.
#
# Downloads and tar files are kept in a cache as Go keeps its own, outside the
# checkout, so that a fresh clone has them too: LINKRUN_CACHE, by default
# linkrun in XDG_CACHE_HOME or ~/.cache. What changed is made anew.
set -euo pipefail

declare -A packages=(
	[busybox]=''
	[redis]='redis-server redis-tools'
	[postgres]='postgresql-15 postgresql-client-15 tzdata'
	[nginx]='nginx'
	[dns]='dnsmasq-base knot-dnsutils'
	[iperf3]='iperf3'
	[socks]='curl proxychains4 postgresql-client-15'
)

# One function per image: what it takes of its packages, and what it notes for
# `docker import -c`.

fill_busybox() {
	note 'CMD ["sh"]'
}

fill_redis() {
	take usr/bin/redis-{server,cli,benchmark}
	# Protected mode refuses everyone but loopback as long as there is no password.
	note 'EXPOSE 6379/tcp' 'USER nobody' 'WORKDIR /tmp' \
		'CMD ["redis-server", "--protected-mode", "no", "--save", ""]'
}

fill_postgres() {
	# Not lib/llvmjit.so, which wants 100 MB of LLVM: without it, queries are just not compiled.
	take usr/lib/postgresql/*/bin/{postgres,initdb,psql,pgbench,pg_isready} \
		usr/lib/postgresql/*/lib/{plpgsql,dict_snowball}.so \
		usr/share/postgresql/*/{*.sql,*.sample,*.txt,postgres.bki,timezonesets,tsearch_data,extension/plpgsql*} \
		usr/share/zoneinfo/{UTC,GMT}
	ln -sr "$root"/usr/lib/postgresql/*/bin/* "$root"/usr/bin # they look for their files where the link points
	add postgres-entrypoint usr/bin
	mkdir -p "$root"/{var/lib,run}/postgresql
	chmod 1777 "$root"/{var/lib,run}/postgresql
	note 'EXPOSE 5432/tcp' 'USER postgres' 'ENV PGDATA=/var/lib/postgresql/data' \
		'ENTRYPOINT ["postgres-entrypoint"]' 'CMD ["postgres"]'
}

fill_nginx() {
	take usr/sbin/nginx
	add nginx.conf etc/nginx
	mkdir -p "$root"/var/{lib,log}/nginx "$root"/srv
	echo 'hello from nginx' >"$root"/srv/index.html
	note 'EXPOSE 80/tcp' 'CMD ["nginx"]'
}

fill_dns() {
	take usr/sbin/dnsmasq usr/bin/kdig
	ln -s kdig "$root"/usr/bin/dig # speaks as BIND's dig does, without its 40 MB of libraries
	add dnsmasq.conf etc
	note 'EXPOSE 53/udp 53/tcp' 'CMD ["dnsmasq", "--keep-in-foreground"]'
}

fill_iperf3() {
	take usr/bin/iperf3
	note 'EXPOSE 5201/tcp 5201/udp' 'USER nobody' 'CMD ["iperf3", "--server"]'
}

# What speaks SOCKS5, and psql, which does not: proxychains4 gets in between.
fill_socks() {
	take usr/bin/{curl,proxychains4} usr/lib/*/libproxychains.so.4 usr/lib/postgresql/*/bin/psql
	ln -sr "$root"/usr/lib/postgresql/*/bin/psql "$root"/usr/bin
	note 'CMD ["sh"]'
}

main() {
	local import=yes name
	if [[ ${1-} == -n ]]; then
		import= && shift
	fi
	(($#)) || fail "usage: images/build.sh [-n] NAME...   NAME: ${!packages[*]}"
	for name in "$@"; do
		[[ -v packages[$name] ]] || fail "no image is called \"$name\"; there are: ${!packages[*]}"
	done

	here=$(cd "$(dirname "$0")" && pwd)
	cache=${LINKRUN_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/linkrun}
	recipe=$(cat "$here"/* | sha256sum | cut -c1-12)
	mkdir -p "$cache"/{apt,debs,closures,images}
	: >>"$cache/apt/status"
	exec 9>"$cache/lock"
	for name in "$@"; do
		flock 9 # several may build at once, each for an engine of its own
		resolve
		[[ -e $tar ]] || build
		flock -u 9
		if [[ $import ]]; then import; else echo "$tar"; fi
	done
}

# resolve finds out what $name is made of, and sets closure, key and tar.
resolve() {
	closure=$cache/closures/$name-$recipe
	[[ -n $(compgen -G '/var/lib/apt/lists/*_Packages*') ]] || refresh
	# Asking apt takes a second: ask again only when it may say something new.
	if [[ ! $closure -nt /var/lib/apt/lists ]]; then
		# Of what the packages named depend on, only libraries: the rest is there to
		# install them with. A library left out here that is needed is missed below.
		local named="busybox-static ${packages[$name]}"
		rm -f "$cache/closures/$name"-*
		# shellcheck disable=SC2086
		apt_get install --simulate $named |
			awk -v named="$named" 'BEGIN { split(named, a); for (i in a) want[a[i]] }
				/^Inst/ && ($2 in want || $2 ~ /^z?lib/ && $2 !~ /^lib(perl|llvm|z3)|-perl$/) {
					print $2 "=" substr($3, 2) }' | sort >"$closure.new"
		mv "$closure.new" "$closure"
	fi
	key=$(cat - "$closure" <<<"$recipe" | sha256sum | cut -c1-12)
	tar=$cache/images/$name-$key.tar
}

# build makes $tar, and beside it the notes for its import.
build() {
	say "making the image $name"
	download
	work=$cache/work unpacked=$cache/work/unpacked root=$cache/work/root notes=()
	rm -rf "$work" # left by a build that was killed: this one holds the lock
	trap 'rm -rf "$work"' EXIT
	skeleton "$unpacked"
	skeleton "$root"
	local package
	while read -r package; do
		dpkg-deb --fsys-tarfile "$(deb "$package")" |
			tar -x --keep-directory-symlink --no-same-owner -C "$unpacked"
	done <"$closure"

	cd "$unpacked"
	take usr/bin/busybox
	local applet
	for applet in $("$root/bin/busybox" --list-full); do
		[[ -e $root/$applet ]] || ln -s /bin/busybox "$root/$applet"
	done
	"fill_$name"
	cd "$here"
	libraries

	rm -f "$cache/images/$name"-*
	printf '%s\n' "${notes[@]}" >"$tar.notes"
	tar -C "$root" --owner=0 --group=0 --numeric-owner -cf "$tar.new" .
	mv "$tar.new" "$tar"
	rm -rf "$work"
}

# skeleton makes the folders, and the links of Debian's merged /usr, in $1.
skeleton() {
	mkdir -p "$1"/{dev,etc,proc,root,run,sys,tmp,var/tmp} "$1"/usr/{bin,sbin,lib,lib64}
	ln -s usr/{bin,sbin,lib,lib64} "$1"
	ln -s ../run "$1"/var/run
	chmod 1777 "$1"/{,var/}tmp
	printf '%s\n' root:x:0:0::/root:/bin/sh postgres:x:70:70::/var/lib/postgresql:/bin/sh \
		nobody:x:65534:65534::/:/bin/sh >"$1"/etc/passwd
	printf '%s\n' root:x:0: postgres:x:70: nogroup:x:65534: >"$1"/etc/group
	echo 'hosts: files dns' >"$1"/etc/nsswitch.conf
}

# take copies files and folders of the packages, which are in the working
# folder; of a link, what it points to.
take() {
	cp -rL --parents --preserve=mode -- "$@" "$root"
}

# add copies a file of this folder into the folder $2.
add() {
	install -D --mode="$(stat -c %a "$here/$1")" -t "$root/$2" "$here/$1"
}

note() { notes+=("$@"); }

# libraries copies every shared library the programs in $root load. The
# packages' own loader is asked, so neither chroot nor root is needed.
libraries() {
	local loader path file name at status
	loader=$(compgen -G "$unpacked/usr/lib/*/ld-linux*.so.*") || return 0 # busybox alone
	path=$(dirname "$loader")
	find "$root/usr" -type f \( -perm -u+x -o -name '*.so*' \) | while read -r file; do
		status=0
		"$loader" --verify "$file" 2>/dev/null || status=$?
		((status != 1)) || continue # a script, or linked statically; 2 is a library
		"$loader" --inhibit-cache --library-path "$path" --list "$file"
	done | awk '$2 == "=>" { print $1, $3 }' | sort -u | while read -r name at; do
		# The loader falls back to the host's folders: what it finds there is missing here.
		[[ $at == "$unpacked"/* ]] || fail "$name is in none of the packages of the image"
		[[ $name == /* ]] || name=${at#"$unpacked"}
		mkdir -p "$root/$(dirname "$name")"
		cp -L "$at" "$root/$name"
	done
}

# import gives $tar to the engine, unless it has it, and prints the reference.
import() {
	local ref=linkrun/$name note changes=()
	if [[ $("${DOCKER:-docker}" image inspect -f '{{index .Config.Labels "linkrun.image"}}' "$ref" 2>/dev/null) != "$key" ]]; then
		while read -r note; do changes+=(-c "$note"); done <"$tar.notes"
		"${DOCKER:-docker}" import "${changes[@]}" -c "LABEL linkrun.image=$key" "$tar" "$ref" >/dev/null
	fi
	echo "$ref"
}

# download fetches the packages of $closure that are not in the cache.
download() {
	local missing=() package
	while read -r package; do
		deb "$package" >/dev/null || missing+=("$package")
	done <"$closure"
	((${#missing[@]})) || return 0
	say "downloading ${#missing[@]} packages"
	cd "$cache/debs"
	apt_get download "${missing[@]}" || { refresh && apt_get download "${missing[@]}"; }
	cd "$here"
}

# deb prints the file of package $1, name=version, if it has been downloaded.
deb() { compgen -G "$cache/debs/${1%%=*}_$(sed 's/.*=//; s/:/%3a/' <<<"$1")_*.deb"; }

# refresh gets apt's lists where they are missing or name packages that are gone.
refresh() {
	say 'updating the package lists'
	apt-get -qq update
}

# apt_get believes that nothing is installed, and writes only into the cache.
apt_get() {
	apt-get -qq -o Dir::State::status="$cache/apt/status" -o Dir::Cache="$cache/apt" \
		-o Debug::NoLocking=1 -o APT::Install-Recommends=0 -o APT::Sandbox::User=root "$@"
}

say() { echo "images: $*" >&2; }
fail() { say "$@" && exit 1; }

main "$@"
