/* A context: opened with its options, asked, closed. */
#include "posix.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "context_parts.h"
#include "error.h"
#include "model.h"
#include "pace.h"
#include "state.h"

enum {
    default_context = 4096,
    default_endless = 32768, /* where positions cost no memory */
    most_sessions = 1024,
    prefill_window = 2,
    prefill_rest = 6,
    decode_window = 6,
    decode_rest = 8,
    remembered_rest = 256, /* before the first attempt with what was remembered */
    worth_remembering = 8, /* steps */
};

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
    if (prefix == NULL) {
        return 0;
    }
    most = context->plan->n_fixed > 0 && prefix->n_tokens > most ? 0 : most; /* such a state cannot be cut */
    return prefix->n_tokens < most ? prefix->n_tokens : most;
}

/* The prefix gets the session behind all others, and the first blocks of the pool. */
static ellm_status map_prefix(ellm_context *context, ellm_error *error) {
    const ellm_file *file;
    const ellm_state *prefix = ellm_model_prefix(context->model, &file);
    if (prefix == NULL) {
        return ELLM_OK;
    }
    ellm_status status = ellm_state_put(prefix, file, &context->kv, context->n_sessions, prefix_length(context));
#ifdef ELLM_VULKAN
    if (status != ELLM_OK && status != ELLM_CONTEXT_FULL) {
        return ellm_fail(error, status, "the prompts' beginning that the bundle ships does not get to the GPU: %s",
                         ellm_status_text(status));
    }
#else
    (void)status, (void)error;
#endif
    return ELLM_OK; /* where it does not fit, it is empty, and prompts are computed */
}

static ellm_status read_options(ellm_context *context, const ellm_context_options *options, ellm_error *error) {
    ellm_model_info info;
    ellm_model_get_info(context->model, &info);
    ellm_context_options given = options != NULL ? *options : (ellm_context_options){0};
    int32_t length = given.context_length;
    if (length == 0) {
        int32_t usual = info.kv_bytes_per_token > 0 ? default_context : default_endless;
        length = info.context_length < usual ? info.context_length : usual;
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
    set_gear(&context->prefill, &context->cores, context->on_gpu ? 1 : given.n_threads_prefill, prefill_window,
             prefill_rest);
    set_gear(&context->decode, &context->cores, context->on_gpu ? 1 : given.n_threads_decode, decode_window,
             decode_rest);
    context->vocab_size = info.vocab_size;
    context->context_length = length;
    context->n_sessions = sessions;
    int32_t under_way = info.is_split ? 2 : 1; /* a GPU's layers are a step ahead */
    int32_t prefix = prefix_length(context), n_prefix = (prefix + ELLM_BLOCK - 1) / ELLM_BLOCK;
    int32_t each =
        ellm_kv_session_blocks(length, info.sliding_window, under_way * ellm_ladder_rows(&context->plan->body));
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
    const ellm_plan *gpu_plan = ellm_model_gpu_plan(model);
    context->on_gpu = gpu_plan == context->plan;
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
    symbols[ELLM_SYMBOL_SESSIONS] = (uint64_t)kv->n_sessions; /* the prefix's, too */
    symbols[ELLM_SYMBOL_TABLE] = symbols[ELLM_SYMBOL_SESSIONS] * symbols[ELLM_SYMBOL_TABLE_CAP];
    if (status == ELLM_OK) {
        status = ellm_plan_check(context->plan, symbols, error);
    }
    if (status == ELLM_OK) {
        status = ellm_context_take_memory(context, error);
    }
    const ellm_buffers buffers = {.plan = context->plan,
                                  .arena = context->arena,
                                  .states = context->kv.states,
                                  .inputs = context->inputs,
                                  .symbols = symbols};
    if (status == ELLM_OK && gpu_plan != NULL) {
        status = ellm_plan_check(gpu_plan, symbols, error);
    }
    if (status == ELLM_OK && gpu_plan != NULL) {
        ellm_gpu_source source = {.plan = gpu_plan,
                                  .symbols = symbols,
                                  .inputs = context->inputs,
                                  .real = options != NULL && options->real_gpu,
                                  .directory = ellm_model_directory(model)};
#ifdef ELLM_VULKAN
        source.files = ellm_model_shards(model, &source.n_files);
#endif
        status = ellm_gpu_open(&source, &context->gpu, error);
#ifdef ELLM_VULKAN
        context->kv.gpu = context->gpu;
        context->kv.first = gpu_plan != context->plan ? gpu_plan : NULL;
#endif
    }
    if (status == ELLM_OK
        && (!ellm_ladder_bind(&context->plan->body, &buffers, &context->region, &context->body)
            || !ellm_ladder_bind(&context->plan->head, &buffers, &context->region, &context->head)
            || (context->plan->norm.n_functions > 0
                && !ellm_ladder_bind(&context->plan->norm, &buffers, &context->region, &context->norm)))) {
        status = ellm_fail(error, ELLM_NO_MEMORY, "no memory for the plan's launches");
    }
    status = status == ELLM_OK ? map_prefix(context, error) : status;
    if (status != ELLM_OK) {
        ellm_context_close(context);
        return status;
    }
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
#ifdef ELLM_VULKAN
    if (context->gpu == NULL) {
        return false;
    }
    ellm_gpu_info gpu;
    ellm_gpu_get_info(context->gpu, &gpu);
    memcpy(info->name, gpu.name, sizeof info->name);
    memcpy(info->driver, gpu.driver, sizeof info->driver);
    info->is_processor = gpu.is_processor;
    info->weight_bytes = gpu.weight_bytes;
    info->kv_bytes = gpu.state_bytes;
    info->other_bytes = gpu.other_bytes;
    info->imported_bytes = gpu.imported_bytes;
    info->uploaded_bytes = gpu.uploaded_bytes;
    info->upload_ms = gpu.upload_ms;
    info->upload_copy_ms = gpu.upload_copy_ms;
    info->upload_wait_ms = gpu.upload_wait_ms;
    info->pipelines_ms = gpu.pipelines_ms;
    info->n_dispatches = gpu.n_dispatches;
    info->n_barriers = gpu.n_barriers;
    return true;
#else
    (void)context;
    return false;
#endif
}

int32_t ellm_context_length(const ellm_context *context) {
    return context->context_length;
}

void ellm_context_cancel(ellm_context *context, bool cancel) {
    atomic_store(&context->cancelled, cancel);
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
