/* tracker.h: puts the agent into the queue of a TVM tracker (tvm/rpc/tracker.py), for pools of boards. */
#ifndef ELLM_RPC_TRACKER_H
#define ELLM_RPC_TRACKER_H

#include "edgellm.h"

enum { RPC_KEY_BYTES = 300, RPC_TRACKER_POLL_MS = 2000 };

typedef struct rpc_tracker {
    const char *host; /* an IPv4 address; NULL: there is no tracker */
    const char *queue;
    uint16_t port, own_port;
    int socket; /* -1: not connected */
    int n_missing;
    char key[RPC_KEY_BYTES]; /* "queue:random": what the next client has to say */
} rpc_tracker;

/* Makes a new random key and offers the agent under it, connecting first if need be. IO if the tracker does not answer:
 * try again later. */
ellm_status ellm_rpc_tracker_offer(rpc_tracker *tracker, ellm_error *error);
/* Asks whether the key still waits for a client. *lost: it was handed out some time ago, and nobody came. */
ellm_status ellm_rpc_tracker_poll(rpc_tracker *tracker, bool *lost, ellm_error *error);
void ellm_rpc_tracker_close(rpc_tracker *tracker);

#endif
