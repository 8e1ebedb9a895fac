/* profile: what each step of the plan takes, beside what the same work takes when nobody watches.
 *
 * One JSON object per line: what is measured, every step of a run in its order, and the sums; per phase. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "model.h"
#include "observe.h"

enum { default_tokens = 128, default_depth = 128, default_runs = 20, most_launches = 1 << 22, most_calls = 1 << 16 };

/* A function call of a run. */
typedef struct call {
    const ellm_plan_function *function;
    bool is_head;
} call;

/* What an observer fills: the calls of a run, the same in each, and a column of ns per run. */
typedef struct recorder {
    const int64_t *ns; /* of the function that just ran */
    call *calls;
    size_t n_calls, at_call;
    size_t n_launches, at; /* of a run; and where this run is */
    int64_t *times;        /* (runs, n_launches), NULL while the calls are found out */
    size_t run;
} recorder;

/* A kind of work that is measured. */
typedef struct phase {
    const char *name;
    const int32_t *tokens; /* what each run computes: n of them, from position `depth` on */
    size_t n, depth;
} phase;

static ellm_status note(void *user, const ellm_observed *now) {
    recorder *r = user;
    size_t n_steps = now->function->n_steps;
    if (r->times == NULL) {
        if (r->n_calls == most_calls || r->n_launches + n_steps > most_launches) {
            return ELLM_NO_MEMORY;
        }
        r->calls[r->n_calls++] = (call){now->function, now->is_head};
        r->n_launches += n_steps;
        return ELLM_OK;
    }
    if (r->at_call == r->n_calls || r->calls[r->at_call].function != now->function) {
        return ELLM_INTERNAL; /* covers are settled */
    }
    r->at_call++;
    memcpy(r->times + r->run * r->n_launches + r->at, r->ns, n_steps * sizeof *r->ns);
    r->at += n_steps;
    return ELLM_OK;
}

/* Cuts the session to `depth` positions; with a sliding window that may mean to compute them anew. */
static ellm_status rewind_to(engine *e, const int32_t *tokens, size_t depth) {
    if (ellm_session_truncate(e->context, 0, (int32_t)depth) == ELLM_OK) {
        return ELLM_OK;
    }
    ellm_status status = ellm_session_truncate(e->context, 0, 0);
    return status != ELLM_OK ? status : ellm_session_eval(e->context, 0, tokens, depth, NULL);
}

/* One run. observer: NULL to measure undisturbed. */
static ellm_status run_once(engine *e, const phase *p, const ellm_observer *observer, double *ns, ellm_error *error) {
    if (interrupts_count() > 0) {
        return ellm_fail(error, ELLM_CANCELLED, "nothing was measured");
    }
    ellm_status status = rewind_to(e, p->tokens - p->depth, p->depth);
    ellm_context_observe(e->context, observer);
    double start = clock_ms();
    status = status != ELLM_OK ? status : ellm_session_eval(e->context, 0, p->tokens, p->n, e->logits);
    *ns = (clock_ms() - start) * 1e6;
    ellm_context_observe(e->context, NULL);
    return status != ELLM_OK ? ellm_fail(error, status, "while computing: %s", ellm_status_text(status)) : ELLM_OK;
}

typedef struct timing {
    double ns;
    size_t run;
} timing;

static int ascending(const void *a, const void *b) {
    double x = ((const timing *)a)->ns, y = ((const timing *)b)->ns;
    return (x > y) - (x < y);
}

/* Sorts the runs by their time. The faster half of them counts, for whole runs and for steps alike: what disturbs a run
 * makes it slower, and means of the same runs add up where medians of single steps would not. Returns their mean. */
static double sort_runs(timing *runs, size_t n) {
    double sum = 0;
    size_t half = (n + 1) / 2;
    qsort(runs, n, sizeof *runs, ascending);
    for (size_t i = 0; i < half; i++) {
        sum += runs[i].ns;
    }
    return sum / (double)half;
}

/* Mean of the faster half of the runs, and the median of all, of launch `at`. column: room for a timing per run. */
static double launch_ns(const recorder *r, const timing *watched, size_t runs, size_t at, timing *column,
                        double *median) {
    double sum = 0;
    size_t half = (runs + 1) / 2;
    for (size_t i = 0; i < runs; i++) {
        column[i].ns = (double)r->times[watched[i].run * r->n_launches + at];
        sum += i < half ? column[i].ns : 0;
    }
    qsort(column, runs, sizeof *column, ascending);
    *median = (column[(runs - 1) / 2].ns + column[runs / 2].ns) / 2;
    return sum / (double)half;
}

/* Prints a line per launch, in the order of a run, and the sums. plain, watched: what whole runs took. */
static void print_phase(const engine *e, const phase *p, const recorder *r, size_t runs, timing *plain, timing *watched,
                        timing *column) {
    size_t at = 0;
    double sum = 0, plain_ns = sort_runs(plain, runs), watched_ns = sort_runs(watched, runs);
    int32_t prefill = engine_threads_prefill(e), decode = engine_threads_decode(e);
    printf(
        "{\"phase\":\"%s\",\"tokens\":%zu,\"depth\":%zu,\"runs\":%zu,\"threads_prefill\":%d,\"threads_decode\":%d}\n",
        p->name, p->n, p->depth, runs, (int)prefill, (int)decode);
    for (size_t c = 0; c < r->n_calls; c++) {
        const ellm_plan_function *function = r->calls[c].function;
        for (uint32_t step = 0; step < function->n_steps; step++, at++) {
            double median, ns = launch_ns(r, watched, runs, at, column, &median);
            sum += ns;
            buffer name = {0};
            buffer_put_json(&name, function->steps[step].kernel->name, strlen(function->steps[step].kernel->name));
            printf("{\"call\":%zu,\"function\":\"%s\",\"n\":%d,\"step\":%u,\"kernel\":%s,\"ns\":%.0f,\"median_ns\":%."
                   "0f}\n",
                   c, r->calls[c].is_head ? "head" : "body", (int)function->n, step, name.data, ns, median);
            buffer_free(&name);
        }
    }
    printf("{\"done\":\"%s\",\"steps_ns\":%.0f,\"watched_ns\":%.0f,\"plain_ns\":%.0f,\"share\":%.4f}\n", p->name, sum,
           watched_ns, plain_ns, plain_ns > 0 ? sum / plain_ns : 0);
}

/* Runs with and without the observer take turns, so that both meet the same machine. */
static ellm_status measure(engine *e, const phase *p, size_t runs, ellm_error *error) {
    uint32_t most_steps = ellm_observed_steps(ellm_model_plan(e->model));
    recorder r = {0};
    double ignored;
    timing *plain = calloc(runs, sizeof *plain), *watched = calloc(runs, sizeof *watched);
    timing *column = calloc(runs, sizeof *column);
    int64_t *ns = calloc(most_steps > 0 ? most_steps : 1, sizeof *ns);
    r.ns = ns;
    r.calls = calloc(most_calls, sizeof *r.calls);
    const ellm_observer observer = {.user = &r, .ns = ns, .timed = note};
    bool room = plain != NULL && watched != NULL && column != NULL && ns != NULL && r.calls != NULL;
    ellm_status status = ELLM_OK;
    if (room) { /* finds out the calls, and warms up */
        status = run_once(e, p, &observer, &ignored, error);
        r.times = calloc(runs * r.n_launches + 1, sizeof *r.times);
        room = r.times != NULL;
    }
    if (!room) {
        status = ellm_fail(error, ELLM_NO_MEMORY, "%zu runs of %zu steps; use fewer --runs", runs, r.n_launches);
    }
    for (r.run = 0; room && status == ELLM_OK && r.run < runs; r.run++) {
        r.at_call = r.at = 0;
        plain[r.run].run = watched[r.run].run = r.run;
        status = run_once(e, p, NULL, &plain[r.run].ns, error);
        status = status != ELLM_OK ? status : run_once(e, p, &observer, &watched[r.run].ns, error);
    }
    if (room && status == ELLM_OK) {
        print_phase(e, p, &r, runs, plain, watched, column);
    }
    free(r.times);
    free(r.calls);
    free(ns);
    free(column);
    free(watched);
    free(plain);
    return status;
}

static void print_head(const engine *e) {
    buffer name = {0};
    buffer_put_json(&name, e->info.name, strlen(e->info.name));
    printf("{\"profile\":1,\"name\":%s,\"scheme\":\"%s\",\"tier\":\"%s\",\"manifest\":\"%s\",\"context\":%d}\n",
           name.data, e->info.scheme, e->info.tier, ellm_model_sha256(e->model), (int)e->context_length);
    buffer_free(&name);
}

/* Positions [0, cap) of arbitrary tokens: enough for both phases. */
static ellm_status measure_all(engine *e, int64_t depth, int64_t tokens, size_t runs, ellm_error *error) {
    size_t cap = (size_t)(depth + 1 > tokens ? depth + 1 : tokens);
    int32_t *ids = calloc(cap, sizeof *ids);
    double ignored;
    if (ids == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%zu tokens", cap);
    }
    for (size_t i = 0; i < cap; i++) {
        ids[i] = (int32_t)((7919 * i + 1) % (size_t)e->info.vocab_size);
    }
    const phase decode = {.name = "decode", .tokens = ids + depth, .n = 1, .depth = (size_t)depth};
    const phase prefill = {.name = "prefill", .tokens = ids, .n = (size_t)tokens};
    ellm_status status = ELLM_OK;
    for (int i = 0; i < 2 && tokens > 0 && status == ELLM_OK; i++) { /* maps weights, wakes threads, finds covers */
        status = run_once(e, &prefill, NULL, &ignored, error);
    }
    if (depth > 0 && status == ELLM_OK) { /* where the depth comes from */
        const phase fill = {.tokens = ids, .n = (size_t)depth};
        status = run_once(e, &fill, NULL, &ignored, error);
    }
    for (int i = 0; i < 3 && status == ELLM_OK; i++) {
        status = run_once(e, &decode, NULL, &ignored, error);
    }
    ellm_context_settle(e->context, false);
    if (status == ELLM_OK) {
        print_head(e);
        status = measure(e, &decode, runs, error);
    }
    if (status == ELLM_OK && tokens > 0) {
        status = measure(e, &prefill, runs, error);
    }
    free(ids);
    return status;
}

ellm_status profile_main(const settings *s, ellm_error *error) {
    engine e;
    interrupts_catch();
    ellm_status status = engine_open(&e, s, ELLM_LOOKUP_OFF, error);
    if (status == ELLM_OK) { /* a small model: what fits, where nobody asked for more */
        int64_t most = e.context_length, depth = s->depth, tokens = s->prompt_tokens;
        depth = depth >= 0 ? depth : default_depth < most ? default_depth : most - 1;
        tokens = tokens >= 0 ? tokens : default_tokens < most ? default_tokens : most;
        if (depth >= most || tokens > most) {
            status = ellm_fail(error, ELLM_USAGE, "--depth %lld and --tokens %lld do not fit the context of %lld",
                               (long long)depth, (long long)tokens, (long long)most);
        } else {
            status = measure_all(&e, depth, tokens, s->repeat > 0 ? (size_t)s->repeat : default_runs, error);
        }
    }
    engine_close(&e);
    return status;
}
