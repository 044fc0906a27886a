/* How the other end of a connection behaves, chosen by the port that is connected to (IPv4 and IPv6 alike). */
#ifndef PEER_H
#define PEER_H

#define PEER_HERE4 "10.7.0.1" /* this guest, as the peer sees it */
#define PEER_HERE6 "fd07::1"
#define PEER_THERE4 "10.7.0.2" /* the peer */
#define PEER_THERE6 "fd07::2"

enum {
	PEER_SILENT = 9001, /* never answers: SYN_SENT */
	PEER_DEAF, /* answers the SYN, then acknowledges nothing: unsent data, FIN_WAIT1 */
	PEER_HALF, /* acknowledges all, never closes: FIN_WAIT2 */
	PEER_CROSSING, /* closes when we do, without having seen it: CLOSING */
	PEER_CLOSER, /* closes at once, acknowledges nothing after: CLOSE_WAIT, LAST_ACK */
	PEER_POLITE, /* closes when we do, and keeps TIME_WAIT alive */
	PEER_TALKER, /* sends PEER_TALK bytes that nobody reads */
	PEER_CLOSED_WINDOW, /* takes no data at all */

	PEER_TALK = 1000,

	/* Ports that it connects to, at start, where something listens by then. */
	HERE_HALF_OPEN = 7001, /* sends a SYN and never more: SYN_RECV */
	HERE_BACKLOG = 7002, /* connects for good: waits in the accept queue */
	HERE_DUAL = 7003, /* half open, IPv4 to a dual-stack IPv6 listener */
};

#endif
