/*
 * Block status requests and replies: NBD_CMD_BLOCK_STATUS of proto.md, for
 * base:allocation. On the connection's loop.
 */
#ifndef DAEMON_NBD_STATUS_H
#define DAEMON_NBD_STATUS_H

#include <stdint.h>

struct nbd_slot;

/* Why a request is not carried out. text is constant. */
struct nbd_refusal {
    int result;             /* -errno */
    const char *text;
};

/* A well-formed payload: the length asked for, and the one context. */
#define NBD_STATUS_PAYLOAD_SIZE 12u

/* Takes the payload of a request that has one (size bytes): the length that it is about. NULL if it is
 * well-formed. */
const struct nbd_refusal *nbd_status_payload(const unsigned char *payload, uint64_t size, uint64_t *length);

/* Gives the request room for extents. -ENOMEM. */
int nbd_status_prepare(struct nbd_slot *slot);

/* Sets slot->payload to the reply; there is at least one extent. */
void nbd_status_encode(struct nbd_slot *slot);

#endif
