/* Netlink messages, built piece by piece in one buffer; everything dies on failure. */
#ifndef NL_H
#define NL_H

#include <stddef.h>

/* Begin a message of `type` with the family's header of `size` bytes; `more` are NLM_F_* beside REQUEST and ACK. */
void nl_begin(int type, int more, const void *header, size_t size);
/* Bytes as they are, then an attribute of bytes, of a number, of text, of an address. */
void nl_raw(const void *data, size_t size);
void nl_put(int type, const void *data, size_t size);
void nl_put32(int type, unsigned value);
void nl_text(int type, const char *text);
void nl_ip(int type, const char *ip);
/* Open an attribute for others to go into; its place, for nl_end(). */
size_t nl_nest(int type);
void nl_end(size_t at);
/* Send all messages begun since the last time; those that want an answer must all be answered with 0. `what` is said on
 * failure, `optional` makes it "missing" instead. */
void nl_send(int protocol, const char *what, int optional);
/* `workload netlink NAMESPACE PROTOCOL TYPE HEX`: ask for a dump, in that file's namespace; a line for each message. */
int nl_dump(const char *namespace, int protocol, int type, const char *hex);

#endif
