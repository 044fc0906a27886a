/*
 * What watches a kernel: eBPF programs, maps and links, kprobes, uprobes, traced functions, tracepoints. And swap, and huge pages.
 *
 * `workload bpf` lists what bpf(2) tells of the programs, maps and links that there are: the truth for tests.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/perf_event.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "workload.h"

#define TRACING "/sys/kernel/tracing/"

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int map(int type, const char *name, int key, int value, int entries, int flags)
{
	union bpf_attr attr = {
		.map_type = type, .key_size = key, .value_size = value, .max_entries = entries, .map_flags = flags,
	};

	strcpy(attr.map_name, name);
	return must(bpf(BPF_MAP_CREATE, &attr), name);
}

/* A program that returns `result`, and holds on to a map if there is one. -1 where this kernel knows no such programs. */
static int program(int type, const char *name, int result, int attach_type, int btf_id, int of_map)
{
	struct bpf_insn code[8] = { 0 }, *next = code;

	if (of_map >= 0) {
		*next++ = (struct bpf_insn){ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD,
					     .imm = of_map };
		next++;
	}
	*next++ = (struct bpf_insn){ .code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = result };
	*next++ = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
	union bpf_attr attr = {
		.prog_type = type, .insns = (unsigned long)code, .insn_cnt = next - code, .license = (unsigned long)"GPL",
		.expected_attach_type = attach_type, .attach_btf_id = btf_id,
	};

	strcpy(attr.prog_name, name);
	int fd = bpf(BPF_PROG_LOAD, &attr);
	if (fd < 0)
		missing(name);
	return fd;
}

static int bpf_link(int prog, int target, int attach_type, int flags)
{
	union bpf_attr attr = { .link_create = { .prog_fd = prog, .target_fd = target, .attach_type = attach_type,
						 .flags = flags } };

	return bpf(BPF_LINK_CREATE, &attr);
}

static int raw_tracepoint(int prog, const char *name)
{
	union bpf_attr attr = { .raw_tracepoint = { .name = (unsigned long)name, .prog_fd = prog } };

	return bpf(BPF_RAW_TRACEPOINT_OPEN, &attr);
}

static long number(const char *path)
{
	char text[32] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return -1;
	close(fd);
	return strtol(text, NULL, 0);
}

/* Let a program run at an event: by a link, or the older way. */
static void at_event(int prog, struct perf_event_attr *event, const char *what)
{
	int fd = syscall(SYS_perf_event_open, event, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);

	if (fd < 0 || prog < 0)
		return missing(what);
	if (bpf_link(prog, fd, BPF_PERF_EVENT, 0) < 0) {
		must(ioctl(fd, PERF_EVENT_IOC_SET_BPF, prog), what);
		must(ioctl(fd, PERF_EVENT_IOC_ENABLE, 0), what);
	}
}

static size_t btf_size(const struct btf_type *t)
{
	static const int per[] = {
		[BTF_KIND_ARRAY] = sizeof(struct btf_array), [BTF_KIND_INT] = 4, [BTF_KIND_VAR] = 4, [17] = 4,
	};
	static const int each[] = {
		[BTF_KIND_STRUCT] = 12, [BTF_KIND_UNION] = 12, [BTF_KIND_ENUM] = 8, [BTF_KIND_FUNC_PROTO] = 8,
		[BTF_KIND_DATASEC] = 12, [19] = 12,
	};
	unsigned kind = BTF_INFO_KIND(t->info);

	return sizeof(*t) + (kind < 18 ? per[kind] : 0) + (kind < 20 ? each[kind] : 0) * BTF_INFO_VLEN(t->info);
}

/* The BTF id of a kernel function, 0 where there is none. */
static int function_id(const char *name)
{
	struct stat size;
	int fd = open("/sys/kernel/btf/vmlinux", O_RDONLY | O_CLOEXEC), id = 1;

	if (fd < 0 || fstat(fd, &size))
		return 0;
	char *raw = malloc(size.st_size);
	for (ssize_t got = 0, n; got < size.st_size; got += n)
		if ((n = read(fd, raw + got, size.st_size - got)) <= 0)
			return 0;
	struct btf_header *header = (void *)raw;
	char *types = raw + header->hdr_len + header->type_off, *strings = raw + header->hdr_len + header->str_off;
	for (char *at = types; at < types + header->type_len; id++) {
		struct btf_type *t = (void *)at;
		if (BTF_INFO_KIND(t->info) == BTF_KIND_FUNC && !strcmp(strings + t->name_off, name))
			return id;
		at += btf_size(t);
	}
	return 0;
}

/* Where in its file a program's first instruction is. */
static long entry_offset(const char *path)
{
	static char raw[4096];
	int fd = must(open(path, O_RDONLY | O_CLOEXEC), path);

	must(read(fd, raw, sizeof(raw)), path);
	close(fd);
	Elf64_Ehdr *elf = (void *)raw;
	Elf64_Phdr *part = (void *)(raw + elf->e_phoff);
	for (int i = 0; i < elf->e_phnum; i++, part++)
		if (part->p_type == PT_LOAD && elf->e_entry - part->p_vaddr < part->p_filesz)
			return elf->e_entry - part->p_vaddr + part->p_offset;
	return -1;
}

static void programs(void)
{
	int values = map(BPF_MAP_TYPE_ARRAY, "lab_array", 4, 8, 16, 0);
	map(BPF_MAP_TYPE_HASH, "lab_hash", 16, 64, 1000, BPF_F_NO_PREALLOC);

	int filter = program(BPF_PROG_TYPE_SOCKET_FILTER, "lab_filter", 0, 0, 0, values);
	int fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
	must(setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &filter, sizeof(filter)), "SO_ATTACH_BPF");

	struct perf_event_attr probe = {
		.size = sizeof(probe), .type = number("/sys/bus/event_source/devices/kprobe/type"), .sample_period = 1,
		.wakeup_events = 1, .kprobe_func = (unsigned long)"do_nanosleep",
	};
	at_event(program(BPF_PROG_TYPE_KPROBE, "lab_kprobe", 0, 0, 0, -1), &probe, "kprobe");
	struct perf_event_attr point = {
		.size = sizeof(point), .type = PERF_TYPE_TRACEPOINT, .sample_period = 1, .wakeup_events = 1,
		.config = number(TRACING "events/sched/sched_process_fork/id"),
	};
	at_event(program(BPF_PROG_TYPE_TRACEPOINT, "lab_point", 0, 0, 0, -1), &point, "tracepoint");
	struct perf_event_attr own = {
		.size = sizeof(own), .type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_CONTEXT_SWITCHES, .disabled = 1,
	};
	must(syscall(SYS_perf_event_open, &own, 0, -1, -1, PERF_FLAG_FD_CLOEXEC), "software event");
	if (raw_tracepoint(program(BPF_PROG_TYPE_RAW_TRACEPOINT, "lab_raw", 0, 0, 0, -1), "sched_process_exit") < 0)
		missing("raw tracepoint");

	mkdir("/sys/fs/cgroup/watched", 0755);
	int group = must(open("/sys/fs/cgroup/watched", O_RDONLY | O_CLOEXEC), "cgroup");
	int prog = program(BPF_PROG_TYPE_CGROUP_SKB, "lab_cgroup", 1, BPF_CGROUP_INET_EGRESS, 0, -1);
	if (bpf_link(prog, group, BPF_CGROUP_INET_EGRESS, 0) < 0)
		missing("cgroup link");
	prog = program(BPF_PROG_TYPE_CGROUP_DEVICE, "lab_device", 1, 0, 0, -1);
	union bpf_attr plain = {
		.target_fd = group, .attach_bpf_fd = prog, .attach_type = BPF_CGROUP_DEVICE,
		.attach_flags = BPF_F_ALLOW_MULTI,
	};
	if (bpf(BPF_PROG_ATTACH, &plain)) /* without a link, as service managers do */
		missing("attached program");
	prog = program(BPF_PROG_TYPE_SK_LOOKUP, "lab_lookup", 1, BPF_SK_LOOKUP, 0, -1);
	if (bpf_link(prog, must(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), "netns"), BPF_SK_LOOKUP, 0) < 0)
		missing("netns link");
	prog = program(BPF_PROG_TYPE_XDP, "lab_xdp", 2 /* XDP_PASS */, BPF_XDP, 0, -1);
	if (bpf_link(prog, if_nametoindex("dummy0"), BPF_XDP, 2 /* XDP_FLAGS_SKB_MODE */) < 0)
		missing("xdp link");
	int id = function_id("do_unlinkat");
	if (!id)
		id = function_id("filename_unlinkat"); /* since 7.0 */
	prog = program(BPF_PROG_TYPE_TRACING, "lab_fentry", 0, BPF_TRACE_FENTRY, id, -1);
	if (raw_tracepoint(prog, NULL) < 0)
		missing("fentry link");
}

static void put(const char *file, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), TRACING "%s", file);
	int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		missing(text);
	close(fd);
}

static int can_put(const char *file, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), TRACING "%s", file);
	int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	int done = fd >= 0 && write(fd, text, strlen(text)) > 0;
	close(fd);
	return done;
}

static void traces(void)
{
	char text[128];

	put("kprobe_events", "p:lab/open do_sys_openat2\n");
	put("kprobe_events", "r:lab/opened do_sys_openat2\n");
	put("kprobe_events", "p:lab/later vfs_read\n"); /* stays disabled */
	/* Behind the function's entry, where ftrace has no place: which differs with `endbr64`. */
	if (!can_put("kprobe_events", "p:lab/inside do_readlinkat+9\n"))
		put("kprobe_events", "p:lab/inside do_readlinkat+5\n");
	for (int i = 0; i < 3; i++) {
		static const char *const names[] = { "open", "opened", "inside" };

		snprintf(text, sizeof(text), "events/lab/%s/enable", names[i]);
		put(text, "1");
	}
	snprintf(text, sizeof(text), "p:lab/start /bin/busybox:%#lx\n", entry_offset("/bin/busybox"));
	put("uprobe_events", text);
	put("events/lab/start/enable", "1");
	put("set_ftrace_filter", "vfs_statx\n");
	put("set_ftrace_filter", "vfs_unlink\n");
	put("current_tracer", "function");
	mkdir(TRACING "instances/lab", 0755);
	put("instances/lab/set_ftrace_filter", "vfs_mkdir\n");
	put("instances/lab/current_tracer", "function");
	put("set_event", "sched:sched_process_exec\n");
	put("events/vsock/enable", "1"); /* a module's */
}

/* Something to swap to, and something that is swapped out. */
static void swapped(void)
{
	size_t size = 4 << 20;

	if (system("{ dd if=/dev/zero of=/tmp/swap bs=1M count=16 && losetup /dev/loop0 /tmp/swap && mkswap /dev/loop0; }"
		   " >/dev/null 2>&1") || swapon("/dev/loop0", SWAP_FLAG_PREFER | 5))
		return missing("swap");
	char *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < size; i++) /* not all alike: zram and zswap would make nothing of that */
		pages[i] = i * 2654435761u >> 24;
	if (madvise(pages, size, MADV_PAGEOUT))
		missing("MADV_PAGEOUT");
}

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		missing(path);
	close(fd);
}

/* Huge pages: transparent ones, whole and in pieces, of one process and of two; and hugetlbfs's. */
static void huge(void)
{
	size_t unit = 2 << 20;

	write_to("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
	write_to("/proc/sys/vm/nr_hugepages", "3");
	if (spawn("huge"))
		return;
	char *room = mmap(NULL, 4 * unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *pages = (char *)(((unsigned long)room + unit - 1) & -unit);
	if (room == MAP_FAILED || madvise(pages, 3 * unit, MADV_HUGEPAGE))
		missing("MADV_HUGEPAGE");
	memset(pages, 1, 3 * unit);
	munmap(pages + unit + 8192, 4096); /* now in small pages, but still of one piece */
	char *held = mmap(NULL, 2 * unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (held == MAP_FAILED)
		missing("MAP_HUGETLB");
	else
		held[0] = 1;
	if (!spawn("huge-twin")) /* what it does not write it shares */
		pages[0] = 2;
	settle();
}

void watched(int n)
{
	(void)n;
	struct rlimit locked = { RLIM_INFINITY, RLIM_INFINITY };

	setrlimit(RLIMIT_MEMLOCK, &locked); /* what eBPF's memory counts against, before 5.11 */
	must(mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL), "tracefs");
	must(mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL), "debugfs");
	swapped();
	huge();
	programs();
	traces();
}

static void hex(const unsigned char *data, int size)
{
	for (int i = 0; i < size; i++)
		printf("%02x", data[i]);
}

static void show_program(int fd)
{
	struct bpf_prog_info info = { 0 };
	unsigned maps[16];
	unsigned long long ksym = 0;
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = (unsigned long)&info } };

	info.nr_map_ids = 16;
	info.map_ids = (unsigned long)maps;
	info.nr_jited_ksyms = 1;
	info.jited_ksyms = (unsigned long)&ksym;
	must(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), "program");
	printf("program id=%u type=%u name=%s tag=", info.id, info.type, info.name);
	hex(info.tag, 8);
	printf(" loaded=%llu uid=%u gpl=%u xlated=%u jited=%u at=%llx maps=", (unsigned long long)info.load_time,
	       info.created_by_uid, info.gpl_compatible, info.xlated_prog_len, info.jited_prog_len, ksym);
	for (unsigned i = 0; i < info.nr_map_ids && i < 16; i++)
		printf(i ? ",%u" : "%u", maps[i]);
	printf("\n");
}

static void show_map(int fd)
{
	struct bpf_map_info info = { 0 };
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = (unsigned long)&info } };

	must(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), "map");
	printf("map id=%u type=%u name=%s key=%u value=%u max=%u flags=%u\n", info.id, info.type, info.name, info.key_size,
	       info.value_size, info.max_entries, info.map_flags);
}

static void show_link(int fd)
{
	struct bpf_link_info info = { 0 };
	char name[128] = "";
	union bpf_attr attr = { .info = { .bpf_fd = fd, .info_len = sizeof(info), .info = (unsigned long)&info } };

	must(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), "link");
	printf("link id=%u type=%u program=%u target=", info.id, info.type, info.prog_id);
	if (info.type == BPF_LINK_TYPE_RAW_TRACEPOINT) {
		info.raw_tracepoint.tp_name = (unsigned long)name;
		info.raw_tracepoint.tp_name_len = sizeof(name);
		must(bpf(BPF_OBJ_GET_INFO_BY_FD, &attr), "link");
		printf("%s", name);
	} else if (info.type == BPF_LINK_TYPE_CGROUP) {
		printf("%llu", (unsigned long long)info.cgroup.cgroup_id);
	} else if (info.type == BPF_LINK_TYPE_NETNS) {
		printf("%u", info.netns.netns_ino);
	} else if (info.type == BPF_LINK_TYPE_XDP) {
		printf("%s", if_indextoname(info.xdp.ifindex, name) ? name : "?");
	}
	printf("\n");
}

/* What is attached to the control group of that path. */
static void show_group(const char *path)
{
	static const int ways[] = { BPF_CGROUP_INET_EGRESS, BPF_CGROUP_DEVICE };
	int group = open(path, O_RDONLY | O_CLOEXEC);

	for (int i = 0; i < 2; i++) {
		unsigned ids[16];
		union bpf_attr attr = { .query = { .target_fd = group, .attach_type = ways[i], .prog_cnt = 16,
						   .prog_ids = (unsigned long)ids } };

		if (!bpf(BPF_PROG_QUERY, &attr))
			for (unsigned n = 0; n < attr.query.prog_cnt && n < 16; n++)
				printf("attached program=%u type=%d target=%s\n", ids[n], ways[i], path);
	}
	close(group);
}

void list_bpf(void)
{
	static const struct {
		int next, get;
		void (*show)(int fd);
	} kinds[] = {
		{ BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID, show_program },
		{ BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID, show_map },
		{ BPF_LINK_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID, show_link },
	};

	for (int kind = 0; kind < 3; kind++) {
		union bpf_attr attr = { 0 };

		while (!bpf(kinds[kind].next, &attr)) {
			union bpf_attr one = { .prog_id = attr.next_id };
			int fd = bpf(kinds[kind].get, &one);

			if (fd >= 0) {
				kinds[kind].show(fd);
				close(fd);
			}
			attr = (union bpf_attr){ .start_id = attr.next_id };
		}
	}
	show_group("/sys/fs/cgroup");
	show_group("/sys/fs/cgroup/watched");
	exit(0);
}
