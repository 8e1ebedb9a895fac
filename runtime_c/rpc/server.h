/* server.h: the agent. Listens on the loopback, forks a process for each client, and outlives whatever happens there.
 *
 * The agent itself reads nothing from clients: the forked process does, greeting included, with a time limit from the
 * first byte on. One client at a time is served, so that measurements do not disturb each other; others wait. */
#ifndef ELLM_RPC_SERVER_H
#define ELLM_RPC_SERVER_H

#include "cores.h"
#include "edgellm.h"

typedef struct rpc_serve_options {
    const char *key;    /* what clients must know; NULL with a tracker, which hands out a key for each session */
    const char *folder; /* an existing folder for what clients upload; absolute */
    ellm_cores cores;
    int32_t n_threads;
    uint16_t port;            /* 0: any */
    double longest_session_s; /* 0: as long as the client says */
    const char *tracker_host; /* an IPv4 address, or NULL */
    uint16_t tracker_port;
    const char *queue;
    int input; /* the agent ends when this descriptor does; -1: with a signal only */
    /* Called when clients can connect, and when a session has ended: "closed", "refused", "timeout", "crashed: …". */
    void (*ready)(void *user, uint16_t port);
    void (*ended)(void *user, int pid, const char *how);
    void *user;
} rpc_serve_options;

/* Serves until SIGTERM, SIGINT or the end of `input`; running sessions end with it. */
ellm_status ellm_rpc_serve(const rpc_serve_options *options, ellm_error *error);

#endif
