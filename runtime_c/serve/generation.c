#include "posix.h"

#include "generation.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "exponential.h"
#include "program.h"

enum { most_text_per_token = 4096 };

generation *generation_new(const ellm_model *model) {
    generation *g = calloc(1, sizeof *g);
    if (g != NULL) {
        g->model = model;
        g->options.most_tokens = -1;
        g->options.n_likely = -1;
        ellm_model_sampler_options(model, &g->options.sampling);
    }
    return g;
}

void generation_free(generation *g) {
    if (g != NULL) {
        ellm_sampler_close(g->sampler);
        ellm_matcher_close(g->matcher);
        ellm_grammar_close(g->options.grammar);
        free(g->plain);
        free(g->ends);
        free(g->sum);
        free(g->options.biases);
        for (int i = 0; i < g->options.n_stops; i++) {
            free(g->options.stops[i]);
        }
        free(g->prompt);
        buffer_free(&g->filter.pending);
        buffer_free(&g->text);
        buffer_free(&g->notes);
        free(g);
    }
}

static void *copy_of(const void *data, size_t n_bytes) {
    void *copy = data == NULL ? NULL : malloc(n_bytes > 0 ? n_bytes : 1);
    return copy == NULL ? NULL : memcpy(copy, data, n_bytes);
}

generation *generation_again(const generation *g, uint64_t seed) {
    generation *other = generation_new(g->model);
    if (other == NULL) {
        return NULL;
    }
    const generation_options *o = &g->options;
    other->options = *o;
    other->options.sampling.seed = seed;
    other->options.n_stops = 0;
    if (o->grammar != NULL) {
        ellm_grammar_share(o->grammar);
    }
    other->n_prompt = g->n_prompt;
    other->prompt = copy_of(g->prompt, g->n_prompt * sizeof *g->prompt);
    other->options.biases = copy_of(o->biases, o->sampling.n_bias * sizeof *o->biases);
    other->options.sampling.bias = other->options.biases;
    bool good = other->prompt != NULL && (o->biases == NULL || other->options.biases != NULL);
    for (int i = 0; i < o->n_stops && good; i++) {
        other->options.stops[i] = strdup(o->stops[i]);
        good = other->options.stops[i] != NULL;
        other->options.n_stops += good;
    }
    if (!good) {
        generation_free(other);
        return NULL;
    }
    return other;
}

static ellm_status keep(void *user, const char *text, size_t n_bytes, ellm_error *error) {
    generation *g = user;
    (void)error;
    buffer_put(&g->text, text, n_bytes);
    return ELLM_OK;
}

ellm_status generation_begin(generation *g) {
    generation_options *o = &g->options;
    g->filter = (stops){.texts = (const char *const *)o->stops, .n_texts = o->n_stops, .sink = keep, .user = g};
    g->stream = (ellm_stream){.skip_special = true};
    ellm_model_info info;
    ellm_model_get_info(g->model, &info);
    ellm_status status = ellm_sampler_open(info.vocab_size, &o->sampling, &g->sampler);
    for (size_t i = 0; i < g->n_prompt && status == ELLM_OK; i++) {
        ellm_sampler_accept(g->sampler, g->prompt[i]);
    }
    if (status == ELLM_OK && o->grammar != NULL) {
        ellm_stream_exact(&g->stream);
        status = ellm_matcher_open(o->grammar, o->vocabulary, &g->matcher);
    }
    if (o->n_likely >= 0) {
        g->plain = calloc((size_t)info.vocab_size, sizeof *g->plain);
        status = status == ELLM_OK && g->plain == NULL ? ELLM_NO_MEMORY : status;
    }
    return status;
}

/* ---- notes ---- */

/* ln x for x >= 1: the exponent, and the series of artanh for the rest. */
static double logarithm(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & ((UINT64_C(1) << 52) - 1)) | UINT64_C(1023) << 52;
    memcpy(&x, &bits, sizeof x);
    double s = (x - 1) / (x + 1), square = s * s, sum = 0;
    for (int i = 21; i >= 1; i -= 2) {
        sum = sum * square + 1.0 / i;
    }
    return exponent * 0.69314718055994530942 + 2 * s * sum;
}

/* The log-probability of every logit is logit - this. */
static double normaliser(const float *logits, int32_t vocab) {
    float top = -INFINITY;
    for (int32_t i = 0; i < vocab; i++) {
        top = logits[i] > top ? logits[i] : top;
    }
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++) {
        sum += (double)ellm_exponential(logits[i] - top);
    }
    return (double)top + logarithm(sum > 1 ? sum : 1);
}

static void find_likely(const float *logits, int32_t vocab, double norm, token_note *note) {
    int32_t n = 0;
    for (int32_t i = 0; i < vocab; i++) {
        float logprob = (float)((double)logits[i] - norm);
        int32_t at = n < note->n_likely ? n++ : n;
        for (; at > 0 && note->likely[at - 1].logprob < logprob; at--) {
            if (at < note->n_likely) {
                note->likely[at] = note->likely[at - 1];
            }
        }
        if (at < note->n_likely) {
            note->likely[at] = (likely_token){i, logprob};
        }
    }
    note->n_likely = n;
}

/* ---- steps ---- */

static void end(generation *g, generation_reason reason) {
    char text[most_text_per_token];
    size_t n_bytes = 0;
    if (ellm_stream_flush(g->model, &g->stream, text, sizeof text, &n_bytes) == ELLM_OK) {
        (void)stops_push(&g->filter, text, n_bytes, NULL);
    }
    (void)stops_flush(&g->filter, NULL);
    g->reason = g->filter.stopped ? ENDED_STOP : reason;
    g->times.ended = clock_ms();
}

bool generation_embedded(generation *g) {
    size_t width = ellm_model_embedding_size(g->model), n_bytes = width * sizeof(float);
    buffer_reserve(&g->notes, n_bytes);
    ellm_embedding_make(g->sum, width, (float *)(void *)(g->notes.data + g->notes.n));
    g->notes.n += n_bytes;
    memset(g->sum, 0, width * sizeof *g->sum);
    if (++g->n_embedded < g->n_ends) {
        return false;
    }
    g->reason = ENDED_STOP;
    g->times.ended = g->times.first = clock_ms();
    return true;
}

void generation_fail(generation *g, ellm_status status) {
    g->failed = status;
    g->reason = ENDED_FAILED;
    g->times.ended = clock_ms();
}

static void take_note(generation *g, int32_t token, int32_t vocab) {
    double norm = normaliser(g->plain, vocab);
    g->note = (token_note){.chosen = {token, (float)((double)g->plain[token] - norm)}, .n_likely = g->options.n_likely};
    find_likely(g->plain, vocab, norm, &g->note);
}

int32_t generation_pick(generation *g, float *logits) {
    ellm_model_info info;
    ellm_model_get_info(g->model, &info);
    if (g->plain != NULL) { /* the sampler changes the logits */
        memcpy(g->plain, logits, (size_t)info.vocab_size * sizeof *logits);
    }
    g->picked = g->matcher != NULL ? ellm_matcher_apply(g->matcher, logits) : ELLM_OK;
    if (g->picked != ELLM_OK) {
        return 0;
    }
    int32_t token = ellm_sampler_pick(g->sampler, logits);
    ellm_sampler_accept(g->sampler, token);
    g->picked = g->matcher != NULL ? ellm_matcher_accept(g->matcher, token) : ELLM_OK;
    if (g->plain != NULL) {
        take_note(g, token, info.vocab_size);
    }
    return token;
}

void generation_push(generation *g, int32_t token, bool is_full) {
    if (g->picked != ELLM_OK) {
        generation_fail(g, g->picked);
        return;
    }
    if (g->n_tokens++ == 0) {
        g->times.first = clock_ms();
    }
    if (ellm_token_is_stop(g->model, token)) {
        end(g, ENDED_STOP);
        return;
    }
    if (g->plain != NULL) {
        buffer_put(&g->notes, (const char *)&g->note, sizeof g->note);
    }
    char text[most_text_per_token];
    size_t n_bytes;
    const generation_options *o = &g->options;
    ellm_status status = ellm_stream_push(g->model, &g->stream, token, text, sizeof text, &n_bytes);
    if (status == ELLM_OK) {
        status = stops_push(&g->filter, text, n_bytes, NULL);
    }
    if (status != ELLM_OK) {
        generation_fail(g, status);
    } else if (g->filter.stopped || (g->matcher != NULL && ellm_matcher_is_done(g->matcher))) {
        end(g, ENDED_STOP);
    } else if (is_full || (o->most_tokens >= 0 && (int64_t)g->n_tokens >= o->most_tokens)) {
        end(g, ENDED_LENGTH);
    }
}
