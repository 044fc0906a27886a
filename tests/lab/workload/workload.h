/* What the parts of the workload share. Every scenario sets itself up, calls nothing after, and sits there. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdnoreturn.h>
#include <sys/types.h>

/* A scenario returns when all it makes is there; its process then stays for ever. `n` is its number, where it has one. */
typedef void scenario(int n);

struct entry {
	const char *name;
	scenario *set_up;
	int n; /* default */
};

extern const struct entry process_scenarios[], socket_scenarios[];

/* Report `what` and errno to whoever started this, and end. */
noreturn void die(const char *what);
/* Report without ending: what this kernel does not have. */
void missing(const char *what);
/* No more to come from this process. */
void settled(void);
/* The same, and sit there for ever. */
noreturn void settle(void);
/* A child named `name` (printf), 0 in the child. It must end in settle(). */
__attribute__((format(printf, 1, 2))) pid_t spawn(const char *name, ...);
__attribute__((format(printf, 1, 2))) void rename_self(const char *name, ...);
__attribute__((format(printf, 1, 2))) void shell(const char *command, ...);
/* `value` if it is not negative. */
int must(int value, const char *what);

noreturn void agent(const char *path);
/* Print what bpf(2) tells, and end. */
noreturn void list_bpf(void);
/* Answers on that port, and a process that uses it, among much else; see exercise.c. */
noreturn void echo(int port);
noreturn void receiver(const char *path, const char *ip, int port, int shared);
noreturn void exercise(const char *name, const char *ip, int port, int uid);
void cost(int n);
/* Makes processes that end at once, as many as it can; see churn.c. */
noreturn void churn(int n);
/* Runs a program, and writes what wait(2) says of it into a file; see waiter.c. */
noreturn void wait_for(const char *path, char **program);
/* Plays the other end of TCP connections over a TUN device; see peer.c. */
void start_peer(void);
scenario tcp, box, confined, signalled, limited, placed, containers;
scenario tcp, box, network;
scenario tcp, box, watched;
scenario tcp, box, confined, signalled, limited, placed, containers, blocked;

#endif
