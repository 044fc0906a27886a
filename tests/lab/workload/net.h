/* Opening internet sockets in one line. Addresses are text; a colon in it makes it IPv6. Everything dies on failure. */
#ifndef NET_H
#define NET_H

int inet_socket(const char *ip, int type, int protocol);
int inet_bound(const char *ip, int port, int type, int protocol);
void inet_connect(int fd, const char *ip, int port);
/* Listens on `ip`:`port`; on "::" for IPv4 too, unless `only6`. */
int tcp_listener(const char *ip, int port, int backlog, int only6);
/* The state of a TCP socket, TCP_ESTABLISHED ... */
int tcp_state(int fd);
/* Does not wait for the connection: see tcp_reach(). */
int tcp_dial(const char *ip, int port);
/* Wait until the socket is in that state. */
void tcp_reach(int fd, int state);
/* A connection within this network namespace; gives the client's end, and the server's in `accepted`. */
int tcp_pair(int listener, const char *ip, int *accepted);
int local_port(int fd);
void set_option(int fd, int level, int option, int value);

#endif
