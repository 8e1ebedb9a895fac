/* Sessions: what they hold grows and shrinks, and outlives the program in a file, for a later run of the same bundle. */
#include "posix.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "context_parts.h"
#include "error.h"
#include "model.h"
#include "state.h"

enum { most_note_bytes = 16 << 20 };

struct ellm_saved {
    ellm_file file;
    ellm_region region;
    ellm_state state;
    bool is_foreign;
};

/* ---- positions ---- */

/* Appends tokens. Rows that are wanted: all, or the last one; into logits or sum, as of ellm_context_run. */
static ellm_status append(ellm_context *context, int32_t slot, const int32_t *tokens, size_t n, bool wants_all,
                          float *logits, double *sum) {
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
            context->rows[i] =
                (ellm_row){.token = tokens[done],
                           .position = length + (int32_t)done,
                           .slot = slot,
                           .wants_logits = wants_all || ((logits != NULL || sum != NULL) && done + 1 == n)};
        }
        ellm_status status = ellm_context_run(context, context->rows, now, logits, sum);
        if (status != ELLM_OK) {
            return status;
        }
    }
    return ELLM_OK;
}

ellm_status ellm_session_eval(ellm_context *context, int32_t slot, const int32_t *tokens, size_t n, float *logits) {
    return append(context, slot, tokens, n, false, logits, NULL);
}

ellm_status ellm_session_embed(ellm_context *context, int32_t slot, const int32_t *tokens, size_t n, double *sum) {
    size_t width = ellm_model_embedding_size(context->model);
    if (width == 0) {
        return ELLM_USAGE;
    }
    if (context->plan->pools_last) {
        memset(sum, 0, width * sizeof *sum);
    }
    return append(context, slot, tokens, n, !context->plan->pools_last, NULL, sum);
}

/* The square root of x > 0 by Newton's method, from above: no libm for one number. */
static double root(double x) {
    double now = x > 1 ? x : 1, before = 2 * now;
    while (now < before) {
        before = now;
        now = (now + x / now) / 2;
    }
    return before;
}

void ellm_embedding_make(const double *sum, size_t n, float *embedding) {
    double square = 0;
    for (size_t i = 0; i < n; i++) {
        square += sum[i] * sum[i];
    }
    double scale = square > 0 ? 1 / root(square) : 0; /* 0, too, of what overflowed */
    for (size_t i = 0; i < n; i++) {
        embedding[i] = scale > 0 ? (float)(sum[i] * scale) : 0;
    }
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

/* ---- files ---- */

ellm_status ellm_session_save(ellm_context *context, int32_t slot, const int32_t *tokens, const char *path,
                              const void *note, size_t note_bytes, ellm_error *error) {
    if (ellm_session_length(context, slot) < 1 || note_bytes > most_note_bytes) {
        return ellm_fail(error, ELLM_USAGE, "%.200s: there is nothing to save, or a note of more than 16 MiB", path);
    }
    return ellm_state_write(path, ellm_context_kv(context), slot, tokens,
                            ellm_model_computer(ellm_context_model(context)), note, note_bytes, error);
}

static ellm_status read_saved(const ellm_model *model, ellm_saved *saved, const char *path, ellm_error *error) {
    ellm_tensor *tensors;
    size_t n;
    ellm_model_info info;
    ellm_model_get_info(model, &info);
    const uint8_t *data = saved->file.data;
    ellm_status status = saved->file.bytes < 8 ? ELLM_BUNDLE_FORMAT
                                               : ellm_safetensors_read(data, data, saved->file.bytes, path,
                                                                       &saved->region, &tensors, &n, error);
    ellm_kv kv = {.window = info.sliding_window};
    if (status == ELLM_OK) { /* without a plan: what any bundle's file has */
        status = ellm_state_read(tensors, n, &kv, info.vocab_size, path, &saved->region, &saved->state, error);
    }
    if (status == ELLM_OK && !ellm_state_is_whole(&saved->file)) {
        status = ELLM_BUNDLE_FORMAT;
    }
    const char *bundle = saved->state.bundle;
    saved->is_foreign = bundle == NULL || memcmp(bundle, ellm_model_computer(model), 64) != 0;
    if (status == ELLM_OK && !saved->is_foreign) {
        kv.plan = ellm_model_plan(model);
#ifdef ELLM_VULKAN
        kv.first = ellm_model_first_plan(model);
#endif
        status = ellm_state_read(tensors, n, &kv, info.vocab_size, path, &saved->region, &saved->state, error);
    }
    return status == ELLM_OK || status == ELLM_NO_MEMORY
               ? status
               : ellm_fail(error, ELLM_SESSION_INVALID, "%.200s: no saved session, or a damaged one; remove it", path);
}

ellm_status ellm_saved_open(const ellm_model *model, const char *path, ellm_saved **result, ellm_error *error) {
    *result = NULL;
    ellm_saved *saved = calloc(1, sizeof *saved);
    if (saved == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%.200s: no memory to read it", path);
    }
    ellm_region_init(&saved->region, (size_t)64 << 20);
    ellm_status status = ellm_file_map(AT_FDCWD, path, &saved->file, error);
    status = status != ELLM_OK ? status : read_saved(model, saved, path, error);
    if (status != ELLM_OK) {
        ellm_saved_close(saved);
        return status;
    }
    *result = saved;
    return ELLM_OK;
}

void ellm_saved_close(ellm_saved *saved) {
    if (saved != NULL) {
        ellm_region_free(&saved->region);
        ellm_file_close(&saved->file);
        free(saved);
    }
}

const void *ellm_saved_note(const ellm_saved *saved, size_t *n_bytes) {
    *n_bytes = (size_t)saved->state.note_bytes;
    return saved->state.note;
}

size_t ellm_saved_tokens(const ellm_saved *saved, const int32_t **tokens) {
    *tokens = saved->state.tokens;
    return saved->is_foreign ? 0 : (size_t)saved->state.n_tokens;
}

ellm_status ellm_session_restore(ellm_context *context, int32_t slot, const ellm_saved *saved) {
    if (saved->is_foreign || ellm_session_truncate(context, slot, 0) != ELLM_OK) {
        return ELLM_USAGE;
    }
    int32_t n = saved->state.n_tokens;
    bool fits = n <= ellm_context_length(context);
    return fits ? ellm_state_put(&saved->state, NULL, ellm_context_kv(context), slot, n) : ELLM_CONTEXT_FULL;
}
