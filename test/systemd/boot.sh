#!/bin/sh
# boot.sh UNITS: becomes systemd as a container's first process, with the units of that folder in
# /run/systemd/system. It has to be the first process of a PID namespace, in namespaces of its own for
# mounts and cgroups. It starts lab.target, and nothing else.
set -eu
mount --make-rprivate /
mount -t proc proc /proc
cp -r "$1" /tmp/units
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/systemd
mv /tmp/units /run/systemd/system
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup /sys/fs/cgroup
export container=lab
exec /lib/systemd/systemd --system --unit=lab.target --log-target=null --show-status=no </dev/null
