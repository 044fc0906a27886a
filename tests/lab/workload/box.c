/* A container without a container tool: pid, mount, uts, ipc, net and cgroup namespaces, a chroot, a cable out. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "net.h"
#include "workload.h"

static void inside(int children)
{
	struct sockaddr_un abstract = { .sun_family = AF_UNIX, .sun_path = "\0in-the-box" };
	int server;

	/* busybox cannot name a veth's other end; it is veth0 */
	shell("ip link set lo up; ip addr add 10.8.0.2/24 dev veth0 && ip link set veth0 up");
	must(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
	must(mount("tmpfs", "/lab/box", "tmpfs", 0, NULL), "mount /lab/box");
	mkdir("/lab/box/proc", 0755);
	must(mount("proc", "/lab/box/proc", "proc", 0, NULL), "mount proc");
	must(chroot("/lab/box"), "chroot");
	must(chdir("/"), "chdir");
	must(sethostname("box", 3), "sethostname");
	signal(SIGCHLD, SIG_IGN); /* process 1 of its namespace reaps */
	int listener = tcp_listener("0.0.0.0", 8080, 16, 0);
	tcp_pair(listener, "127.0.0.1", &server);
	inet_bound("127.0.0.1", 5300, SOCK_DGRAM, 0); /* a port that is taken outside, too */
	int named = must(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "unix");
	must(bind(named, (void *)&abstract, sizeof(sa_family_t) + 11), "bind");
	must(listen(named, 4), "listen");
	inet_connect(inet_socket("10.8.0.1", SOCK_STREAM, 0), "10.8.0.1", 8081); /* out of the box */
	for (int i = 0; i < children; i++)
		if (!spawn("box-child-%d", i)) {
			must(setuid(100000 + i), "setuid");
			settle();
		}
	if (!spawn("box-nested")) { /* a namespace within: its process has three pids */
		must(unshare(CLONE_NEWPID), "CLONE_NEWPID");
		if (!spawn("nested-init"))
			settle();
		settle();
	}
	settle();
}

void box(int n)
{
	int go[2], server = tcp_listener("0.0.0.0", 8081, 4, 0);
	int namespaces = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET;
	char byte = 0;

	rename_self("box-runtime");
	mkdir("/sys/fs/cgroup/machine.slice", 0755);
	mkdir("/sys/fs/cgroup/machine.slice/box\\x2d1.scope", 0755);
	must(pipe2(go, O_CLOEXEC), "pipe");
	pid_t child = must(syscall(SYS_clone, namespaces | SIGCHLD, 0, 0, 0, 0), "clone");
	if (!child) {
		close(go[1]); /* so that the runtime's end is noticed */
		rename_self("box-init");
		must(read(go[0], &byte, 1) - 1, "read");
		inside(n);
	}
	shell("echo %d > '/sys/fs/cgroup/machine.slice/box\\x2d1.scope/cgroup.procs'", child);
	shell("ip link add cable0 type veth && ip link set veth0 netns %d", child);
	shell("ip addr add 10.8.0.1/24 dev cable0 && ip link set cable0 up");
	must(write(go[1], &byte, 1), "write");
	must(accept4(server, NULL, NULL, SOCK_CLOEXEC), "accept from the box");
}
