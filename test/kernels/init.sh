#!/bin/busybox sh
# The first process of a machine: it mounts what a booted system has, runs the
# jobs and waits to be ended. ttyS0 carries the kernel's messages, a port of virtio the jobs' output: of a
# serial line each byte is a step here, which is 4 s a megabyte, and there are 6 (measured on 6.12).
export PATH=/usr/bin:/bin HOME=/root TERM=dumb
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
[ -c /dev/net/tun ] || mknod /dev/net/tun c 10 200 # opening it loads the module
ln -s /proc/self/fd /dev/fd
# There is no udev to load drivers. A machine on a wire has a network card (class 02).
modprobe -a virtio_pci virtio_console
if grep -q ^0x02 /sys/bus/pci/devices/*/class; then modprobe virtio_net; fi
hostname tendril
ip link set lo up
for _ in $(seq 600); do
	[ -c /dev/vport0p1 ] && break
	sleep 0.1
done
if [ -c /dev/vport0p1 ]; then
	# A shell that has not come to the end of them says so no other way.
	sh /jobs >/dev/vport0p1 2>&1 </dev/null || poweroff -f
	# Who reads ends the machine after the last job: what is under way in the port would be lost with it.
	while :; do sleep 60; done
else
	echo "there is no port /dev/vport0p1 for what jobs print" >/dev/ttyS0
fi
poweroff -f
