# documented.sh REPOSITORY PROGRAM COMMANDS: runs the commands of one block of a
# document, a line each, on the router of the lab, in folders that are this run's own.
# What builds, installs, or speaks to a program that is not there is stood in for by
# something that fails where the real one would not find what it is told of.
set -uo pipefail
repository=$1 program=$2 commands=$3

# Nothing below may reach the machine itself.
set -e
scratch=$(dirname "$commands")/scratch
mkdir "$scratch"
mount -t tmpfs scratch "$scratch"
mkdir "$scratch/bin"
for folder in /etc /usr/local "$repository"; do
	name=${folder//\//_}
	mkdir "$scratch/$name" "$scratch/$name.work"
	mount -t overlay -o "lowerdir=$folder,upperdir=$scratch/$name,workdir=$scratch/$name.work" overlay "$folder"
done
mount -t tmpfs run /run
mkdir -p "$repository/bin"
[[ $program -ef $repository/bin/nfq-ftphelper ]] || cp "$program" "$repository/bin/nfq-ftphelper"
ln -s "$repository/bin/nfq-ftphelper" "$scratch/bin/nfq-ftphelper"
cd "$repository"

# As the package has it.
mkdir -p /etc/nfq-ftphelper
echo 'rules: true' >/etc/nfq-ftphelper/nfq-ftphelper.yaml
set +e

log=$scratch/log daemon=
say() { echo "documented.sh: $*" >&2; }
ready() {
	local n
	for n in {1..200}; do
		grep -q "msg=$1" "$log" && return
		sleep 0.1
	done
	say "the daemon has not said $1:"
	cat "$log" >&2
	return 1
}
# serve COMMAND...: starts a daemon, as an init system would.
serve() {
	"$@" >"$log" 2>&1 &
	daemon=$!
	ready ready
}
stop() {
	[[ ! $daemon ]] || { kill "$daemon" && wait "$daemon"; }
}

make() { command make --dry-run "$@" >/dev/null; }
apt() { [[ $1 == install && $2 == ./bin/nfq-ftphelper_*_amd64.deb ]]; }
kubectl() {
	case $* in
	"apply -k "*) [[ -f $3/kustomization.yaml ]] ;;
	"-n nfq-ftphelper exec ds/nfq-ftphelper -- "*) "${@:6}" ;;
	*) return 1 ;;
	esac
}
podman() {
	case $1 in
	push) [[ $2 == */nfq-ftphelper:* ]] ;;
	run)
		while [[ $1 != */nfq-ftphelper:* ]]; do shift; done
		nfq-ftphelper "${@:2}"
		;;
	*) return 1 ;;
	esac
}
docker() {
	[[ "$1 $2" == "compose -f" && -f $3 ]] || return
	case ${*:4} in
	"up --detach") nfq-ftphelper run --rules ;;
	"exec nfq-ftphelper nfq-ftphelper "*) "${@:6}" ;;
	*) return 1 ;;
	esac
}
systemctl() {
	local unit=deploy/systemd/nfq-ftphelper.service start
	case $* in
	"enable --now nfq-ftphelper")
		start=$(sed -n 's/^ExecStart=//p' "$unit")
		# shellcheck disable=SC2086 # a command line
		serve ${start/\/usr\/sbin/$scratch\/bin}
		;;
	"reload nfq-ftphelper") kill -HUP "$daemon" && ready reloaded ;;
	*) return 1 ;;
	esac
}
# nft: a kernel may have no queue statement.
nft() { command nft "$@" || [[ ${FTPHELPER_NO_QUEUE-} && "$1 $2" == "-f rules/ftp-queue.nft" ]]; }
# follow COMMAND...: stops it when it has said something.
follow() {
	local n out=$scratch/out pid
	: >"$out" # or that of the last one would do
	"$@" >"$out" &
	pid=$!
	for n in {1..900}; do
		[[ -s $out ]] || ! kill -0 "$pid" && break
		sleep 0.1
	done
	cat "$out"
	kill "$pid" && wait "$pid" && [[ -s $out ]]
}
served() { [[ $daemon ]] || serve "$scratch/bin/nfq-ftphelper" run --rules; }
nfq-ftphelper() {
	local program=$scratch/bin/nfq-ftphelper
	case $1 in
	run) serve "$program" "$@" && return ;;
	doctor | status | flows | events | top) served || return ;;
	explain) [[ -f $2 ]] || tcpdump -i any -s 0 -c 100000 -w "$2" tcp || return ;;
	esac
	case $1 in
	events) follow "$program" "$@" ;;
	top) { sleep 3 && printf q; } | TERM=xterm script --quiet --return --command "$program $*" /dev/null >/dev/null ;;
	*) "$program" "$@" ;;
	esac
}
curl() { served && command curl --fail --silent --show-error "$@"; }
# There is not enough traffic for 100000 packets.
tcpdump() { served && command tcpdump "${@/#100000/40}"; }

export PATH=$scratch/bin:/usr/sbin:/usr/bin:/sbin:/bin
failed=0
mapfile -t lines <"$commands" # at once: some of the commands read what they find
for ((i = 0; i < ${#lines[@]}; i++)); do
	line=${lines[i]}
	while [[ $line == *\\ ]]; do
		i=$((i + 1))
		line=${line%\\}${lines[i]}
	done
	say "$line"
	eval "$line" </dev/null || {
		say "failed with $?: $line"
		failed=1
	}
done
stop || failed=1
exit "$failed"
