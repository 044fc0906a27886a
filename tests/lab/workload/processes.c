/* Processes of every kind that `ps` must get right: states, owners, names, command lines, namespaces. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fsuid.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

static void write_file(const char *path, const char *text)
{
	int fd = must(open(path, O_WRONLY | O_CLOEXEC), path);

	must(write(fd, text, strlen(text)), path);
	close(fd);
}

static void sleepers(int n)
{
	for (int i = 0; i < n; i++)
		if (!spawn("sleeper-%d", i))
			settle();
}

/* A chain: each the parent of the next. */
static void tree(int n)
{
	for (int i = 0; i < n && !spawn("tree-%d", i); i++)
		;
}

static void *work(void *number)
{
	rename_self("worker-%d", (int)(long)number);
	for (;;)
		pause();
	return NULL;
}

static void start_threads(int n)
{
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 32768);
	for (long i = 0; i < n; i++) {
		pthread_t thread;

		errno = pthread_create(&thread, &small, work, (void *)i);
		if (errno)
			die("pthread_create");
	}
}

/* The first thread is gone, the process lives: its leader is a zombie that is none. */
static void *outlive(void *number)
{
	rename_self("survivor-%d", (int)(long)number);
	settle();
}

static void leader_gone(int n)
{
	(void)n;
	if (!spawn("leader-gone")) {
		pthread_t thread;

		pthread_create(&thread, NULL, outlive, (void *)1L);
		syscall(SYS_exit, 0);
	}
}

static void zombie(int n)
{
	rename_self("zombie-parent");
	for (int i = 0; i < n; i++) {
		siginfo_t info;
		pid_t child = spawn("zombie-%d", i);

		if (!child)
			_exit(i);
		waitid(P_PID, child, &info, WEXITED | WNOWAIT);
	}
}

static void stopped(int n)
{
	(void)n;
	rename_self("stopped-parent");
	pid_t child = spawn("stopped");

	if (!child) {
		settled(); /* says so before: once stopped it cannot */
		raise(SIGSTOP);
		settle();
	}
	siginfo_t info;
	must(waitid(P_PID, child, &info, WSTOPPED | WNOWAIT), "waitid");
}

static void traced(int n)
{
	(void)n;
	rename_self("tracer");
	pid_t child = spawn("tracee");

	if (!child) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		settled();
		raise(SIGSTOP);
		settle();
	}
	must(waitpid(child, NULL, WUNTRACED), "waitpid");
}

/* The parent of a vfork waits uninterruptibly, state D. */
static void dstate(int n)
{
	(void)n;
	if (!spawn("dstate")) {
		settled();
		if (!vfork()) {
			prctl(PR_SET_NAME, "dstate-child");
			settle();
		}
	}
}

static void burner(int n)
{
	clock_t until = clock() + n * (CLOCKS_PER_SEC / 1000);

	while (clock() < until)
		;
}

static void owners(int n)
{
	gid_t groups[] = { 4001, 4002, 4003 };

	(void)n;
	if (!spawn("ids")) {
		must(setgroups(3, groups), "setgroups");
		must(setresgid(3001, 3002, 3003), "setresgid");
		must(setresuid(2001, 2002, 2003), "setresuid");
		settle();
	}
	if (!spawn("ids-nobody")) {
		must(setgroups(0, NULL), "setgroups");
		must(setresgid(65534, 65534, 65534), "setresgid");
		must(setresuid(65534, 65534, 65534), "setresuid");
		settle();
	}
	if (!spawn("ids-big")) {
		must(setresgid(4294967290u, 4294967290u, 4294967290u), "setresgid");
		must(setresuid(4294967290u, 4294967290u, 4294967290u), "setresuid");
		settle();
	}
	if (!spawn("ids-fs")) {
		setfsuid(2005);
		setfsgid(3005);
		settle();
	}
}

static void priorities(int n)
{
	struct sched_param top = { .sched_priority = 10 }, none = { 0 };
	const int levels[] = { -20, -5, 7, 19 };

	(void)n;
	for (int i = 0; i < 4; i++)
		if (!spawn("nice%+d", levels[i])) {
			must(setpriority(PRIO_PROCESS, 0, levels[i]), "setpriority");
			settle();
		}
	if (!spawn("fifo-10")) {
		must(sched_setscheduler(0, SCHED_FIFO, &top), "SCHED_FIFO");
		settle();
	}
	if (!spawn("sched-batch")) {
		must(sched_setscheduler(0, SCHED_BATCH, &none), "SCHED_BATCH");
		settle();
	}
}

/* Names and command lines that would garble a terminal, a parser, or a table. */
static void names(int n)
{
	static const char *const odd[] = { "\033[31mred\033[0m", "a) R 1 (b", "new\nline\ttab", "\303\251\342\202\254\360\237\230\200", "bad\377\376utf8", "  blanks  ", "", "fifteen-bytes-1", "a\\b\"c'd,e", "\302\233" "31mcsi" };

	(void)n;
	for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++)
		if (!spawn("odd-name"))
			execl("/bin/workload", odd[i], "hold", odd[i], "", "\033]0;title\007", "two words", odd[i], (char *)NULL);
	if (!spawn("kworker/9:9")) /* poses as a kernel thread */
		execl("/bin/workload", "[kworker/9:9-events]", "hold", "kworker/9:9", (char *)NULL);
}

static void long_line(int n)
{
	char **words = calloc(n + 4, sizeof(*words));

	words[0] = "long-line";
	words[1] = "hold";
	words[2] = "long-line";
	for (int i = 0; i < n; i++)
		must(asprintf(&words[i + 3], "argument-%d-%0*d", i, i % 64, i), "asprintf");
	if (!spawn("long-line"))
		execv("/bin/workload", words);
	if (!spawn("one-long-word")) {
		char *word = malloc(100001);

		memset(word, 'x', 100000);
		word[100000] = 0;
		execl("/bin/workload", "one-long-word", "hold", "one-long-word", word, (char *)NULL);
	}
}

/* What setproctitle() does: `text` over argv, and with a long one over the environment, which lies behind it. */
static void retitle_exec(const char *name, const char *text, const char *padding)
{
	if (!spawn("%s", name))
		execle("/bin/workload", "workload", "title", name, text, padding, (char *)NULL,
		       (char *const[]){ "HOME=/root", "PADDING=0123456789012345678901234567890123456789012345678901234567890", NULL });
}

static void titles(int n)
{
	(void)n;
	retitle_exec("title-short", "short: title", "0123456789012345678901234567890123456789");
	retitle_exec("title-long", "long: a title that is longer than all of the arguments were and goes on into the environment", "");
	retitle_exec("title-empty", "", "");
}

static int copy_self(int to)
{
	struct stat size;
	int from = must(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), "/proc/self/exe");

	must(fstat(from, &size), "fstat");
	for (off_t at = 0; at < size.st_size;)
		must(sendfile(to, from, &at, size.st_size - at), "sendfile");
	close(from);
	return to;
}

static void deleted(int n)
{
	(void)n;
	mkdir("/tmp/a folder", 0755);
	int fd = must(open("/tmp/a folder/deleted-exe", O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0755), "deleted-exe");

	close(copy_self(fd));
	pid_t child = spawn("deleted-exe");
	if (!child)
		execl("/tmp/a folder/deleted-exe", "deleted-exe", "hold", "deleted-exe", (char *)NULL);
	char path[64], target[256];
	snprintf(path, sizeof(path), "/proc/%d/exe", child);
	for (int i = 0; i < 1000; i++) { /* until it has executed: unlinked before, it could not */
		ssize_t got = readlink(path, target, sizeof(target) - 1);

		if (got > 0 && (target[got] = 0, strstr(target, "deleted-exe")))
			break;
		usleep(10000);
	}
	unlink("/tmp/a folder/deleted-exe");
	if (!spawn("memfd-exe")) {
		int memory = copy_self(must(memfd_create("from-memory", MFD_CLOEXEC), "memfd"));

		/* not fexecve(): one of 5.10's stable releases answers ENOENT */
		char self[64];
		snprintf(self, sizeof(self), "/proc/self/fd/%d", memory);
		execl(self, "memfd-exe", "hold", "memfd-exe", (char *)NULL);
		die("memfd-exe");
	}
}

static void cgroups(int n)
{
	(void)n;
	mkdir("/sys/fs/cgroup/lab.slice", 0755);
	mkdir("/sys/fs/cgroup/lab.slice/in ner.scope", 0755);
	mkdir("/sys/fs/cgroup/lab.slice/gone.scope", 0755);
	if (!spawn("cgroup-inner")) {
		write_file("/sys/fs/cgroup/lab.slice/in ner.scope/cgroup.procs", "0");
		settle();
	}
	if (!spawn("cgroup-outer")) {
		write_file("/sys/fs/cgroup/lab.slice/cgroup.procs", "0");
		settle();
	}
}

static void user_namespace(int n)
{
	(void)n;
	rename_self("userns");
	must(unshare(CLONE_NEWUSER), "CLONE_NEWUSER");
	write_file("/proc/self/setgroups", "deny");
	write_file("/proc/self/uid_map", "0 0 1\n");
	write_file("/proc/self/gid_map", "0 0 1\n");
}

/* Descriptors of every kind, and many. */
static void files(int n)
{
	int ends[2];
	sigset_t none;

	sigemptyset(&none);
	must(pipe(ends), "pipe");
	must(eventfd(7, 0), "eventfd");
	must(timerfd_create(CLOCK_MONOTONIC, 0), "timerfd");
	must(signalfd(-1, &none, 0), "signalfd");
	must(epoll_create1(0), "epoll");
	must(inotify_init1(0), "inotify");
	must(memfd_create("in memory", 0), "memfd");
	must(open("/", O_RDONLY | O_DIRECTORY), "/");
	must(open("/dev/zero", O_RDWR), "/dev/zero");
	must(open("/proc/self/maps", O_RDONLY), "maps");
	must(open("/tmp", O_TMPFILE | O_RDWR, 0600), "O_TMPFILE");
	int gone = must(open("/tmp/gone", O_CREAT | O_RDWR, 0600), "/tmp/gone");
	must(write(gone, "gone", 4), "write");
	unlink("/tmp/gone");
	must(lseek(gone, 2, SEEK_SET), "lseek");
	for (int i = 0; i < n; i++)
		must(open("/dev/null", O_WRONLY), "/dev/null");
	must(dup2(gone, 5000), "dup2");
}

/* Mappings: anonymous, shared, file, read-execute-write, guarded, huge hole. */
static void mappings(int n)
{
	(void)n;
	char *anon = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *shared = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	void *rwx = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *hole = mmap(NULL, 1ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (anon == MAP_FAILED || shared == MAP_FAILED || rwx == MAP_FAILED || hole == MAP_FAILED)
		die("mmap");
	memset(anon, 1, 1 << 19);
	memset(shared, 2, 1 << 16);
	memset(rwx, 0xc3, 4096);
	int fd = must(open("/bin/busybox", O_RDONLY), "busybox");
	mmap(NULL, 1 << 16, PROT_READ, MAP_PRIVATE, fd, 4096);
}

const struct entry process_scenarios[] = {
	{ "sleepers", sleepers, 100 },
	{ "tree", tree, 6 },
	{ "threads", start_threads, 12 },
	{ "leader-gone", leader_gone, 0 },
	{ "zombie", zombie, 3 },
	{ "stopped", stopped, 0 },
	{ "traced", traced, 0 },
	{ "dstate", dstate, 0 },
	{ "burner", burner, 300 },
	{ "owners", owners, 0 },
	{ "priorities", priorities, 0 },
	{ "names", names, 0 },
	{ "long-line", long_line, 2000 },
	{ "titles", titles, 0 },
	{ "deleted", deleted, 0 },
	{ "cgroups", cgroups, 0 },
	{ "userns", user_namespace, 0 },
	{ "files", files, 300 },
	{ "mappings", mappings, 0 },
	{ "box", box, 3 },
	{ "confined", confined, 0 },
	{ "signalled", signalled, 0 },
	{ "limited", limited, 0 },
	{ "placed", placed, 0 },
	{ "containers", containers, 0 },
	{ "watched", watched, 0 },
	{ "blocked", blocked, 0 },
	{ 0 },
};
