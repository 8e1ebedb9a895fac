/* Steps: rows of tokens through the plan's functions, on the processor or a GPU. */
#include "posix.h"

#include <string.h>

#include "context_parts.h"
#include "watch.h"

enum {
    decode_rows = 8, /* steps of fewer rows are bound by reading weights */
    read_steps = 16, /* steps that the disk is ahead of, where weights do not stay in memory */
};

/* Runs a function's launches while the disk reads what the next ones need; the head's weights follow the body's. */
static ellm_status run_reading(ellm_context *context, ellm_step_ladder *ladder, const ellm_step_function *function,
                               int32_t n_threads) {
    const ellm_plan *plan = context->plan;
    ellm_status status = ELLM_OK;
    ellm_ahead_read(plan, function->source, 0, read_steps);
    for (uint32_t at = 0; at < function->n_launches && status == ELLM_OK; at += read_steps) {
        uint32_t left = function->n_launches - at, now = left < read_steps ? left : read_steps;
        ellm_ahead_read(plan, function->source, at + read_steps, at + 2 * read_steps);
        if (now == left && ladder == &context->body) {
            ellm_ahead_read(plan, plan->head.functions, 0, UINT32_MAX);
        }
        status = ellm_pool_run(context->pool, function->launches + at, now, n_threads);
    }
    return status;
}

#ifdef ELLM_VULKAN
/* Runs a function's steps one by one, each of which the observer sees before and after. */
static ellm_status run_stepped(ellm_context *context, const ellm_observed *now, uint32_t index) {
    const ellm_plan *plan = context->plan;
    const ellm_observer *observer = context->observer;
    ellm_status status = ELLM_OK;
    for (uint32_t step = 0; step < now->function->n_steps && status == ELLM_OK; step++) {
        status = observer->stepped(observer->user, now, step, false);
        status = status == ELLM_OK ? ellm_gpu_step(context->gpu, now->is_head, index, step) : status;
        status = status == ELLM_OK ? observer->stepped(observer->user, now, step, true) : status;
    }
    const ellm_plan_argument logits = {.bind = ELLM_BIND_ARENA, .value = plan->logits_offset};
    return now->is_head && status == ELLM_OK
               ? ellm_gpu_look(context->gpu, &logits, 0, plan->logits_row_bytes * (uint64_t)now->function->n,
                               &context->gpu_logits)
               : status;
}
#endif

/* A GPU runs functions in the order in which they are asked for; the head waits for the body. */
static ellm_status run_on_gpu(ellm_context *context, ellm_step_ladder *ladder, const ellm_step_function *function) {
    uint32_t index = (uint32_t)(function - ladder->functions);
    bool is_head = ladder == &context->head;
    if (context->observer != NULL) {
        const ellm_observed now = {.function = function->source,
                                   .launches = function->launches,
                                   .is_head = is_head,
                                   .symbols = context->symbols,
#ifdef ELLM_VULKAN
                                   .gpu = context->gpu,
#endif
                                   .inputs = context->inputs};
#ifdef ELLM_VULKAN
        if (context->observer->ns == NULL) {
            return run_stepped(context, &now, index);
        }
#endif
        ellm_status status = ellm_gpu_timed(context->gpu, is_head, index, context->observer->ns);
        return status != ELLM_OK ? status : context->observer->timed(context->observer->user, &now);
    }
    return is_head ? ellm_gpu_head(context->gpu, index, &context->gpu_logits) : ellm_gpu_body(context->gpu, index);
}

static ellm_status run(ellm_context *context, ellm_step_ladder *ladder, ellm_step_function *function) {
    if (context->on_gpu) {
        return run_on_gpu(context, ladder, function);
    }
    ellm_gear *gear = function->n < decode_rows ? &context->decode : &context->prefill;
    int32_t n_threads = gear->now;
    if (context->observer != NULL) {
        const ellm_observed now = {.function = function->source,
                                   .launches = function->launches,
                                   .is_head = ladder != &context->body,
                                   .symbols = context->symbols,
                                   .inputs = context->inputs};
        return ellm_observe_run(context->observer, &now, context->pool, n_threads);
    }
    if (context->reads_always) {
        return run_reading(context, ladder, function, n_threads);
    }
    int64_t start = ellm_now_ns();
    ellm_status status = ellm_pool_run(context->pool, function->launches, function->n_launches, n_threads);
    double ns = (double)(ellm_now_ns() - start + context->first_ns);
    context->first_ns = 0;
    if (status != ELLM_OK || !ladder->was_read || ellm_pool_team(context->pool) != n_threads) {
        ladder->was_read = status == ELLM_OK;
        return status; /* a step that waited for the disk or for another program says nothing about speed */
    }
    context->n_steps++;
    if (gear->now == gear->best) {
        ellm_ladder_measured(ladder, function, ns);
    }
    if (ladder == &context->body && (function->n == 1 || function->n == ladder->rows)) { /* always the same kind */
        ellm_gear_step(gear, ns);
    }
    return status;
}

/* Everything about rows that can be wrong, before anything changes. */
static ellm_status check_rows(ellm_context *context, const ellm_row *rows, size_t n, const float *logits) {
    memset(context->pending, 0, (size_t)context->n_sessions * sizeof *context->pending);
    for (size_t i = 0; i < n; i++) {
        const ellm_row *row = &rows[i];
        if (row->slot < 0 || row->slot >= context->n_sessions || (row->wants_logits && logits == NULL)) {
            return ELLM_USAGE;
        }
        if (row->token < 0 || row->token >= context->vocab_size) {
            return ELLM_TOKEN_RANGE;
        }
        if (row->position >= context->context_length) {
            return ELLM_CONTEXT_FULL;
        }
        if (row->position != context->kv.lengths[row->slot] + context->pending[row->slot]++) {
            return ELLM_USAGE;
        }
    }
    return ELLM_OK;
}

/* Takes what head or norm left in row i. */
static void take(const ellm_context *context, size_t i, float *logits, double *sum) {
    const ellm_plan *plan = context->plan;
    const uint8_t *from = context->on_gpu ? context->gpu_logits : context->arena + plan->logits_offset;
    if (sum == NULL) {
        memcpy(logits, from + i * plan->logits_row_bytes, (size_t)context->vocab_size * sizeof *logits);
        return;
    }
    const float *row = (const float *)(const void *)(from + i * plan->hidden_row_bytes);
    for (size_t k = 0; k < plan->hidden_row_bytes / sizeof *row; k++) {
        sum[k] += (double)row[k];
    }
}

/* The head over the wanted rows of the step just run, or the norm where they are summed up; how many there were. */
static ellm_status run_head(ellm_context *context, const ellm_row *rows, size_t n, float *logits, double *sum,
                            size_t *n_wanted) {
    int32_t *chosen = context->inputs[ELLM_INPUT_ROWS];
    ellm_step_ladder *ladder = sum != NULL ? &context->norm : &context->head;
    *n_wanted = 0;
    if (logits == NULL && sum == NULL) { /* then no row wants any */
        return ELLM_OK;
    }
    for (size_t i = 0; i < n; i++) {
        *n_wanted += rows[i].wants_logits;
    }
    size_t at = 0; /* the next row to look at */
    for (size_t done = 0; done < *n_wanted;) {
        ellm_step_function *function = ellm_ladder_pick(ladder, *n_wanted - done);
        size_t filled = 0, cap = (size_t)function->n;
        for (; at < n && filled < cap; at++) {
            if (rows[at].wants_logits) {
                chosen[filled++] = (int32_t)at;
            }
        }
        for (size_t i = filled; i < cap; i++) {
            chosen[i] = -1;
        }
        ellm_status status = run(context, ladder, function);
        if (status != ELLM_OK) {
            return status;
        }
        for (size_t i = 0; i < filled; i++, done++) {
            take(context, i, logits != NULL ? logits + done * (size_t)context->vocab_size : NULL, sum);
        }
    }
    return ELLM_OK;
}

/* Inputs for n rows of a function of at least as many; padding rows have position -1. */
static ellm_status fill(ellm_context *context, const ellm_step_function *function, const ellm_row *rows, size_t n) {
    int32_t *tokens = context->inputs[ELLM_INPUT_TOKENS], *positions = context->inputs[ELLM_INPUT_POSITIONS];
    int32_t *slots = context->inputs[ELLM_INPUT_SLOTS];
    for (size_t i = 0; i < (size_t)function->n; i++) {
        bool real = i < n;
        if (real && !ellm_kv_reserve(&context->kv, rows[i].slot, rows[i].position)) {
            return ELLM_INTERNAL; /* the pool holds what every session may ask for */
        }
        tokens[i] = real ? rows[i].token : 0;
        positions[i] = real ? rows[i].position : -1;
        slots[i] = real ? rows[i].slot : 0;
    }
    return ELLM_OK;
}

static size_t fitting(const ellm_step_function *function, size_t n) {
    return (size_t)function->n < n ? (size_t)function->n : n;
}

#ifdef ELLM_VULKAN
static ellm_status start_first(ellm_context *context, ellm_step_function *function, const ellm_row *rows, size_t n) {
    ellm_status status = fill(context, function, rows, n);
    status = status == ELLM_OK ? ellm_gpu_body(context->gpu, (uint32_t)(function - context->body.functions)) : status;
    context->begun = status == ELLM_OK ? function : NULL;
    return status;
}

/* The layers that a GPU has; the processor goes on with the rows that they leave. The GPU begins with the next ones then,
 * which only a KV cache may remember: whoever cancels has not read them. */
static ellm_status run_first(ellm_context *context, ellm_step_function *function, const ellm_row *rows, size_t n,
                             size_t n_later) {
    const ellm_plan *plan = context->plan;
    const uint8_t *left = NULL;
    int64_t start = ellm_now_ns();
    ellm_status status = context->observer == NULL ? ELLM_OK : ELLM_GPU_MISSING;
    if (status == ELLM_OK && context->begun != function) {
        status = start_first(context, function, rows, n);
    }
    context->begun = NULL;
    if (status == ELLM_OK) {
        status = ellm_gpu_head(context->gpu, (uint32_t)(function - context->body.functions), &left);
    }
    if (status != ELLM_OK) {
        return status;
    }
    memcpy(context->arena + plan->arriving_offset, left, (size_t)function->n * (size_t)plan->arriving_row_bytes);
    if (n_later > 0 && plan->n_fixed == 0) {
        ellm_step_function *next = ellm_ladder_pick(&context->body, n_later);
        status = start_first(context, next, rows + n, fitting(next, n_later));
        status = status == ELLM_OK ? ellm_gpu_finish(context->gpu) : status;
        status = status == ELLM_OK ? fill(context, function, rows, n) : status;
    }
    context->first_ns = ellm_now_ns() - start;
    return status;
}
#endif

/* The body over n rows with a function of at least as many. n_later: rows behind them. */
static ellm_status run_body(ellm_context *context, ellm_step_function *function, const ellm_row *rows, size_t n,
                            size_t n_later) {
    ellm_status status = fill(context, function, rows, n);
#ifdef ELLM_VULKAN
    if (status == ELLM_OK && context->gpu != NULL && !context->on_gpu) {
        status = run_first(context, function, rows, n, n_later);
    }
#else
    (void)n_later;
#endif
    status = status == ELLM_OK ? run(context, &context->body, function) : status;
    for (size_t i = 0; i < n; i++) {
        if (status == ELLM_OK) {
            ellm_kv_advance(&context->kv, rows[i].slot, rows[i].position + 1);
        } else if (context->plan->n_fixed > 0) { /* a state may have advanced, and does not go back */
            (void)ellm_kv_truncate(&context->kv, rows[i].slot, 0);
        }
    }
    return status;
}

ellm_status ellm_context_run(ellm_context *context, const ellm_row *rows, size_t n, float *logits, double *sum) {
    context->begun = NULL;
    while (n > 0) {
        if (atomic_load(&context->cancelled)) {
            return ELLM_CANCELLED;
        }
        ellm_step_function *function = context->begun != NULL ? context->begun : ellm_ladder_pick(&context->body, n);
        size_t now = fitting(function, n), n_wanted;
        ellm_status status = run_body(context, function, rows, now, n - now);
        if (status == ELLM_OK) {
            status = run_head(context, rows, now, logits, sum, &n_wanted);
        }
        if (status == ELLM_OK && context->on_gpu) {
            status = ellm_gpu_finish(context->gpu);
        }
        if (status != ELLM_OK) {
            return status;
        }
        logits = logits != NULL ? logits + n_wanted * (size_t)context->vocab_size : logits;
        rows += now;
        n -= now;
    }
    return ELLM_OK;
}

ellm_status ellm_context_eval(ellm_context *context, const ellm_row *rows, size_t n, float *logits) {
    ellm_status status = check_rows(context, rows, n, logits);
    return status != ELLM_OK ? status : ellm_context_run(context, rows, n, logits, NULL);
}

void ellm_context_settle(ellm_context *context, bool fit) {
    ellm_ladder_settle(&context->body, fit);
    ellm_ladder_settle(&context->head, fit);
    ellm_ladder_settle(&context->norm, fit);
    ellm_gear_fix(&context->prefill, context->prefill.best);
    ellm_gear_fix(&context->decode, context->decode.best);
}

void ellm_context_observe(ellm_context *context, const ellm_observer *observer) {
    context->observer = observer;
#ifdef ELLM_VULKAN
    if (context->on_gpu && observer != NULL && observer->ns == NULL) {
        (void)ellm_gpu_clear(context->gpu); /* what fails here fails at the first step */
    }
#endif
}

double ellm_context_cost_ns(const ellm_context *context, int32_t n) {
    double head = 0, body = ellm_ladder_cost_ns(&context->body, n);
    for (int32_t left = n; left > 0; left -= context->head.rows) {
        head += ellm_ladder_cost_ns(&context->head, left < context->head.rows ? left : context->head.rows);
    }
    return body > 0 && head > 0 ? body + head : 0;
}
