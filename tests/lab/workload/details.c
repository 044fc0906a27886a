/* Processes whose rights, limits, signals, tracers and places are not the common ones. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workload.h"

static void write_file(const char *path, const char *text)
{
	int fd = must(open(path, O_WRONLY | O_CLOEXEC), path);

	must(write(fd, text, strlen(text)), path);
	close(fd);
}

/* Some capabilities in each of the five sets, others in none. */
static void some_capabilities(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	must(prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN), "PR_CAPBSET_DROP");
	must(prctl(PR_CAPBSET_DROP, CAP_AUDIT_READ), "PR_CAPBSET_DROP");
	data[0].permitted = 1u << CAP_NET_RAW | 1u << CAP_NET_BIND_SERVICE | 1u << CAP_CHOWN;
	data[0].effective = 1u << CAP_CHOWN;
	data[0].inheritable = 1u << CAP_NET_RAW | 1u << CAP_CHOWN;
	data[1].permitted = 1u << (CAP_SYSLOG - 32);
	must(syscall(SYS_capset, &header, data), "capset");
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0), "PR_CAP_AMBIENT_RAISE");
}

static void filter(void)
{
	struct sock_filter all[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog program = { 1, all };

	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "SECCOMP_MODE_FILTER");
}

void confined(int n)
{
	(void)n;
	if (!spawn("some-caps")) {
		some_capabilities();
		settle();
	}
	if (!spawn("secure-bits")) {
		must(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE), "securebits");
		settle();
	}
	if (!spawn("no-new-privs")) {
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
		settle();
	}
	if (!spawn("two-filters")) {
		filter();
		filter();
		settle();
	}
	if (!spawn("strict")) { /* may read, and nothing else that waits */
		int ends[2];
		char byte;

		must(pipe(ends), "pipe");
		settled();
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
		for (;;)
			if (read(ends[0], &byte, 1) < 0)
				continue;
	}
	if (!spawn("logged-in")) {
		write_file("/proc/self/loginuid", "1234");
		settle();
	}
}

static void nothing(int number)
{
	(void)number;
}

void signalled(int n)
{
	const int ignored[] = { SIGHUP, SIGPIPE, SIGTERM, SIGRTMIN + 1 }, caught[] = { SIGINT, SIGUSR2, SIGRTMAX };

	(void)n;
	rename_self("signalled-parent");
	if (!spawn("signals")) {
		sigset_t blocked;

		sigemptyset(&blocked);
		sigaddset(&blocked, SIGUSR1);
		sigaddset(&blocked, SIGRTMIN + 3);
		must(sigprocmask(SIG_BLOCK, &blocked, NULL), "sigprocmask");
		for (int i = 0; i < 4; i++)
			signal(ignored[i], SIG_IGN);
		for (int i = 0; i < 3; i++)
			signal(caught[i], nothing);
		must(kill(getpid(), SIGUSR1), "kill");
		must(syscall(SYS_tgkill, getpid(), gettid(), SIGRTMIN + 3), "tgkill");
		settle();
	}
	pid_t child = spawn("stopped-tstp");
	if (!child) {
		setpgid(0, 0); /* an orphaned group would not stop */
		settled();
		raise(SIGTSTP);
		settle();
	}
	siginfo_t info;
	must(waitid(P_PID, child, &info, WSTOPPED | WNOWAIT), "waitid");
	if (!spawn("seizer")) {
		pid_t seized = spawn("seized");

		if (!seized)
			settle();
		must(ptrace(PTRACE_SEIZE, seized, NULL, PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACESYSGOOD), "seize");
		settle();
	}
}

void limited(int n)
{
	const struct rlimit files = { 77, 88 }, cores = { RLIM_INFINITY, RLIM_INFINITY }, nice = { 10, 20 },
			    stack = { 1 << 20, 1ul << 40 }, cpu = { 1000000, 2000000 };

	(void)n;
	rename_self("limited");
	must(setrlimit(RLIMIT_NOFILE, &files), "RLIMIT_NOFILE");
	must(setrlimit(RLIMIT_CORE, &cores), "RLIMIT_CORE");
	must(setrlimit(RLIMIT_NICE, &nice), "RLIMIT_NICE");
	must(setrlimit(RLIMIT_STACK, &stack), "RLIMIT_STACK");
	must(setrlimit(RLIMIT_CPU, &cpu), "RLIMIT_CPU");
}

/* Threads that wait in many places of the kernel, one of them a module's. */
void blocked(int n)
{
	int ends[2], word = 0;
	struct pollfd nothing_to_poll;

	(void)n;
	must(pipe(ends), "pipe");
	if (!spawn("wait-module")) {
		int server = socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP);
		struct sockaddr_in any = { .sin_family = AF_INET };

		if (server < 0 || bind(server, (void *)&any, sizeof(any)) || listen(server, 1))
			missing("SCTP");
		settled();
		accept(server, NULL, NULL);
		settle();
	}
	if (!spawn("wait-futex")) {
		settled();
		for (;;)
			syscall(SYS_futex, &word, 0 /* FUTEX_WAIT */, 0, NULL, NULL, 0);
	}
	if (!spawn("wait-sleep")) {
		settled();
		for (;;)
			sleep(1000000);
	}
	if (!spawn("wait-poll")) {
		nothing_to_poll = (struct pollfd){ .fd = ends[0], .events = POLLIN };
		settled();
		for (;;)
			poll(&nothing_to_poll, 1, -1);
	}
	if (!spawn("wait-select")) {
		settled();
		for (;;) {
			fd_set set;

			FD_ZERO(&set);
			FD_SET(ends[0], &set);
			select(ends[0] + 1, &set, NULL, NULL, NULL);
		}
	}
	if (!spawn("wait-epoll")) {
		struct epoll_event event;
		int epoll = must(epoll_create1(0), "epoll");

		settled();
		for (;;)
			epoll_wait(epoll, &event, 1, -1);
	}
	if (!spawn("wait-signal")) {
		sigset_t set;
		int got;

		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigprocmask(SIG_BLOCK, &set, NULL);
		settled();
		for (;;)
			sigwait(&set, &got);
	}
	if (!spawn("wait-message")) {
		struct { long kind; char text[8]; } message;
		int queue = msgget(IPC_PRIVATE, 0600);

		settled();
		for (;;)
			msgrcv(queue, &message, sizeof(message.text), 0, 0);
	}
	if (!spawn("wait-lock")) {
		int held = must(open("/run/lock", O_CREAT | O_RDWR, 0600), "lock"), wanted = must(open("/run/lock", O_RDWR), "lock");

		must(flock(held, LOCK_EX), "flock");
		settled();
		for (;;)
			flock(wanted, LOCK_EX);
	}
}

/* Where a process stands: terminal, session, directories; and how the kernel is to treat it. */
void placed(int n)
{
	(void)n;
	if (!spawn("on-tty")) {
		char name[64];
		int unlock = 0, number = 0;
		int master = must(open("/dev/ptmx", O_RDWR | O_NOCTTY), "/dev/ptmx");

		must(ioctl(master, TIOCSPTLCK, &unlock), "unlock");
		must(ioctl(master, TIOCGPTN, &number), "number");
		snprintf(name, sizeof(name), "/dev/pts/%d", number);
		setsid();
		int terminal = must(open(name, O_RDWR | O_NOCTTY), name);
		must(ioctl(terminal, TIOCSCTTY, 0), "TIOCSCTTY");
		if (!spawn("on-tty-child")) {
			setpgid(0, 0);
			settle();
		}
		settle();
	}
	if (!spawn("gone-dir")) {
		must(mkdir("/tmp/a gone dir", 0755), "mkdir");
		must(chdir("/tmp/a gone dir"), "chdir");
		must(rmdir("/tmp/a gone dir"), "rmdir");
		settle();
	}
	if (!spawn("own-root")) {
		mkdir("/tmp/own root", 0755);
		must(chroot("/tmp/own root"), "chroot");
		must(chdir("/"), "chdir");
		settle();
	}
	if (!spawn("oom-first")) {
		write_file("/proc/self/oom_score_adj", "567");
		settle();
	}
	if (!spawn("oom-last")) {
		write_file("/proc/self/oom_score_adj", "-987");
		settle();
	}
	if (!spawn("sched-idle")) {
		struct sched_param none = { 0 };

		must(sched_setscheduler(0, SCHED_IDLE, &none), "SCHED_IDLE");
		settle();
	}
	if (!spawn("rr-20")) {
		struct sched_param round = { .sched_priority = 20 };

		must(sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &round), "SCHED_RR");
		settle();
	}
	if (!spawn("deadline")) {
		struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; }
			attributes = { 48, 6 /* SCHED_DEADLINE */, 0, 0, 0, 1000000, 20000000, 20000000 };

		if (syscall(SYS_sched_setattr, 0, &attributes, 0))
			missing("SCHED_DEADLINE");
		settle();
	}
}
