/* context_parts.h: what the context's files share: opening (context.c), memory (context_memory.c), steps (step.c) and
 * sessions (session.c). */
#ifndef ELLM_CONTEXT_PARTS_H
#define ELLM_CONTEXT_PARTS_H

#include <stdatomic.h>

#include "ahead.h"
#include "context.h"
#include "cores.h"
#include "gear.h"
#include "gpu.h"
#include "kv.h"
#include "ladder.h"
#include "observe.h"
#include "plan.h"
#include "pool.h"
#include "region.h"

struct ellm_context {
    const ellm_model *model;
    const ellm_plan *plan;
    int32_t vocab_size, context_length;
    ellm_cores cores;
    ellm_gear prefill, decode;
    uint32_t n_steps; /* measured */
    ellm_pool *pool;
    ellm_region region; /* launches */
    uint8_t *memory;    /* everything below, one anonymous mapping */
    size_t memory_bytes;
    uint8_t *arena;
    void *inputs[ELLM_INPUTS];
    int32_t n_sessions;
    ellm_kv kv;       /* with one session more where the bundle ships a prefix, which that one holds */
    int32_t *pending; /* (sessions) rows of the current call */
    ellm_row *rows;   /* ELLM_STEP_ROWS, for ellm_session_eval */
    ellm_step_ladder body, head, norm;
    ellm_reader *reader; /* of weights that stay in memory */
    bool reads_always;   /* they do not */
    uint64_t symbols[ELLM_SYMBOLS];
    const ellm_observer *observer; /* NULL: nobody watches */
    ellm_gpu *gpu;                 /* NULL: the processor computes */
    const uint8_t *gpu_logits;
    ellm_step_function *begun; /* of rows whose first layers a GPU computes meanwhile; NULL: none */
    int64_t first_ns;          /* what its layers took of the step under way */
    bool on_gpu;               /* all of it; else the first layers, where there is a GPU */
    atomic_bool cancelled;
};

/* One zeroed mapping for arena, KV pool, inputs and tables, as large as the context's options say. NO_MEMORY. */
ellm_status ellm_context_take_memory(ellm_context *context, ellm_error *error);
/* ellm_context_eval of rows that are known to be right. sum: where the wanted rows' hidden states behind the final norm are
 * added, instead of logits. */
ellm_status ellm_context_run(ellm_context *context, const ellm_row *rows, size_t n, float *logits, double *sum);

#endif
