/* The memory of a context: one mapping, laid out once. Nothing allocates afterwards. */
#include "posix.h"

#include <sys/mman.h>

#include "context_parts.h"
#include "error.h"
#include "memory.h"

enum {
    prefix_alignment = 16384, /* of states in memory, so that pages of a file can take their place */
};

/* Takes `bytes` from a growing layout and returns their offset, a multiple of the alignment. */
static uint64_t lay_out_at(uint64_t *total, uint64_t bytes, uint64_t alignment) {
    uint64_t at = (*total + alignment - 1) / alignment * alignment;
    *total = at + bytes;
    return at;
}

static uint64_t lay_out(uint64_t *total, uint64_t bytes) {
    return lay_out_at(total, bytes, 64);
}

/* Of one of the plan's states, for all sessions. */
static uint64_t state_bytes(const ellm_kv *kv, uint32_t state) {
    bool in_blocks = ellm_plan_state_count(kv->plan, state) == ELLM_SYMBOL_BLOCKS;
    return kv->plan->state_bytes[state] * (uint64_t)(in_blocks ? kv->n_blocks : kv->n_sessions);
}

static ellm_status no_room(const ellm_context *context, uint64_t total, uint64_t available, ellm_error *error) {
    uint64_t kv = ellm_plan_token_bytes(context->plan) * ELLM_BLOCK * (uint64_t)context->kv.n_blocks, mib = 1 << 20,
             needed = total / mib + 1;
    kv += ellm_plan_session_bytes(context->plan) * (uint64_t)context->kv.n_sessions;
    return ellm_fail(error, ELLM_NO_MEMORY,
                     "%d sessions of %d positions need %llu MiB (KV cache %llu MiB, arena %llu MiB), %llu MiB are "
                     "available; ask for a shorter context or fewer sessions",
                     (int)context->n_sessions, (int)context->context_length, (unsigned long long)needed,
                     (unsigned long long)(kv / mib), (unsigned long long)(context->plan->arena_bytes / mib),
                     (unsigned long long)(available / mib));
}

ellm_status ellm_context_take_memory(ellm_context *context, ellm_error *error) {
    const ellm_plan *plan = context->plan;
    ellm_kv *kv = &context->kv;
    uint64_t total = 0, sessions = (uint64_t)kv->n_sessions, cap = (uint64_t)kv->table_cap;
    uint64_t blocks = (uint64_t)kv->n_blocks, inputs[ELLM_INPUTS];
    uint64_t arena = lay_out(&total, context->on_gpu ? 0 : plan->arena_bytes);
    uint64_t states = total, alignment = kv->n_sessions > context->n_sessions ? prefix_alignment : 64;
    uint32_t n_states = context->on_gpu ? 0 : plan->n_states; /* the GPU has its own */
    for (uint32_t i = 0; i < n_states; i++) {
        lay_out_at(&total, state_bytes(kv, i), alignment);
        if (total > (uint64_t)1 << 50) {
            return no_room(context, total, ellm_available_bytes(), error);
        }
    }
    for (int i = 0; i < ELLM_INPUTS; i++) {
        inputs[i] = lay_out(&total, i == ELLM_INPUT_BLOCK_TABLE ? sessions * cap * 4 : ELLM_STEP_ROWS * 4);
    }
    uint64_t pointers = lay_out(&total, plan->n_states * sizeof *kv->states);
    uint64_t lengths = lay_out(&total, sessions * 4), pending = lay_out(&total, sessions * 4);
    uint64_t free_blocks = lay_out(&total, blocks * 4), n_users = lay_out(&total, blocks * 4);
    uint64_t rows = lay_out(&total, ELLM_STEP_ROWS * sizeof(ellm_row));

    uint64_t available = ellm_available_bytes();
    if (total > available || total > SIZE_MAX / 2) {
        return no_room(context, total, available, error);
    }
    void *memory = mmap(NULL, (size_t)total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return no_room(context, total, available, error);
    }
    /* With huge pages, the first position would take one for every layer. */
    (void)madvise(memory, (size_t)total, MADV_NOHUGEPAGE);
    context->reads_always =
        !context->on_gpu && !plan->in_memory && ellm_plan_weight_bytes(plan) > (available - total) / 8 * 7;
    uint8_t *base = context->memory = memory;
    context->memory_bytes = (size_t)total;
    context->arena = base + arena;
    kv->states = context->on_gpu ? NULL : (uint8_t **)(void *)(base + pointers);
    for (uint32_t i = 0; i < n_states; i++) {
        kv->states[i] = base + lay_out_at(&states, state_bytes(kv, i), alignment);
    }
    for (int i = 0; i < ELLM_INPUTS; i++) {
        context->inputs[i] = base + inputs[i];
    }
    kv->table = context->inputs[ELLM_INPUT_BLOCK_TABLE];
    kv->lengths = (int32_t *)(void *)(base + lengths);
    kv->free_blocks = (int32_t *)(void *)(base + free_blocks);
    kv->n_users = (int32_t *)(void *)(base + n_users);
    context->pending = (int32_t *)(void *)(base + pending);
    context->rows = (ellm_row *)(void *)(base + rows);
    ellm_kv_init(kv);
    return ELLM_OK;
}
