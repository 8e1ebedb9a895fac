/* bench --jsonl: samples of several prompts and depths from one process, one JSON object per line as they are taken.
 *
 *   {"type":"cold","bytes":N,"left_bytes":N}            --cold: what was asked out of the page cache, what stayed
 *   {"type":"start","cold":B,"load_ms":X,"prompt":N,"first_token_ms":X}   from nothing to the first token
 *   {"type":"open",...}                                 the bundle, what a token costs the memory, what will follow
 *   {"type":"prefill","prompt":N,"ms":X,"first_token_ms":X,...}
 *   {"type":"decode","depth":N,"tokens":N,"ms":X,"token_ms":X,"token_p99_ms":X,...}
 *   {"type":"sustained","s":X,"tokens":N,...}           --sustained: what was decoded since the line before
 *   {"type":"busy"}                                     at least once a second while nothing else is said
 *   {"type":"end","peak_rss_bytes":N}
 *
 * at_s is the time since the board booted (CLOCK_BOOTTIME), so that samples of its sensors can be laid beside it. */
#include "posix.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ahead.h"
#include "bench.h"
#include "cores.h"
#include "model.h"
#include "page_cache.h"

enum { most_starts = 3 };
static const double line_ms = 1000;

typedef struct series {
    const settings *settings;
    engine engine;
    int32_t *tokens; /* of the longest prompt */
    step_times times;
    count_list prompts, depths;
    int64_t n_generate, n_repeats;
    double said_ms; /* when the last line was written */
    /* The sustained run: tokens since window_ms, and steps that are not to be counted. */
    bool sustained;
    double window_ms;
    int64_t n_tokens, n_skipped;
    ellm_status status; /* of writing */
    ellm_error error;
} series;

static double boot_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void say(series *r, const char *format, ...) ELLM_PRINTF(2, 3);
static void say(series *r, const char *format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= sizeof line - 1) {
        r->status = ellm_fail(&r->error, ELLM_INTERNAL, "a line that is too long");
        return;
    }
    line[n] = '\n';
    if (r->status == ELLM_OK) {
        r->status = output_write(line, (size_t)n + 1, &r->error);
    }
    r->said_ms = clock_ms();
}

static void say_sustained(series *r) {
    double now = clock_ms();
    say(r, "{\"type\":\"sustained\",\"at_s\":%.3f,\"s\":%.4f,\"tokens\":%lld,\"threads\":%d}", boot_s(),
        (now - r->window_ms) / 1e3, (long long)r->n_tokens, (int)engine_threads_decode(&r->engine));
    r->window_ms = now;
    r->n_tokens = 0;
}

/* After each step: keeps whoever reads informed. */
static void each_step(void *user) {
    series *r = user;
    if (r->n_skipped > 0) { /* the first call of an answer comes before its first step */
        r->n_skipped--;
    } else if (r->sustained) {
        r->n_tokens++;
    }
    if (r->sustained && r->n_tokens > 0 && clock_ms() - r->window_ms >= line_ms) {
        say_sustained(r);
    } else if (!r->sustained && clock_ms() - r->said_ms >= line_ms) {
        say(r, "{\"type\":\"busy\"}");
    }
    if (r->status != ELLM_OK) { /* nobody reads any more */
        ellm_context_cancel(r->engine.context, true);
    }
}

static ellm_status measure(series *r, int64_t n_prompt, int64_t n_generate, bool fresh, measurement *m,
                           ellm_error *error) {
    r->times.n = 0;
    r->n_skipped = 1;
    ellm_status status = bench_measure(&r->engine, r->tokens, (size_t)n_prompt, n_generate, fresh, m, &r->times, error);
    if (r->status != ELLM_OK) {
        *error = r->error;
        return r->status;
    }
    return status;
}

/* No further sample: there are as many as wanted, or they take too long. */
static bool is_enough(const series *r, int64_t n_taken, int64_t n_wanted, double since_ms) {
    return n_taken >= n_wanted || (r->settings->limit > 0 && clock_ms() - since_ms >= 1e3 * (double)r->settings->limit);
}

/* ---- the parts, in their order ---- */

/* Lengths that were asked for must fit; the default ones are cut to what does. */
static ellm_status choose_lengths(series *r, ellm_error *error) {
    const settings *s = r->settings;
    int64_t context = r->engine.context_length;
    r->n_repeats = s->repeat > 0 ? s->repeat : 3;
    r->n_generate = s->generate > 0 ? s->generate : context / 2 < bench_generate ? context / 2 : bench_generate;
    r->n_generate = r->n_generate > 0 ? r->n_generate : 1;
    r->prompts =
        s->prompts.n > 0 ? s->prompts : (count_list){{context - 1 < bench_prompt ? context - 1 : bench_prompt}, 1};
    r->depths = s->depths.n > 0 ? s->depths : (count_list){{0}, 1};
    int64_t longest = 0;
    for (int i = 0; i < r->prompts.n; i++) {
        longest = r->prompts.values[i] > longest ? r->prompts.values[i] : longest;
        if (r->prompts.values[i] + 1 > context) {
            return ellm_fail(
                error, ELLM_USAGE,
                "--prompt %lld does not fit the context of %lld positions; ask for less, or raise --context",
                (long long)r->prompts.values[i], (long long)context);
        }
    }
    for (int i = 0; i < r->depths.n; i++) {
        longest = r->depths.values[i] > longest ? r->depths.values[i] : longest;
        if (r->depths.values[i] + r->n_generate + 1 > context) {
            return ellm_fail(error, ELLM_USAGE,
                             "--depth %lld and %lld tokens behind it do not fit the context of %lld positions; ask for "
                             "less, or raise --context",
                             (long long)r->depths.values[i], (long long)r->n_generate, (long long)context);
        }
    }
    longest = longest > bench_warm ? longest : bench_warm;
    r->tokens = bench_tokens(&r->engine, longest);
    r->times.cap = (size_t)(longest + r->n_generate + 2);
    r->times.ms = calloc(r->times.cap, sizeof *r->times.ms);
    return r->tokens != NULL && r->times.ms != NULL
               ? ELLM_OK
               : ellm_fail(error, ELLM_NO_MEMORY, "a prompt of %lld tokens", (long long)longest);
}

static void say_open(series *r) {
    const ellm_model_info *info = &r->engine.info;
    ellm_cores cores;
    ellm_cores_read(&cores);
    uint64_t step_bytes = ellm_ahead_step_bytes(ellm_model_plan(r->engine.model));
#ifdef ELLM_VULKAN
    const ellm_plan *first = ellm_model_first_plan(r->engine.model); /* the GPU's layers, where they are split */
    step_bytes += first != NULL ? ellm_ahead_step_bytes(first) : 0;
#endif
    buffer name = {0}, device = {0};
    buffer_put_json(&name, info->name, strlen(info->name) < 200 ? strlen(info->name) : 200);
    bench_device_json(&r->engine, &device);
    say(r,
        "{\"type\":\"open\",\"format\":1,\"runtime\":\"" RT_VERSION "\",\"name\":%s,\"manifest_sha256\":\"%s\","
        "\"scheme\":\"%s\",\"tier\":\"%s\",\"context\":%d,\"cores\":%d,\"weight_bytes\":%llu,\"arena_bytes\":%llu,"
        "\"kv_bytes_per_token\":%llu,\"step_bytes\":%llu,\"sliding_window\":%d,\"prompts\":%d,\"depths\":%d,"
        "\"repeat\":%lld,\"generate\":%lld%s}",
        name.data, ellm_model_sha256(r->engine.model), info->scheme, info->tier, (int)r->engine.context_length,
        (int)cores.n, (unsigned long long)info->weight_bytes, (unsigned long long)info->arena_bytes,
        (unsigned long long)info->kv_bytes_per_token, (unsigned long long)step_bytes, (int)info->sliding_window,
        r->prompts.n, r->depths.n, (long long)r->n_repeats, (long long)r->n_generate, device.n > 0 ? device.data : "");
    buffer_free(&name);
    buffer_free(&device);
}

/* From nothing to the first token. The engine stays open; its second token makes sure that everything was touched.
 * cold: "true", "false", or NULL to say nothing. */
static ellm_status start(series *r, const char *cold, ellm_error *error) {
    engine_close(&r->engine);
    ellm_status status = engine_open(&r->engine, r->settings, ELLM_LOOKUP_OFF, error);
    if (status == ELLM_OK && r->tokens == NULL) {
        status = choose_lengths(r, error);
    }
    if (status != ELLM_OK) {
        return status;
    }
    measurement m;
    int64_t n_prompt = r->prompts.values[0] < bench_warm ? r->prompts.values[0] : bench_warm;
    status = measure(r, n_prompt, 1, true, &m, error);
    if (status == ELLM_OK && cold != NULL) {
        say(r, "{\"type\":\"start\",\"cold\":%s,\"load_ms\":%.3f,\"prompt\":%lld,\"first_token_ms\":%.3f}", cold,
            r->engine.load_ms, (long long)n_prompt, r->engine.load_ms + m.first_token_ms);
    }
    return status;
}

/* The first start may have to read the disk: it is one of its own, or none that counts. */
static ellm_status starts(series *r, ellm_error *error) {
    ellm_status status = ELLM_OK;
    uint64_t n_bytes = 0, n_left = 0;
    if (r->settings->cold) {
        status = page_cache_drop(r->settings->directory, &n_bytes, &n_left, error);
    }
    if (status == ELLM_OK && r->settings->cold) {
        say(r, "{\"type\":\"cold\",\"bytes\":%llu,\"left_bytes\":%llu}", (unsigned long long)n_bytes,
            (unsigned long long)n_left);
    }
    if (status == ELLM_OK) {
        status = start(r, r->settings->cold ? "true" : NULL, error);
    }
    if (status == ELLM_OK) {
        say_open(r);
    }
    double since = clock_ms();
    int64_t n_wanted = r->n_repeats < most_starts ? r->n_repeats : most_starts;
    for (int64_t i = 0; status == ELLM_OK && !is_enough(r, i, n_wanted, since); i++) {
        status = start(r, "false", error);
    }
    return status;
}

static ellm_status prefill(series *r, int64_t n_prompt, ellm_error *error) {
    double since = clock_ms();
    ellm_status status = ELLM_OK;
    for (int64_t i = 0; status == ELLM_OK && !is_enough(r, i, r->n_repeats, since); i++) {
        measurement m;
        double at = boot_s();
        status = measure(r, n_prompt, 0, true, &m, error);
        if (status == ELLM_OK) {
            say(r,
                "{\"type\":\"prefill\",\"prompt\":%lld,\"at_s\":%.3f,\"ms\":%.3f,\"first_token_ms\":%.3f,"
                "\"threads\":%d}",
                (long long)n_prompt, at, (double)n_prompt * 1e3 / m.prefill_tok_s, m.first_token_ms,
                (int)engine_threads_prefill(&r->engine));
        }
    }
    return status;
}

static ellm_status decode(series *r, int64_t depth, ellm_error *error) {
    measurement m;
    int64_t n_prompt = depth > 0 ? depth : 1;
    ellm_status status = measure(r, n_prompt, 1, false, &m, error); /* fills the cache */
    double since = clock_ms();
    for (int64_t i = 0; status == ELLM_OK && !is_enough(r, i, r->n_repeats, since); i++) {
        double at = boot_s();
        status = measure(r, n_prompt, r->n_generate, false, &m, error);
        if (status == ELLM_OK) {
            size_t n = r->times.n;
            bench_sort(&r->times, n);
            say(r,
                "{\"type\":\"decode\",\"depth\":%lld,\"tokens\":%lld,\"at_s\":%.3f,\"ms\":%.3f,\"token_ms\":%.3f,"
                "\"token_p99_ms\":%.3f,\"threads\":%d}",
                (long long)depth, (long long)r->n_generate, at, (double)r->n_generate * 1e3 / m.decode_tok_s,
                bench_quantile(&r->times, n, 0.5), bench_quantile(&r->times, n, 0.99),
                (int)engine_threads_decode(&r->engine));
        }
    }
    return status;
}

/* Decodes behind the first depth, again and again. An answer of n steps has n tokens: the last one of the prompt is
 * computed anew for its first. */
static ellm_status sustain(series *r, ellm_error *error) {
    measurement m;
    int64_t n_prompt = r->depths.values[0] > 0 ? r->depths.values[0] : 1;
    ellm_status status = measure(r, n_prompt, 1, false, &m, error);
    double end = clock_ms() + 1e3 * (double)r->settings->sustained;
    r->sustained = true;
    r->window_ms = clock_ms();
    while (status == ELLM_OK && clock_ms() < end) {
        status = measure(r, n_prompt, r->n_generate, false, &m, error);
    }
    if (status == ELLM_OK && r->n_tokens > 0
        && clock_ms() - r->window_ms >= line_ms / 2) { /* a whole line, or nearly */
        say_sustained(r);
    }
    r->sustained = false;
    return status;
}

ellm_status bench_series(const settings *s, ellm_error *error) {
    series r = {.settings = s, .said_ms = clock_ms()};
    r.times.each = each_step;
    r.times.user = &r;
    ellm_status status = starts(&r, error);
    for (int i = 0; status == ELLM_OK && i < r.prompts.n; i++) {
        status = prefill(&r, r.prompts.values[i], error);
    }
    for (int i = 0; status == ELLM_OK && i < r.depths.n; i++) {
        status = decode(&r, r.depths.values[i], error);
    }
    if (status == ELLM_OK && s->sustained > 0) {
        status = sustain(&r, error);
    }
    if (status == ELLM_OK) {
        say(&r, "{\"type\":\"end\",\"peak_rss_bytes\":%llu}", (unsigned long long)bench_peak_rss_bytes());
        status = r.status;
    }
    engine_close(&r.engine);
    free(r.tokens);
    free(r.times.ms);
    return status;
}
