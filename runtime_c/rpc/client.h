/* client.h: the process that serves one client. */
#ifndef ELLM_RPC_CLIENT_H
#define ELLM_RPC_CLIENT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "cores.h"

/* What the agent sees of it. */
typedef struct rpc_client_shared {
    _Atomic int32_t accepted; /* the key was right, and the client is served */
} rpc_client_shared;

typedef struct rpc_client_options {
    int socket, turn;       /* turn: a file whose lock the client that is served holds */
    const char *key, *name; /* what the client must say, and what it is answered */
    const char *folder;     /* of its own */
    const ellm_cores *cores;
    int32_t n_threads;
    double longest_session_s;
} rpc_client_options;

/* Right after the fork. Ends the process: by SIGALRM when time is over, by whatever uploaded code does, or with 0. */
_Noreturn void ellm_rpc_client_run(const rpc_client_options *options, rpc_client_shared *shared);

#endif
