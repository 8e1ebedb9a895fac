/* kv.h: the KV cache: one pool of blocks of 64 positions, and a table per session that says which are its own. Sessions
 * that begin alike may share blocks; whoever writes into a shared one gets a copy of his own. States of one size per
 * session (plan->n_fixed) are copied instead, and cannot be cut: they know the end of what they read, and no more. */
#ifndef ELLM_KV_H
#define ELLM_KV_H

#include "plan.h"

typedef struct ellm_kv {
    const ellm_plan *plan;
    int32_t n_sessions, table_cap, n_blocks; /* table_cap: blocks that a whole context would take */
    int32_t window;                          /* positions visible to a row, 0: all */
    uint8_t **states;                        /* plan->n_states arrays of n_blocks blocks, or of n_sessions states */
    int32_t *table;                          /* (n_sessions, table_cap), -1: no block */
    int32_t *lengths;                        /* positions each session holds */
    int32_t *free_blocks;                    /* blocks used before and free again, n_free of them */
    int32_t *n_users;                        /* (n_blocks,) sessions that have the block in their tables */
    int32_t n_free, n_touched;               /* blocks from n_touched on were never used and are zero */
    /* NULL, unless a GPU keeps states: those of `first`, the plan of its layers, or, where that is NULL, all of them, and
     * there are no `states`. Its kernels read only what was written. Only with ELLM_VULKAN. */
    struct ellm_gpu *gpu;
    const ellm_plan *first;
} ellm_kv;

/* Blocks one session can hold at once. Sliding windows free what no row sees any more; step_rows rows may be under
 * way. */
int32_t ellm_kv_session_blocks(int32_t context_length, int32_t window, int32_t step_rows);

/* Empties every session. The memory must be there, the states zero. */
void ellm_kv_init(ellm_kv *kv);
/* Gives the session a zeroed block for `position` if it has none, and a copy if others have it, too. False if the pool is
 * empty; it is not while every session keeps to what it may hold. */
bool ellm_kv_reserve(ellm_kv *kv, int32_t slot, int32_t position);
/* The session now holds `length` positions: returns the blocks that no later row can see. */
void ellm_kv_advance(ellm_kv *kv, int32_t slot, int32_t length);
/* Most positions that the session can take, up to context_length in all, and be cut back by again. */
int32_t ellm_kv_spare(const ellm_kv *kv, int32_t slot, int32_t context_length);
/* Makes `to` hold the first `length` positions of `from`, in place of its own. False, and nothing changed, if `from` has
 * them no more, or more than them where that cannot be cut. */
bool ellm_kv_share(ellm_kv *kv, int32_t from, int32_t to, int32_t length);
/* The blocks [first, end) that hold what is visible to a row at position `length` and later, of those before it. */
void ellm_kv_visible(const ellm_kv *kv, int32_t length, int32_t *first, int32_t *end);
/* Block `block` of a session, which holds it, in one of the states; of a state per session, that, whatever the block. */
uint8_t *ellm_kv_block(const ellm_kv *kv, int32_t slot, int32_t block, uint32_t state);
/* Makes an empty session hold `length` positions in blocks of its own, whose content is for the caller to write. False,
 * and still empty, where the pool has not as many. */
bool ellm_kv_fill(ellm_kv *kv, int32_t slot, int32_t length);
/* Cuts the session back. False if its window would show positions that are gone, or a state be cut. */
bool ellm_kv_truncate(ellm_kv *kv, int32_t slot, int32_t length);

#endif
