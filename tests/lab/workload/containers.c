/* Control groups as container managers name them, with somebody in each, in v2's hierarchy and in one of v1's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workload.h"

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789ab"
#define POD "6f3a2c1d_aaaa_bbbb_cccc_0123456789ab"

static const struct { const char *name, *path; } groups[] = {
	{ "c-docker-1", "system.slice/docker-" HEX "0001.scope" },
	{ "c-docker-2", "docker/" HEX "0002" },
	{ "c-docker-in", "docker/" HEX "0002/system.slice/sshd.service" },
	{ "c-podman", "machine.slice/libpod-" HEX "0003.scope" },
	{ "c-podman-in", "machine.slice/libpod-" HEX "0003.scope/container" },
	{ "c-conmon", "machine.slice/libpod-conmon-" HEX "0003.scope" },
	{ "c-containerd", "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" POD ".slice/cri-containerd-" HEX "0004.scope" },
	{ "c-crio", "kubepods.slice/kubepods-pod" POD ".slice/crio-" HEX "0005.scope" },
	{ "c-kubepods", "kubepods/besteffort/pod6f3a2c1d-aaaa-bbbb-cccc-0123456789ff/" HEX "0006" },
	{ "c-lxc-1", "lxc.payload.web 1" },
	{ "c-lxc-2", "lxc/db" },
	{ "c-lxc-monitor", "lxc.monitor.web 1" },
	{ "c-machine", "machine.slice/machine-qemu\\x2d1\\x2dvm.scope" },
	{ "c-nspawn", "machine.slice/systemd-nspawn@arch.service" },
	{ "c-nspawn-in", "machine.slice/systemd-nspawn@arch.service/payload/system.slice/dbus.service" },
	{ "c-unit", "system.slice/nginx.service" },
	{ "c-session", "user.slice/user-1000.slice/session-2.scope" },
	{ "c-user-unit", "user.slice/user-1000.slice/user@1000.service/app.slice/emacs.service" },
	{ "c-false-1", "system.slice/docker-short.scope" },
	{ "c-false-2", "not-docker/" HEX "0007" },
};

static void in_group(const char *root, const char *name, const char *path, int namespaces)
{
	char text[512], step[512];

	snprintf(text, sizeof(text), "%s/%s", root, path);
	for (char *at = text + strlen(root) + 1; (at = strchr(at, '/')); at++) {
		snprintf(step, sizeof(step), "%.*s", (int)(at - text), text);
		mkdir(step, 0755);
	}
	mkdir(text, 0755);
	strcat(text, "/cgroup.procs");
	if (spawn("%s", name))
		return;
	int procs = must(open(text, O_WRONLY | O_CLOEXEC), text);
	must(write(procs, "0", 1), text);
	close(procs);
	if (namespaces) {
		must(unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET), "unshare");
		if (!spawn("%s-init", name)) {
			if (!spawn("%s-child", name))
				settle();
			settle();
		}
		settled();
		_exit(0);
	}
	settle();
}

void containers(int n)
{
	(void)n;
	signal(SIGCHLD, SIG_IGN); /* no zombies of those that only made a namespace */
	for (size_t i = 0; i < sizeof(groups) / sizeof(*groups); i++)
		in_group("/sys/fs/cgroup", groups[i].name, groups[i].path, !strcmp(groups[i].name, "c-docker-1"));
	mkdir("/run/cgroup1", 0755);
	if (mount("cgroup", "/run/cgroup1", "cgroup", 0, "none,name=systemd")) {
		missing("a v1 hierarchy of control groups");
		return;
	}
	in_group("/run/cgroup1", "v1-docker", "docker/" HEX "1001", 0);
	in_group("/run/cgroup1", "v1-kubepods", "kubepods/burstable/podaaaaaaaa-aaaa-bbbb-cccc-0123456789ff/" HEX "1002", 0);
	in_group("/run/cgroup1", "v1-unit", "system.slice/cron.service", 0);
}
