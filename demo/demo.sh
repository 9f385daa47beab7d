#!/bin/bash
# Shows a link to Redis and one to PostgreSQL, on the Docker Engine of this
# machine, or on a private one if none runs. Takes away everything it made.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/bin:$PATH:/usr/sbin:/sbin

main() {
	[[ $(id -u) == 0 ]] || stop_with 'the ambassador needs root: sudo make demo'
	trap clean_up EXIT
	trap 'exit 130' INT TERM

	tell 'Getting ready'
	packaging/prerequisites.sh dockerd docker iptables ip nsenter setsid
	work=$(mktemp -d /tmp/linkrun-demo.XXXXXX)
	use_engine
	use_images busybox redis postgres
	use_ambassador
	links
}

# links is the demo itself.
links() {
	tell 'Two services. Neither publishes a port.'
	show "docker run -d --name demo-redis $net linkrun/redis"
	show "docker run -d --name demo-db $net -e POSTGRES_PASSWORD=secret linkrun/postgres"
	local address
	address=$(docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' demo-redis)
	wait_for 'PostgreSQL to be up' docker exec demo-db pg_isready -q -h 127.0.0.1

	tell 'Containers may not talk to each other here. One without a link gets nowhere:'
	refused "docker run --rm $net linkrun/busybox nc -w 2 $address 6379"

	tell 'With a link it does. Neither an address nor a published port is needed:'
	show "linkrun --rm $net --link demo-redis:cache linkrun/redis redis-cli -h cache ping"

	tell 'A container that stays, linked to the database under the name "db":'
	show "linkrun -d --name demo-web $net --link demo-db:db -e PGPASSWORD=secret linkrun/postgres sleep 1d"
	tell "It has the variables that Docker's own links set,"
	show 'docker exec demo-web env | grep ^DB_ | sort'
	tell 'and the names in its hosts file; the address is its own, and never changes:'
	show 'docker exec demo-web grep -w db /etc/hosts'
	tell 'A query over the link. The server sees who really asks:'
	show "docker exec demo-web psql -h db -U postgres -c 'select inet_client_addr() as client, inet_server_addr() as server'"
	tell 'The link is for the port the database exposes, and for no other:'
	refused 'docker exec demo-web nc -w 2 db 22'

	tell 'The link belongs to the name. The source may come and go:'
	show 'docker restart -t 1 demo-db'
	wait_for 'PostgreSQL to be up' docker exec demo-db pg_isready -q -h 127.0.0.1
	show "docker exec demo-web psql -h db -U postgres -Atc \"select 'still here'\""
	show 'ambassador links'
}

# use_engine sets DOCKER_HOST, and net to the flag for a network whose
# containers may not reach each other.
use_engine() {
	net=''
	in_engine=()
	if ! docker version >/dev/null 2>&1; then
		say 'No Docker Engine runs here: starting a private one, in a network namespace of its own.'
		start_engine
	elif [[ ${DOCKER_HOST:-unix://} != unix://* ]]; then
		stop_with "the engine at $DOCKER_HOST is on another host: run the demo there"
	else
		say 'Using the Docker Engine that runs here.'
		local taken
		taken=$(docker ps -aq --filter name=^demo-)
		[[ -z $taken ]] || stop_with 'there are containers called demo-...: remove or rename them first'
		ours=yes # from here on, what is called demo- was made here
		if [[ $(docker network inspect -f '{{index .Options "com.docker.network.bridge.enable_icc"}}' bridge) != false ]]; then
			say 'Its containers may all talk to each other (icc=true): making a network where they may not.'
			net='--network demo-net' made_net=yes
			docker network create -o com.docker.network.bridge.enable_icc=false demo-net >/dev/null
		fi
	fi
}

# start_engine starts dockerd with a containerd of its own: it would share the
# host's. Not with `ip netns exec`, whose mount namespace would hide the
# containers' network namespaces from the ambassador.
start_engine() {
	namespace=linkrun-demo-$$ ours=yes
	ip netns add "$namespace"
	in_engine=(nsenter "--net=/run/netns/$namespace" --)
	"${in_engine[@]}" ip link set lo up
	cat >"$work/containerd.toml" <<-END
		version = 2
		root = "$work/containerd"
		state = "$work/run/containerd"
		disabled_plugins = ["io.containerd.grpc.v1.cri"]
		[grpc]
		address = "$work/containerd.sock"
	END
	echo '{}' >"$work/daemon.json" # not the host's
	background containerd "${in_engine[@]}" containerd --config "$work/containerd.toml"
	background dockerd "${in_engine[@]}" dockerd --config-file "$work/daemon.json" \
		--data-root "$work/data" --exec-root "$work/run" --pidfile "$work/pid" \
		--containerd "$work/containerd.sock" --host "unix://$work/docker.sock" \
		--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$namespace" --icc=false
	export DOCKER_HOST=unix://$work/docker.sock
	wait_for 'the engine to answer' docker version
}

# use_images imports the demo's images, and remembers which were not there.
use_images() {
	local name
	for name in "$@"; do
		docker image inspect "linkrun/$name" >/dev/null 2>&1 || imported+=("linkrun/$name")
	done
	say 'Images, made from Debian packages:'
	images/build.sh "$@"
}

# use_ambassador starts one, unless one serves this engine already.
use_ambassador() {
	if [[ -z ${namespace-} ]] && ambassador links >/dev/null 2>&1; then
		say 'Using the ambassador that serves here.'
		return
	fi
	export AMBASSADOR_DIR=$work/ambassador
	tell 'The ambassador carries the links:'
	prompt 'ambassador serve --icc off &' # off: what it enforces would outlive the demo
	background ambassador "${in_engine[@]}" ambassador serve --icc off --dir "$AMBASSADOR_DIR" --host "${DOCKER_HOST:-unix:///var/run/docker.sock}"
	wait_for 'the ambassador to answer' ambassador links
}

# clean_up takes away what is there of everything above, however far it came.
clean_up() {
	local status=$? name
	trap '' INT TERM
	set +e
	if ((status != 0 && status != 130)); then
		for name in containerd dockerd ambassador; do
			[[ ! -s ${work-}/$name.log ]] || { say "the end of $name's log:" && tail -n 20 "$work/$name.log"; }
		done
	fi >&2
	if [[ ${ours-} ]] && docker version >/dev/null 2>&1; then
		tell 'Cleaning up'
		docker ps -aq --filter name=^demo- | xargs -r docker rm -fv >/dev/null
		[[ ! ${made_net-} ]] || docker network rm demo-net >/dev/null
		for name in "${imported[@]}"; do
			! docker image inspect "$name" >/dev/null 2>&1 || docker rmi "$name" >/dev/null
		done
	fi
	for name in ambassador dockerd containerd; do
		[[ ! ${daemons[$name]-} ]] || { kill "${daemons[$name]}" && wait "${daemons[$name]}"; }
	done 2>/dev/null
	if [[ ${namespace-} ]]; then
		ip netns del "$namespace"
		find /sys/fs/cgroup -depth -type d -path "*/$namespace*" -exec rmdir {} +
	fi
	[[ ! ${work-} ]] || rm -rf "$work"
	((status != 0)) || say "Nothing is left but downloads, in ${LINKRUN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/linkrun}."
	exit "$status"
}

declare -A daemons=()
imported=()

# background starts a daemon out of reach of a Ctrl-C, which is for clean_up.
background() {
	local name=$1
	setsid "${@:2}" >"$work/$name.log" 2>&1 </dev/null &
	daemons[$name]=$!
}

# wait_for asks a command until it succeeds.
wait_for() {
	local i
	for ((i = 0; i < 300; i++)); do
		! "${@:2}" >/dev/null 2>&1 || return 0
		sleep 0.1
	done
	stop_with "waited 30 seconds for $1"
}

# show runs a command line after showing it.
show() {
	prompt "$1"
	eval "$1"
}

# refused is show for what must fail.
refused() {
	prompt "$1"
	! eval "$1" || stop_with 'this should have been refused'
}

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
tell() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
prompt() { echo "$ ${1//  / }"; } # where $net is empty there are two spaces
say() { echo "$*"; }
stop_with() { say "demo: $*" >&2 && exit 1; }

main
