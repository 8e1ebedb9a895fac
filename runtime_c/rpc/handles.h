/* handles.h: what a client may name: a table of memory, modules and functions.
 *
 * A handle is a generation and a slot, so that one that was freed stays unknown when its slot is used again. */
#ifndef ELLM_RPC_HANDLES_H
#define ELLM_RPC_HANDLES_H

#include "wire.h"

typedef enum rpc_kind {
    RPC_UNUSED,
    RPC_IS_MEMORY,
    RPC_IS_MODULE,
    RPC_IS_BUILTIN,
    RPC_IS_KERNEL,
    RPC_IS_TIMER
} rpc_kind;

/* A packed function of tvm-ffi: 0, or -1 with an error raised. */
typedef int32_t rpc_kernel(void *self, const rpc_value *arguments, int32_t n, rpc_value *result);

/* An uploaded library; closed when neither a handle nor a function of it is left. */
typedef struct rpc_module {
    void *library;
    uint32_t n_users;
} rpc_module;

/* runtime.RPCTimeEvaluator's parameters. */
typedef struct rpc_timing {
    int32_t number, repeat, min_repeat_ms, zero_limit, cooldown_ms, repeats_to_cooldown;
    int64_t flush_bytes;
    bool flush_arguments; /* all tensors but the first leave the cache before each repeat */
} rpc_timing;

struct rpc_session;
typedef bool rpc_builtin(struct rpc_session *session); /* false: the connection is gone */

typedef struct rpc_entry {
    rpc_kind kind;
    uint32_t generation, next_unused;
    uint64_t n_bytes;   /* of memory */
    void *memory;       /* owned */
    rpc_module *module; /* of a module, kernel or timer; counted */
    rpc_builtin *builtin;
    rpc_kernel *kernel;
    rpc_timing timing;
} rpc_entry;

typedef struct rpc_handles {
    rpc_entry *entries;
    uint32_t n, cap, first_unused; /* first_unused: index + 1, 0: none */
    uint64_t memory_bytes;         /* allocated */
} rpc_handles;

enum { RPC_HANDLES = 65536 };

/* A cleared entry of that kind; NULL if there are too many or memory ran out. Entries move when one is added. */
rpc_entry *ellm_rpc_handle_add(rpc_handles *handles, rpc_kind kind, uint64_t *handle);
/* NULL if there is no such handle. */
rpc_entry *ellm_rpc_handle_find(const rpc_handles *handles, uint64_t handle);
/* Forgets an entry; its memory is freed, its module counted down and closed by `close` when unused. */
void ellm_rpc_handle_free(rpc_handles *handles, rpc_entry *entry, void (*close)(void *library));
void ellm_rpc_handles_free(rpc_handles *handles, void (*close)(void *library));

#endif
