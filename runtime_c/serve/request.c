#include "posix.h"

#include "request.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "json_write.h"
#include "program.h"

/* ---- members ---- */

void parsing_note(parsing *p, int status, const char *param, const char *format, ...) {
    if (p->status == 0) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(p->text, sizeof p->text, format, arguments);
        va_end(arguments);
        p->status = status;
        p->param = param;
    }
}

bool parsing_no_memory(parsing *p) {
    return parsing_fail(p, 500, NULL, "memory ran out");
}

generation *parsing_generation(parsing *p) {
    generation *g = generation_new(p->service->model);
    (void)(g != NULL || parsing_no_memory(p));
    return g;
}

bool parsing_open(parsing *p, service *s, const char *body, size_t n_body) {
    ellm_error error = {{0}};
    *p = (parsing){.service = s};
    ellm_region_init(&p->region, REQUEST_REGION);
    ellm_status status = ellm_json_read(body, n_body, &p->region, ELLM_USAGE, "the body", &p->body, &error);
    if (status != ELLM_OK) {
        return parsing_fail(p, status == ELLM_NO_MEMORY ? 413 : 400, NULL, "%s", error.text);
    }
    return p->body->kind == ELLM_JSON_OBJECT || parsing_fail(p, 400, NULL, "the body is no JSON object");
}

void parsing_free(parsing *p) {
    ellm_region_free(&p->region);
}

const ellm_json *member(const ellm_json *object, const char *key) {
    const ellm_json *value = ellm_json_get(object, key);
    return value == NULL || value->kind == ELLM_JSON_NULL ? NULL : value;
}

bool parse_bool(parsing *p, const ellm_json *object, const char *key, bool *result) {
    const ellm_json *value = member(object, key);
    if (value != NULL && value->kind != ELLM_JSON_BOOL) {
        return parsing_fail(p, 400, key, "'%s' must be true or false", key);
    }
    *result = value != NULL ? value->integer != 0 : *result;
    return true;
}

bool parse_int(parsing *p, const ellm_json *object, const char *key, int64_t least, int64_t most, int64_t *result) {
    const ellm_json *value = member(object, key);
    return value == NULL || ellm_json_int(value, least, most, result)
           || parsing_fail(p, 400, key, "'%s' must be a whole number from %lld to %lld", key, (long long)least,
                           (long long)most);
}

bool parse_float(parsing *p, const ellm_json *object, const char *key, double least, double most, float *result) {
    const ellm_json *value = member(object, key);
    double real = 0;
    if (value == NULL) {
        return true;
    }
    if (!ellm_json_real(value, &real) || !(real >= least && real <= most)) {
        return parsing_fail(p, 400, key, "'%s' must be a number from %g to %g", key, least, most);
    }
    *result = (float)real;
    return true;
}

bool parse_stops(parsing *p, const ellm_json *object, generation *g) {
    const ellm_json *value = member(object, "stop");
    const ellm_json *each = value != NULL && value->kind == ELLM_JSON_ARRAY ? value->first : value;
    for (; each != NULL; each = value->kind == ELLM_JSON_ARRAY ? each->next : NULL) {
        const char *text = ellm_json_text(each, 1024);
        if (text == NULL || g->options.n_stops == MOST_STOPS) {
            return parsing_fail(p, 400, "stop", "'stop' must be a text or up to %d texts, none of them empty",
                                (int)MOST_STOPS);
        }
        g->options.stops[g->options.n_stops] = strdup(text);
        if (g->options.stops[g->options.n_stops] == NULL) {
            return parsing_no_memory(p);
        }
        g->options.n_stops++;
    }
    return true;
}

static uint64_t fresh_seed(service *s) {
    uint64_t seed = 0;
    /* Fails early in a boot. Android has getrandom since API 28. */
    if (syscall(SYS_getrandom, &seed, sizeof seed, GRND_NONBLOCK) != sizeof seed) {
        seed = (uint64_t)(clock_ms() * 1e6);
    }
    return (seed ^ ++s->n_seeds * UINT64_C(0x9e3779b97f4a7c15)) >> 1;
}

bool parse_sampling(parsing *p, const ellm_json *object, generation *g) {
    ellm_sampler_options *o = &g->options.sampling;
    int64_t top_k = o->top_k, seed = -1;
    bool good = parse_float(p, object, "temperature", 0, 1e4, &o->temperature)
                && parse_float(p, object, "top_p", 0, 1, &o->top_p) && parse_float(p, object, "min_p", 0, 1, &o->min_p)
                && parse_float(p, object, "presence_penalty", -1e4, 1e4, &o->presence_penalty)
                && parse_float(p, object, "frequency_penalty", -1e4, 1e4, &o->frequency_penalty)
                && parse_int(p, object, "top_k", -1, INT32_MAX, &top_k)
                && parse_int(p, object, "seed", INT64_MIN, INT64_MAX, &seed) && parse_stops(p, object, g);
    o->top_k = top_k > 0 ? (int32_t)top_k : 0;
    o->seed = member(object, "seed") != NULL ? (uint64_t)seed : fresh_seed(p->service);
    return good;
}

bool parse_model(parsing *p, const char *key) {
    static const char tag[] = ":latest";
    const ellm_json *value = member(p->body, key);
    const char *name = p->service->name;
    size_t n = strlen(name), n_tag = sizeof tag - 1;
    if (value == NULL) {
        return true;
    }
    if (value->kind != ELLM_JSON_STRING) {
        return parsing_fail(p, 400, key, "'%s' must be a text", key);
    }
    bool same = value->count >= n && memcmp(value->text, name, n) == 0
                && (value->count == n || (value->count == n + n_tag && memcmp(value->text + n, tag, n_tag) == 0));
    if (!same) {
        p->code = "model_not_found";
        return parsing_fail(p, 404, key, "model '%.100s' is not on this board; it serves '%.200s'", value->text, name);
    }
    return true;
}

/* ---- prompts ---- */

bool parse_text(parsing *p, const char *text, size_t n_bytes, bool special, generation *g) {
    size_t cap = n_bytes / 2 + 64;
    ellm_status status = ELLM_BUFFER_SMALL;
    for (int attempt = 0; attempt < 2 && status == ELLM_BUFFER_SMALL; attempt++) {
        free(g->prompt);
        g->prompt = calloc(cap, sizeof *g->prompt);
        if (g->prompt == NULL) {
            return parsing_no_memory(p);
        }
        status = ellm_encode(p->service->model, text, n_bytes, special, true, g->prompt, cap, &g->n_prompt);
        cap = g->n_prompt;
    }
    return status == ELLM_OK || parsing_fail(p, 500, NULL, "the prompt: %s", ellm_status_text(status));
}

bool check_room(parsing *p, const generation *g) {
    if (g->n_prompt == 0) {
        return parsing_fail(p, 400, "prompt", "the prompt is empty");
    }
    if (g->n_prompt > (size_t)p->service->context_length) {
        p->code = "context_length_exceeded";
        return parsing_fail(p, 400, "messages",
                            "the prompt has %zu tokens, the context %d; shorten it, or serve with a longer --context",
                            g->n_prompt, (int)p->service->context_length);
    }
    return true;
}

bool parse_prompt(parsing *p, const char *key, const ellm_json *prompt, bool cuts, generation *g) {
    size_t most = (size_t)p->service->context_length;
    int64_t token = 0;
    bool good = prompt->kind == ELLM_JSON_STRING;
    if (good && !parse_text(p, prompt->text, prompt->count, true, g)) {
        return false;
    }
    if (prompt->kind == ELLM_JSON_ARRAY) {
        g->prompt = calloc(prompt->count + 1, sizeof *g->prompt);
        good = g->prompt != NULL;
        for (const ellm_json *each = prompt->first; each != NULL && good; each = each->next) {
            good = ellm_json_int(each, 0, p->service->info.vocab_size - 1, &token);
            g->prompt[g->n_prompt++] = (int32_t)token;
        }
    }
    g->n_prompt = cuts && g->n_prompt > most ? most : g->n_prompt;
    return good ? check_room(p, g)
                : parsing_fail(p, 400, key, "'%s' is a text, or a list of token ids from 0 to %d", key,
                               (int)p->service->info.vocab_size - 1);
}

/* ---- exchanges ---- */

static void make_id(service *s, exchange *e) {
    const char *prefix = e->kind == OPENAI_CHAT ? "chatcmpl-" : "cmpl-"; /* the other kinds show none */
    snprintf(e->id, sizeof e->id, "%s%016llx", prefix, (unsigned long long)fresh_seed(s));
}

static exchange *no_exchange(generation *const *answers, int n_answers, exchange *e) {
    for (int i = 0; i < n_answers; i++) {
        generation_free(answers[i]);
    }
    free(e);
    return NULL;
}

exchange *exchange_begin(parsing *p, api_kind kind, generation *const *answers, int n_answers, int64_t n_each) {
    service *s = p->service;
    generation *all[MOST_CHOICES] = {NULL};
    if (n_answers * n_each > MOST_CHOICES) {
        parsing_note(p, 400, "n", "at most %d answers to one request", (int)MOST_CHOICES);
        return no_exchange(answers, n_answers, NULL);
    }
    int n = n_answers * (int)n_each;
    exchange *e = calloc(1, sizeof *e);
    bool good = e != NULL;
    for (int i = 0; i < n; i += (int)n_each) {
        all[i] = answers[i / n_each];
    }
    for (int i = 0; i < n && good; i++) {
        const generation *first = all[i - i % (int)n_each];
        if (all[i] == NULL && first != NULL) {
            all[i] = generation_again(first, first->options.sampling.seed + (uint64_t)(i % n_each));
        }
        good = all[i] != NULL;
    }
    if (!good) {
        (void)parsing_no_memory(p);
        return no_exchange(all, n, e);
    }
    *e = (exchange){.service = s,
                    .kind = kind,
                    .n_choices = n,
                    .n_each = (int)n_each,
                    .created = (int64_t)time(NULL),
                    .began = clock_ms()};
    make_id(s, e);
    for (int i = 0; i < n; i++) {
        e->choices[i].answer = all[i];
        e->choices[i].exchange = e;
    }
    if (s->is_stopping || !batch_submit(s->batch, all, (size_t)n)) {
        p->code = "overloaded";
        parsing_note(p, 503, NULL,
                     s->is_stopping ? "the server is going down" : "too many requests wait already; try again later");
        return no_exchange(all, n, e);
    }
    return e;
}
