#include "posix.h"

#include "engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "stops.h"
#include "trust.h"

enum { most_step_rows = 1024, most_text_per_token = 4096 }; /* rows: no plan has more */

static ellm_status open_context(void *user, const settings *s, const ellm_model *model, bool real_gpu,
                                ellm_context **context, ellm_error *error) {
    engine *e = user;
    ellm_model_get_info(model, &e->info);
    int32_t threads = s->threads > 0 ? (int32_t)s->threads : 0;
    ellm_context_options options = {.n_sessions = 1,
                                    .context_length = s->context > 0 ? (int32_t)s->context : 0,
                                    .n_threads_prefill = threads,
                                    .n_threads_decode = s->threads_decode > 0 ? (int32_t)s->threads_decode : threads,
                                    .real_gpu = real_gpu};
    if (options.context_length > e->info.context_length) {
        return ellm_fail(error, ELLM_USAGE, "--context %d: the model was compiled for at most %d positions",
                         (int)options.context_length, (int)e->info.context_length);
    }
    return ellm_context_open(model, &options, context, error);
}

ellm_status engine_open(engine *e, const settings *s, ellm_lookup_mode lookup, ellm_error *error) {
    *e = (engine){0};
    double start = clock_ms();
    trust t;
    ellm_status status = trust_find(&t, error);
    status = status != ELLM_OK ? status : device_open(s, &t.files, open_context, e, &e->model, &e->context, error);
    if (status != ELLM_OK) {
        return status;
    }
    trust_note(&e->info);
    lookup = e->info.on_gpu ? ELLM_LOOKUP_OFF : lookup; /* what a row more costs is not measured there */
    status = ellm_lookup_open(e->context, 0, s->lookup < 0 ? lookup : (ellm_lookup_mode)s->lookup, &e->lookup);
    if (status != ELLM_OK) {
        return ellm_fail(error, status, "the lookup of tokens: %s", ellm_status_text(status));
    }
    status = constrained_open(&e->form, s, e->model, error);
    if (status != ELLM_OK) {
        return status;
    }
    e->context_length = ellm_context_length(e->context);
    e->logits = calloc((size_t)e->info.vocab_size, sizeof *e->logits);
    e->held = calloc((size_t)e->context_length, sizeof *e->held);
    if (e->logits == NULL || e->held == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "logits of %d entries", (int)e->info.vocab_size);
    }
    e->load_ms = clock_ms() - start;
    interrupts_cancel(e->context);
    return ELLM_OK;
}

void engine_close(engine *e) {
    interrupts_cancel(NULL);
    ellm_lookup_close(e->lookup);
    ellm_context_close(e->context);
    constrained_close(&e->form);
    ellm_model_close(e->model);
    free(e->logits);
    free(e->held);
    *e = (engine){0};
}

ellm_status engine_encode(engine *e, const char *text, size_t n_bytes, bool special, int32_t **ids, size_t *n,
                          ellm_error *error) {
    size_t cap = n_bytes + 16;
    *ids = NULL;
    for (int attempt = 0; attempt < 2; attempt++) {
        free(*ids);
        *ids = calloc(cap, sizeof **ids);
        if (*ids == NULL) {
            return ellm_fail(error, ELLM_NO_MEMORY, "a prompt of %zu bytes", n_bytes);
        }
        ellm_status status = ellm_encode(e->model, text, n_bytes, special, true, *ids, cap, n);
        if (status != ELLM_BUFFER_SMALL) {
            return status == ELLM_OK ? status : ellm_fail(error, status, "the prompt: %s", ellm_status_text(status));
        }
        cap = *n;
    }
    return ellm_fail(error, ELLM_INTERNAL, "the tokenizer's count changed");
}

static ellm_status evaluated(engine *e, ellm_status status, ellm_error *error) {
    /* After a failure the session may hold part of the rows. */
    int32_t length = ellm_session_length(e->context, 0);
    e->n_held = length > 0 ? (size_t)length : 0;
    return status == ELLM_OK ? status : ellm_fail(error, status, "while computing: %s", ellm_status_text(status));
}

/* How many tokens a prompt begins with that are there already; its last one's logits are wanted. */
static size_t common(const int32_t *there, size_t n_there, const int32_t *ids, size_t n) {
    size_t same = 0;
    while (same < n_there && same < n - 1 && there[same] == ids[same]) {
        same++;
    }
    return same;
}

ellm_status engine_prefill(engine *e, const int32_t *ids, size_t n, engine_poll *poll, void *user, size_t *n_reused,
                           ellm_error *error) {
    if (n == 0) {
        return ellm_fail(error, ELLM_USAGE, "the prompt is empty");
    }
    if (n > (size_t)e->context_length) {
        return ellm_fail(error, ELLM_CONTEXT_FULL,
                         "the prompt has %zu tokens, the context %d; shorten it or raise --context", n,
                         (int)e->context_length);
    }
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= e->info.vocab_size) {
            return ellm_fail(error, ELLM_TOKEN_RANGE, "token %zu of the prompt is %d; the vocabulary ends at %d", i,
                             (int)ids[i], (int)e->info.vocab_size - 1);
        }
    }
    const int32_t *shipped;
    size_t n_shipped = ellm_model_prefix_tokens(e->model, &shipped);
    size_t same = common(e->held, e->n_held, ids, n), ready = common(shipped, n_shipped, ids, n);
    if (ready > same && ellm_session_share(e->context, ELLM_PREFIX, 0, (int32_t)ready) == ELLM_OK) {
        memcpy(e->held, ids, ready * sizeof *ids);
        same = ready;
    } else if (ellm_session_truncate(e->context, 0, (int32_t)same) != ELLM_OK) {
        same = 0; /* a cache that cannot be cut there is rebuilt */
        ellm_status status = ellm_session_truncate(e->context, 0, 0);
        if (status != ELLM_OK) {
            return ellm_fail(error, status, "the cache cannot be emptied");
        }
    }
    e->n_held = same;
    *n_reused = same;
    for (size_t done = same; done < n;) {
        ellm_row rows[most_step_rows];
        size_t left = n - done, most = (size_t)e->info.step_rows, count = left < most ? left : most;
        for (size_t i = 0; i < count; i++) {
            e->held[done + i] = ids[done + i];
            rows[i] =
                (ellm_row){.token = ids[done + i], .position = (int32_t)(done + i), .wants_logits = done + i + 1 == n};
        }
        if (interrupts_count() > 0 || (poll != NULL && poll(user))) {
            return ELLM_CANCELLED;
        }
        ellm_status status = evaluated(e, ellm_context_eval(e->context, rows, count, e->logits), error);
        if (status != ELLM_OK) {
            return status;
        }
        done += count;
    }
    return ELLM_OK;
}

int32_t engine_threads_prefill(const engine *e) {
    int32_t prefill, decode;
    ellm_context_get_threads(e->context, &prefill, &decode);
    return prefill;
}

int32_t engine_threads_decode(const engine *e) {
    int32_t prefill, decode;
    ellm_context_get_threads(e->context, &prefill, &decode);
    return decode;
}

ellm_status engine_append(engine *e, int32_t token, ellm_error *error) {
    if (e->n_held >= (size_t)e->context_length) {
        return ellm_fail(error, ELLM_CONTEXT_FULL, "the context of %d positions is full", (int)e->context_length);
    }
    ellm_status status = ellm_lookup_eval(e->lookup, token, e->logits);
    if (status != ELLM_OK) {
        return evaluated(e, status, error);
    }
    e->held[e->n_held++] = token; /* the session may hold guesses behind it */
    return ELLM_OK;
}

ellm_sampler_options engine_sampling(const engine *e, const settings *s) {
    ellm_sampler_options options;
    ellm_model_sampler_options(e->model, &options);
    if (s->temperature >= 0) options.temperature = (float)s->temperature;
    if (s->top_k >= 0) options.top_k = (int32_t)s->top_k;
    if (s->top_p >= 0) options.top_p = (float)s->top_p;
    if (s->min_p >= 0) options.min_p = (float)s->min_p;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    options.seed = s->seed >= 0 ? (uint64_t)s->seed : ((uint64_t)now.tv_sec << 20 ^ (uint64_t)now.tv_nsec) >> 1;
    return options;
}

/* The next token, as the grammar allows if there is one. */
static ellm_status pick(engine *e, ellm_sampler *sampler, ellm_matcher *matcher, int32_t *token, ellm_error *error) {
    ellm_status status = matcher != NULL ? ellm_matcher_apply(matcher, e->logits) : ELLM_OK;
    if (status == ELLM_OK) {
        *token = ellm_sampler_pick(sampler, e->logits);
        ellm_sampler_accept(sampler, *token);
        status = matcher != NULL ? ellm_matcher_accept(matcher, *token) : ELLM_OK;
    }
    return status == ELLM_OK ? status : ellm_fail(error, status, "the grammar: %s", ellm_status_text(status));
}

/* Picks, streams and appends until something ends the answer. */
static ellm_status generate_tokens(engine *e, const answer_request *r, ellm_sampler *sampler, ellm_matcher *matcher,
                                   stops *filter, ellm_stream *stream, answer *a, ellm_error *error) {
    char text[most_text_per_token];
    size_t n_bytes;
    a->reason = "length";
    while (r->most_tokens < 0 || (int64_t)a->n_ids < r->most_tokens) {
        double start = clock_ms();
        int32_t token = 0;
        ellm_status status = pick(e, sampler, matcher, &token, error);
        if (status != ELLM_OK) {
            return status;
        }
        a->ids[a->n_ids++] = token;
        if (a->n_ids == 1) {
            a->first_token_ms = a->prefill_ms + clock_ms() - start;
        }
        if (!r->ignore_stop && ellm_token_is_stop(e->model, token)) {
            a->reason = "stop";
            break;
        }
        status = ellm_stream_push(e->model, stream, token, text, sizeof text, &n_bytes);
        if (status != ELLM_OK) {
            return ellm_fail(error, status, "token %d cannot be shown: %s", (int)token, ellm_status_text(status));
        }
        status = stops_push(filter, text, n_bytes, error);
        if (status != ELLM_OK) {
            return status;
        }
        if (filter->stopped || (matcher != NULL && ellm_matcher_is_done(matcher))) {
            a->reason = "stop";
            break;
        }
        if (interrupts_count() > 0 || (r->poll != NULL && r->poll(r->user))) {
            a->reason = "cancelled";
            break;
        }
        if (e->n_held == (size_t)e->context_length) {
            a->context_full = true;
            break;
        }
        if (r->most_tokens >= 0 && (int64_t)a->n_ids == r->most_tokens) {
            break;
        }
        status = engine_append(e, token, error);
        if (status == ELLM_CANCELLED) {
            a->reason = "cancelled";
            break;
        }
        if (status != ELLM_OK) {
            return status;
        }
    }
    return ELLM_OK;
}

static ellm_status generate(engine *e, const answer_request *r, ellm_sampler *sampler, stops *filter, answer *a,
                            ellm_error *error) {
    ellm_stream stream = {.skip_special = true};
    char text[most_text_per_token];
    size_t n_bytes;
    ellm_status status = ellm_lookup_begin(e->lookup, r->prompt, r->n_prompt);
    if (status != ELLM_OK) {
        return ellm_fail(error, status, "the lookup of tokens cannot begin");
    }
    ellm_matcher *matcher = NULL;
    if (e->form.grammar != NULL) {
        ellm_stream_exact(&stream);
        status = ellm_matcher_open(e->form.grammar, e->form.vocabulary, &matcher);
    }
    status = status == ELLM_OK ? generate_tokens(e, r, sampler, matcher, filter, &stream, a, error)
                               : ellm_fail(error, status, "the grammar: %s", ellm_status_text(status));
    ellm_matcher_close(matcher);
    ellm_lookup_end(e->lookup);
    ellm_lookup_get_stats(e->lookup, &a->lookup);
    if (status != ELLM_OK) {
        return status;
    }
    status = ellm_stream_flush(e->model, &stream, text, sizeof text, &n_bytes);
    if (status == ELLM_OK) {
        status = stops_push(filter, text, n_bytes, error);
    }
    return status == ELLM_OK ? stops_flush(filter, error) : status;
}

ellm_status engine_answer(engine *e, const answer_request *r, answer *a, ellm_error *error) {
    *a = (answer){.reason = "cancelled"};
    ellm_sampler *sampler = NULL;
    stops filter = {.texts = r->stops, .n_texts = r->n_stops, .sink = r->text, .user = r->user};
    ellm_context_cancel(e->context, false);
    ellm_status status = ellm_sampler_open(e->info.vocab_size, &r->sampling, &sampler);
    a->ids = calloc((size_t)e->context_length + 1, sizeof *a->ids);
    if (status != ELLM_OK || a->ids == NULL) {
        ellm_sampler_close(sampler);
        return ellm_fail(error, status != ELLM_OK ? status : ELLM_NO_MEMORY, "the sampler cannot be set up like this");
    }
    for (size_t i = 0; i < r->n_prompt; i++) {
        ellm_sampler_accept(sampler, r->prompt[i]);
    }
    double start = clock_ms();
    status = engine_prefill(e, r->prompt, r->n_prompt, r->poll, r->user, &a->n_reused, error);
    double prefilled = clock_ms();
    a->prefill_ms = prefilled - start;
    if (status == ELLM_OK) {
        status = generate(e, r, sampler, &filter, a, error);
        a->decode_ms = clock_ms() - prefilled;
    } else if (status == ELLM_CANCELLED) {
        status = ELLM_OK;
    }
    buffer_free(&filter.pending);
    ellm_sampler_close(sampler);
    return status;
}

const char *answer_guesses(const answer *a, char *text, size_t cap) {
    text[0] = '\0';
    if (a->lookup.n_guessed > 0) {
        snprintf(text, cap, ", %llu of %llu guesses right", (unsigned long long)a->lookup.n_accepted,
                 (unsigned long long)a->lookup.n_guessed);
    }
    return text;
}
