#include "posix.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ahead.h"
#include "context.h"
#include "cores.h"
#include "error.h"
#include "gear.h"
#include "gpu.h"
#include "kv.h"
#include "ladder.h"
#include "memory.h"
#include "model.h"
#include "observe.h"
#include "pace.h"
#include "plan.h"
#include "pool.h"
#include "state.h"
#include "watch.h"

enum {
    default_context = 4096,
    most_sessions = 1024,
    decode_rows = 8, /* steps of fewer rows are bound by reading weights */
    prefill_window = 2,
    prefill_rest = 6,
    decode_window = 6,
    decode_rest = 8,
    remembered_rest = 256,    /* before the first attempt with what was remembered */
    worth_remembering = 8,    /* steps */
    prefix_alignment = 16384, /* of states in memory, so that pages of a file can take their place */
    read_steps = 16,          /* steps that the disk is ahead of, where weights do not stay in memory */
};

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
    ellm_step_ladder body, head;
    ellm_reader *reader; /* of weights that stay in memory */
    bool reads_always;   /* they do not */
    uint64_t symbols[ELLM_SYMBOLS];
    const ellm_observer *observer; /* NULL: nobody watches */
    ellm_gpu *gpu;                 /* NULL: the processor computes */
    const uint8_t *gpu_logits;
    bool on_gpu;
    atomic_bool cancelled;
};

/* ---- memory ---- */

/* Takes `bytes` from a growing layout and returns their offset, a multiple of the alignment. */
static uint64_t lay_out_at(uint64_t *total, uint64_t bytes, uint64_t alignment) {
    uint64_t at = (*total + alignment - 1) / alignment * alignment;
    *total = at + bytes;
    return at;
}

static uint64_t lay_out(uint64_t *total, uint64_t bytes) {
    return lay_out_at(total, bytes, 64);
}

static ellm_status no_room(const ellm_context *context, uint64_t total, uint64_t available, ellm_error *error) {
    uint64_t kv = ellm_plan_token_bytes(context->plan) * ELLM_BLOCK * (uint64_t)context->kv.n_blocks, mib = 1 << 20,
             needed = total / mib + 1;
    return ellm_fail(error, ELLM_NO_MEMORY,
                     "%d sessions of %d positions need %llu MiB (KV cache %llu MiB, arena %llu MiB), %llu MiB are "
                     "available; ask for a shorter context or fewer sessions",
                     (int)context->n_sessions, (int)context->context_length, (unsigned long long)needed,
                     (unsigned long long)(kv / mib), (unsigned long long)(context->plan->arena_bytes / mib),
                     (unsigned long long)(available / mib));
}

/* One zeroed mapping for arena, KV pool, inputs and tables. */
static ellm_status take_memory(ellm_context *context, ellm_error *error) {
    const ellm_plan *plan = context->plan;
    ellm_kv *kv = &context->kv;
    uint64_t total = 0, sessions = (uint64_t)kv->n_sessions, cap = (uint64_t)kv->table_cap;
    uint64_t blocks = (uint64_t)kv->n_blocks, inputs[ELLM_INPUTS];
    uint64_t arena = lay_out(&total, context->on_gpu ? 0 : plan->arena_bytes);
    uint64_t states = total, alignment = kv->n_sessions > context->n_sessions ? prefix_alignment : 64;
    uint32_t n_states = context->on_gpu ? 0 : plan->n_states; /* the GPU has its own */
    for (uint32_t i = 0; i < n_states; i++) {
        lay_out_at(&total, plan->state_bytes[i] * blocks, alignment);
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
        kv->states[i] = base + lay_out_at(&states, plan->state_bytes[i] * blocks, alignment);
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

/* ---- open and close ---- */

/* As many threads as the options say, else as many as turn out best, the fast cores' number to begin with. */
static void set_gear(ellm_gear *gear, const ellm_cores *cores, int32_t given, uint32_t window, uint32_t rest) {
    if (given != 0) {
        ellm_gear_fix(gear, given);
        return;
    }
    int32_t fast = cores->n_fast < cores->n_useful ? cores->n_fast : cores->n_useful;
    ellm_gear_init(gear, fast, cores->n_useful, window, rest);
}

static ellm_pace pace_of(ellm_context *context) {
    return (ellm_pace){.sha256 = ellm_model_sha256(context->model),
                       .n_cores = context->cores.n_useful,
                       .n_prefill = context->prefill.best,
                       .n_decode = context->decode.best,
                       .body = &context->body,
                       .head = &context->head};
}

/* Begins with what was measured last time. */
static void recall(ellm_context *context) {
    ellm_pace pace = pace_of(context);
    if (context->prefill.fixed || context->decode.fixed
        || !ellm_pace_read(&pace, ellm_model_directory(context->model))) {
        return;
    }
    ellm_gear_init(&context->prefill, pace.n_prefill, context->prefill.n_most, prefill_window, remembered_rest);
    ellm_gear_init(&context->decode, pace.n_decode, context->decode.n_most, decode_window, remembered_rest);
}

/* Positions of the bundle's prefix that fit the context. */
static int32_t prefix_length(const ellm_context *context) {
    const ellm_file *file;
    const ellm_state *prefix = ellm_model_prefix(context->model, &file);
    int32_t most = context->context_length;
    return prefix == NULL || context->on_gpu ? 0 : prefix->n_tokens < most ? prefix->n_tokens : most;
}

/* The prefix gets the session behind all others, and the first blocks of the pool. */
static void map_prefix(ellm_context *context) {
    const ellm_file *file;
    const ellm_state *prefix = ellm_model_prefix(context->model, &file);
    if (prefix != NULL && !context->on_gpu) { /* where that fails, it is empty, and prompts are computed */
        (void)ellm_state_put(prefix, file, &context->kv, context->n_sessions, prefix_length(context));
    }
}

static ellm_status read_options(ellm_context *context, const ellm_context_options *options, ellm_error *error) {
    ellm_model_info info;
    ellm_model_get_info(context->model, &info);
    ellm_context_options given = options != NULL ? *options : (ellm_context_options){0};
    int32_t length = given.context_length;
    if (length == 0) {
        length = info.context_length < default_context ? info.context_length : default_context;
    }
    if (length < 1 || length > info.context_length) {
        return ellm_fail(error, ELLM_USAGE, "a context of %d positions; the model was compiled for 1 to %d",
                         (int)length, (int)info.context_length);
    }
    int32_t sessions = given.n_sessions == 0 ? 1 : given.n_sessions;
    if (sessions < 1 || sessions > most_sessions) {
        return ellm_fail(error, ELLM_USAGE, "%d sessions; 1 to %d are possible", (int)sessions, most_sessions);
    }
    ellm_cores_read(&context->cores);
    context->on_gpu = info.on_gpu;
    set_gear(&context->prefill, &context->cores, info.on_gpu ? 1 : given.n_threads_prefill, prefill_window,
             prefill_rest);
    set_gear(&context->decode, &context->cores, info.on_gpu ? 1 : given.n_threads_decode, decode_window, decode_rest);
    context->vocab_size = info.vocab_size;
    context->context_length = length;
    context->n_sessions = sessions;
    int32_t prefix = prefix_length(context), n_prefix = (prefix + ELLM_BLOCK - 1) / ELLM_BLOCK;
    int32_t each = ellm_kv_session_blocks(length, info.sliding_window, ellm_ladder_rows(&context->plan->body));
    context->kv = (ellm_kv){.plan = context->plan,
                            .n_sessions = sessions + (prefix > 0),
                            .table_cap = (length + ELLM_BLOCK - 1) / ELLM_BLOCK,
                            .n_blocks = each * sessions + n_prefix,
                            .window = info.sliding_window};
    if (context->prefill.n_most < 1 || context->decode.n_most < 1) {
        return ellm_fail(error, ELLM_USAGE, "%d and %d threads; at least 1 is needed", (int)context->prefill.n_most,
                         (int)context->decode.n_most);
    }
    return ELLM_OK;
}

static bool copy_block(void *user, int32_t from, int32_t to) {
    return ellm_gpu_copy_block(user, from, to) == ELLM_OK;
}

ellm_status ellm_context_open(const ellm_model *model, const ellm_context_options *options, ellm_context **result,
                              ellm_error *error) {
    *result = NULL;
    if (error != NULL) {
        error->text[0] = '\0';
    }
    ellm_context *context = calloc(1, sizeof *context);
    if (context == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory for a context");
    }
    context->model = model;
    context->plan = ellm_model_plan(model);
    ellm_region_init(&context->region, (size_t)512 << 20);
    ellm_status status = read_options(context, options, error);
    if (status == ELLM_OK) {
        int32_t most = context->prefill.n_most;
        most = context->decode.n_most > most ? context->decode.n_most : most;
        status = ellm_pool_open(most, &context->cores, &context->pool, error);
    }
    const ellm_kv *kv = &context->kv;
    uint64_t *symbols = context->symbols;
    symbols[ELLM_SYMBOL_ONE] = 1;
    symbols[ELLM_SYMBOL_BLOCKS] = (uint64_t)kv->n_blocks;
    symbols[ELLM_SYMBOL_TABLE_CAP] = (uint64_t)kv->table_cap;
    symbols[ELLM_SYMBOL_SESSIONS] = (uint64_t)context->n_sessions;
    symbols[ELLM_SYMBOL_TABLE] = symbols[ELLM_SYMBOL_SESSIONS] * symbols[ELLM_SYMBOL_TABLE_CAP];
    if (status == ELLM_OK) {
        status = ellm_plan_check(context->plan, symbols, error);
    }
    if (status == ELLM_OK) {
        status = take_memory(context, error);
    }
    const ellm_buffers buffers = {.plan = context->plan,
                                  .arena = context->arena,
                                  .states = context->kv.states,
                                  .inputs = context->inputs,
                                  .symbols = symbols};
    if (status == ELLM_OK && context->on_gpu) {
        const ellm_gpu_source source = {.plan = context->plan, .symbols = symbols, .inputs = context->inputs};
        status = ellm_gpu_open(&source, &context->gpu, error);
        context->kv.copy = copy_block;
        context->kv.user = context->gpu;
    }
    if (status == ELLM_OK
        && (!ellm_ladder_bind(&context->plan->body, &buffers, &context->region, &context->body)
            || !ellm_ladder_bind(&context->plan->head, &buffers, &context->region, &context->head))) {
        status = ellm_fail(error, ELLM_NO_MEMORY, "no memory for the plan's launches");
    }
    if (status != ELLM_OK) {
        ellm_context_close(context);
        return status;
    }
    map_prefix(context);
    recall(context);
    if (!context->plan->in_memory && !context->reads_always && !context->on_gpu) {
        context->reader = ellm_ahead_start(context->plan);
    }
    *result = context;
    return ELLM_OK;
}

void ellm_context_close(ellm_context *context) {
    if (context == NULL) {
        return;
    }
    if (context->n_steps >= worth_remembering && !context->prefill.fixed && !context->decode.fixed) {
        const ellm_pace pace = pace_of(context);
        ellm_pace_write(&pace, ellm_model_directory(context->model));
    }
    ellm_gpu_close(context->gpu);
    ellm_ahead_stop(context->reader);
    ellm_pool_close(context->pool);
    if (context->memory != NULL) {
        munmap(context->memory, context->memory_bytes);
    }
    ellm_region_free(&context->region);
    free(context);
}

void ellm_context_get_threads(const ellm_context *context, int32_t *prefill, int32_t *decode) {
    *prefill = context->prefill.best;
    *decode = context->decode.best;
}

bool ellm_context_get_device(const ellm_context *context, ellm_device_info *info) {
    *info = (ellm_device_info){.is_processor = false};
    if (context->gpu == NULL) {
        return false;
    }
    ellm_gpu_info gpu;
    ellm_gpu_get_info(context->gpu, &gpu);
    memcpy(info->name, gpu.name, sizeof info->name);
    info->is_processor = gpu.is_processor;
    info->weight_bytes = gpu.weight_bytes;
    info->kv_bytes = gpu.state_bytes;
    info->other_bytes = gpu.other_bytes;
    info->upload_ms = gpu.upload_ms;
    info->pipelines_ms = gpu.pipelines_ms;
    info->n_dispatches = gpu.n_dispatches;
    info->n_barriers = gpu.n_barriers;
    return true;
}

int32_t ellm_context_length(const ellm_context *context) {
    return context->context_length;
}

void ellm_context_cancel(ellm_context *context, bool cancel) {
    atomic_store(&context->cancelled, cancel);
}

/* ---- evaluation ---- */

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

/* A GPU runs functions in the order in which they are asked for; the head waits for the body. */
static ellm_status run_on_gpu(ellm_context *context, ellm_step_ladder *ladder, const ellm_step_function *function) {
    uint32_t index = (uint32_t)(function - ladder->functions);
    bool is_head = ladder == &context->head;
    if (context->observer != NULL) {
        const ellm_observed now = {.function = function->source,
                                   .launches = function->launches,
                                   .is_head = is_head,
                                   .symbols = context->symbols,
                                   .inputs = context->inputs};
        if (context->observer->ns == NULL) {
            return ELLM_GPU_MISSING; /* buffers of a GPU cannot be looked at yet */
        }
        ellm_status status = ellm_gpu_timed(context->gpu, is_head, index, context->observer->ns);
        return status != ELLM_OK ? status : context->observer->timed(context->observer->user, &now);
    }
    return is_head ? ellm_gpu_head(context->gpu, index, &context->gpu_logits) : ellm_gpu_body(context->gpu, index);
}

static ellm_status run(ellm_context *context, ellm_step_ladder *ladder, ellm_step_function *function) {
    if (context->gpu != NULL) {
        return run_on_gpu(context, ladder, function);
    }
    ellm_gear *gear = function->n < decode_rows ? &context->decode : &context->prefill;
    int32_t n_threads = gear->now;
    if (context->observer != NULL) {
        const ellm_observed now = {.function = function->source,
                                   .launches = function->launches,
                                   .is_head = ladder == &context->head,
                                   .symbols = context->symbols,
                                   .inputs = context->inputs};
        return ellm_observe_run(context->observer, &now, context->pool, n_threads);
    }
    if (context->reads_always) {
        return run_reading(context, ladder, function, n_threads);
    }
    int64_t start = ellm_now_ns();
    ellm_status status = ellm_pool_run(context->pool, function->launches, function->n_launches, n_threads);
    double ns = (double)(ellm_now_ns() - start);
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

/* The head over the wanted rows of the step just run; returns how many there were. */
static ellm_status run_head(ellm_context *context, const ellm_row *rows, size_t n, float *logits, size_t *n_wanted) {
    int32_t *chosen = context->inputs[ELLM_INPUT_ROWS];
    *n_wanted = 0;
    if (logits == NULL) { /* then no row wants any */
        return ELLM_OK;
    }
    for (size_t i = 0; i < n; i++) {
        *n_wanted += rows[i].wants_logits;
    }
    size_t at = 0; /* the next row to look at */
    for (size_t done = 0; done < *n_wanted;) {
        ellm_step_function *function = ellm_ladder_pick(&context->head, *n_wanted - done);
        size_t filled = 0, cap = (size_t)function->n;
        for (; at < n && filled < cap; at++) {
            if (rows[at].wants_logits) {
                chosen[filled++] = (int32_t)at;
            }
        }
        for (size_t i = filled; i < cap; i++) {
            chosen[i] = -1;
        }
        ellm_status status = run(context, &context->head, function);
        if (status != ELLM_OK) {
            return status;
        }
        const uint8_t *from =
            context->gpu != NULL ? context->gpu_logits : context->arena + context->plan->logits_offset;
        for (size_t i = 0; i < filled; i++, done++) {
            memcpy(logits + done * (size_t)context->vocab_size, from + i * context->plan->logits_row_bytes,
                   (size_t)context->vocab_size * sizeof *logits);
        }
    }
    return ELLM_OK;
}

/* The body over n rows with a function of at least as many; padding rows have position -1. */
static ellm_status run_body(ellm_context *context, ellm_step_function *function, const ellm_row *rows, size_t n) {
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
    ellm_status status = run(context, &context->body, function);
    for (size_t i = 0; i < n && status == ELLM_OK; i++) {
        ellm_kv_advance(&context->kv, rows[i].slot, rows[i].position + 1);
    }
    return status;
}

static ellm_status eval_checked(ellm_context *context, const ellm_row *rows, size_t n, float *logits) {
    while (n > 0) {
        if (atomic_load(&context->cancelled)) {
            return ELLM_CANCELLED;
        }
        ellm_step_function *function = ellm_ladder_pick(&context->body, n);
        size_t now = (size_t)function->n < n ? (size_t)function->n : n, n_wanted;
        ellm_status status = run_body(context, function, rows, now);
        if (status == ELLM_OK) {
            status = run_head(context, rows, now, logits, &n_wanted);
        }
        if (status == ELLM_OK && context->gpu != NULL) {
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
    return status != ELLM_OK ? status : eval_checked(context, rows, n, logits);
}

ellm_status ellm_session_eval(ellm_context *context, int32_t slot, const int32_t *tokens, size_t n, float *logits) {
    if (slot < 0 || slot >= context->n_sessions || (n == 0 && logits != NULL)) {
        return ELLM_USAGE;
    }
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= context->vocab_size) {
            return ELLM_TOKEN_RANGE;
        }
    }
    int32_t length = context->kv.lengths[slot];
    if (n > (size_t)(context->context_length - length)) {
        return ELLM_CONTEXT_FULL;
    }
    size_t most = (size_t)context->body.rows;
    for (size_t done = 0; done < n;) {
        size_t now = n - done < most ? n - done : most;
        for (size_t i = 0; i < now; i++, done++) {
            context->rows[i] = (ellm_row){.token = tokens[done],
                                          .position = length + (int32_t)done,
                                          .slot = slot,
                                          .wants_logits = logits != NULL && done + 1 == n};
        }
        ellm_status status = eval_checked(context, context->rows, now, logits);
        if (status != ELLM_OK) {
            return status;
        }
    }
    return ELLM_OK;
}

int32_t ellm_session_length(const ellm_context *context, int32_t slot) {
    return slot < 0 || slot >= context->n_sessions ? 0 : context->kv.lengths[slot];
}

ellm_status ellm_session_truncate(ellm_context *context, int32_t slot, int32_t length) {
    if (slot < 0 || slot >= context->n_sessions || length < 0 || length > context->kv.lengths[slot]
        || !ellm_kv_truncate(&context->kv, slot, length)) {
        return ELLM_USAGE;
    }
    return ELLM_OK;
}

ellm_status ellm_session_share(ellm_context *context, int32_t from, int32_t to, int32_t length) {
    ellm_kv *kv = &context->kv;
    bool is_prefix = from == ELLM_PREFIX && kv->n_sessions > context->n_sessions;
    bool good =
        (is_prefix || (from >= 0 && from < context->n_sessions)) && to >= 0 && to < context->n_sessions && from != to;
    from = is_prefix ? context->n_sessions : from;
    good = good && length >= 0 && length <= kv->lengths[from];
    return good && ellm_kv_share(kv, from, to, length) ? ELLM_OK : ELLM_USAGE;
}

void ellm_context_settle(ellm_context *context, bool fit) {
    ellm_ladder_settle(&context->body, fit);
    ellm_ladder_settle(&context->head, fit);
    ellm_gear_fix(&context->prefill, context->prefill.best);
    ellm_gear_fix(&context->decode, context->decode.best);
}

void ellm_context_observe(ellm_context *context, const ellm_observer *observer) {
    context->observer = observer;
}

double ellm_context_cost_ns(const ellm_context *context, int32_t n) {
    double head = 0, body = ellm_ladder_cost_ns(&context->body, n);
    for (int32_t left = n; left > 0; left -= context->head.rows) {
        head += ellm_ladder_cost_ns(&context->head, left < context->head.rows ? left : context->head.rows);
    }
    return body > 0 && head > 0 ? body + head : 0;
}

const ellm_model *ellm_context_model(const ellm_context *context) {
    return context->model;
}

ellm_kv *ellm_context_kv(ellm_context *context) {
    return &context->kv;
}

int32_t ellm_context_vocab(const ellm_context *context) {
    return context->vocab_size;
}

int32_t ellm_context_spare(const ellm_context *context, int32_t slot) {
    return ellm_kv_spare(&context->kv, slot, context->context_length);
}
