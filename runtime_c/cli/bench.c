/* bench: how fast, and in how much memory. */
#include "posix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ahead.h"
#include "bench.h"
#include "gpu.h"
#include "model.h"

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of one field over n measurements. */
static double median(const measurement *m, size_t n, size_t offset) {
    double values[most_repeats];
    for (size_t i = 0; i < n; i++) {
        memcpy(&values[i], (const char *)&m[i] + offset, sizeof values[i]);
    }
    qsort(values, n, sizeof *values, ascending);
    return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

uint64_t bench_peak_rss_bytes(void) {
    static const char key[] = "VmHWM:";
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    uint64_t kb = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, sizeof key - 1) == 0) {
            kb = strtoull(line + sizeof key - 1, NULL, 10);
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return kb * 1024;
}

/* Called between two tokens, and between two parts of the prompt. */
static bool note_step(void *user) {
    step_times *t = user;
    double now = clock_ms();
    if (t->n < t->cap) {
        t->ms[t->n++] = now - t->last_ms;
    }
    t->last_ms = now;
    if (t->each != NULL) {
        t->each(t->user);
    }
    return false;
}

void bench_sort(step_times *t, size_t n) {
    n = n < t->n ? n : t->n;
    qsort(t->ms + t->n - n, n, sizeof *t->ms, ascending);
}

double bench_quantile(const step_times *t, size_t n, double share) {
    n = n < t->n ? n : t->n;
    return n == 0 ? 0 : t->ms[t->n - n + (size_t)(share * (double)(n - 1) + 0.5)];
}

int32_t *bench_tokens(const engine *e, int64_t n) {
    int32_t *tokens = calloc((size_t)n, sizeof *tokens);
    for (int64_t i = 0; i < n && tokens != NULL; i++) {
        tokens[i] = (int32_t)((7919 * i + 1) % e->info.vocab_size);
    }
    return tokens;
}

ellm_status bench_measure(engine *e, const int32_t *prompt, size_t n_prompt, int64_t n_generate, bool fresh,
                          measurement *m, step_times *times, ellm_error *error) {
    answer a;
    answer_request request = {.prompt = prompt,
                              .n_prompt = n_prompt,
                              .most_tokens = n_generate + 1,
                              .ignore_stop = true,
                              .sampling = {.top_p = 1, .repetition_penalty = 1},
                              .poll = note_step,
                              .user = times};
    ellm_status status = fresh ? ellm_session_truncate(e->context, 0, 0) : ELLM_OK;
    e->n_held = fresh ? 0 : e->n_held;
    size_t n_before = times->n;
    if (status != ELLM_OK) {
        return ellm_fail(error, status, "the cache cannot be emptied");
    }
    status = engine_answer(e, &request, &a, error);
    if (status == ELLM_OK && strcmp(a.reason, "cancelled") == 0) {
        status = ellm_fail(error, ELLM_CANCELLED, "nothing was measured");
    }
    if (status == ELLM_OK) { /* the first token comes from prefill, each further one from one step of decode */
        *m = (measurement){(double)(n_prompt - a.n_reused) * 1e3 / a.prefill_ms,
                           n_generate > 0 ? (double)n_generate * 1e3 / a.decode_ms : 0, a.first_token_ms};
        times->lookup = a.lookup;
        size_t n_noted = times->n - n_before, keep = (size_t)n_generate < n_noted ? (size_t)n_generate : n_noted;
        memmove(times->ms + n_before, times->ms + times->n - keep, keep * sizeof *times->ms); /* the prompt's go */
        times->n = n_before + keep;
    }
    free(a.ids);
    return status;
}

#ifdef ELLM_VULKAN
/* How much of what the GPU's memory can do decoding and uploading take. n_before: positions that a token reads, in the
 * middle. Where layers are split, no one memory is the bound. */
static void print_shares(const engine *e, const ellm_device_info *d, double decode_tok_s, int64_t n_before) {
    ellm_gpu_bandwidth b;
    ellm_error error = {{0}};
    if (e->info.is_split) {
        return;
    }
    if (ellm_gpu_measure(&b, &error) != ELLM_OK) {
        printf("  its memory           not measured: %s\n", error.text);
        return;
    }
    const int64_t window = e->info.sliding_window;
    const int64_t n_read = window > 0 && window < n_before ? window : n_before;
    const double bytes =
        (double)ellm_ahead_step_bytes(ellm_model_plan(e->model)) + (double)e->info.kv_bytes_per_token * (double)n_read;
    const double gb_s = bytes * decode_tok_s / 1e9, most = b.ways[b.fastest].rate.gb_s;
    printf("  its memory           %10.1f GB/s are read; decoding reads %.1f, %.0f %% of that\n", most, gb_s,
           100 * gb_s / most);
    if (d->upload_wait_ms > 0) { /* through stages, which the GPU copies */
        printf("  its copies           %10.1f GB/s; copying the weights reached %.0f %% of that\n", b.copy.gb_s,
               (double)d->uploaded_bytes / d->upload_copy_ms / 1e4 / b.copy.gb_s);
    }
}
#endif

/* What a GPU has of the model, and what a token asks of it. */
static void print_gpu(const engine *e, double decode_tok_s, int64_t n_before) {
#ifdef ELLM_VULKAN
    ellm_device_info d;
    if (!ellm_context_get_device(e->context, &d)) {
        return;
    }
    printf("  GPU                  %s\n", d.name);
    const uint64_t shared = d.imported_bytes < d.weight_bytes ? d.imported_bytes : d.weight_bytes; /* in whole pages */
    printf("  its weights          %10.1f MB, of which %.1f MB lie where the processor has them\n",
           (double)d.weight_bytes / 1e6, (double)shared / 1e6);
    if (d.uploaded_bytes > 0 && d.upload_copy_ms > 0) {
        printf("  copying them         %10.1f ms, %.1f GB/s; %.0f %% of it waiting for the GPU\n", d.upload_copy_ms,
               (double)d.uploaded_bytes / d.upload_copy_ms / 1e6, 100 * d.upload_wait_ms / d.upload_copy_ms);
    }
    printf("  a token              %10u dispatches, %u barriers, 1 submission\n", d.n_dispatches, d.n_barriers);
    print_shares(e, &d, decode_tok_s, n_before);
#else
    (void)e, (void)decode_tok_s, (void)n_before;
#endif
}

static void print_table(const engine *e, int64_t n_prompt, int64_t n_generate, int64_t n_repeats, const measurement *m,
                        const step_times *t) {
    printf("%s, %s, %s, %d threads for the prompt, %d for the answer; prompt %lld, generate %lld, median of %lld\n",
           e->info.name, e->info.scheme, e->info.tier, (int)engine_threads_prefill(e), (int)engine_threads_decode(e),
           (long long)n_prompt, (long long)n_generate, (long long)n_repeats);
    printf("  prefill              %10.1f tok/s\n", m->prefill_tok_s);
    printf("  decode               %10.1f tok/s\n", m->decode_tok_s);
    printf("  time per token       %10.1f ms, 99 of 100 within %.1f ms\n", bench_quantile(t, t->n, 0.5),
           bench_quantile(t, t->n, 0.99));
    if (t->lookup.n_guessed > 0) {
        printf("  guesses              %10.1f %% right\n",
               100 * (double)t->lookup.n_accepted / (double)t->lookup.n_guessed);
    }
    printf("  time to first token  %10.1f ms\n", m->first_token_ms);
    printf("  load                 %10.1f ms\n", e->load_ms);
    printf("  peak memory          %10.1f MB\n", (double)bench_peak_rss_bytes() / 1e6);
    print_gpu(e, m->decode_tok_s, n_prompt + n_generate / 2);
}

void bench_device_json(const engine *e, buffer *json) {
#ifdef ELLM_VULKAN
    ellm_device_info device;
    if (!ellm_context_get_device(e->context, &device)) {
        return;
    }
    const ellm_plan *plan = ellm_model_gpu_plan(e->model);
    buffer_put(json, ",\"gpu\":{\"name\":", 15);
    buffer_put_json(json, device.name, strlen(device.name));
    buffer_print(json,
                 ",\"weight_bytes\":%llu,\"kv_bytes\":%llu,\"other_bytes\":%llu,\"imported_bytes\":%llu,\"upload_ms\":%"
                 ".3f,\"uploaded_bytes\":%llu,\"upload_gb_s\":%.3f,\"upload_wait_ms\":%.3f,\"pipelines_ms\":%.3f,"
                 "\"dispatches\":%u,\"barriers\":%u,\"submits\":1,\"step_bytes\":%llu,\"kv_bytes_per_token\":%llu}",
                 (unsigned long long)device.weight_bytes, (unsigned long long)device.kv_bytes,
                 (unsigned long long)device.other_bytes, (unsigned long long)device.imported_bytes, device.upload_ms,
                 (unsigned long long)device.uploaded_bytes,
                 device.upload_copy_ms > 0 ? (double)device.uploaded_bytes / device.upload_copy_ms / 1e6 : 0,
                 device.upload_wait_ms, device.pipelines_ms, device.n_dispatches, device.n_barriers,
                 (unsigned long long)ellm_ahead_step_bytes(plan), (unsigned long long)ellm_plan_token_bytes(plan));
#else
    (void)e, (void)json;
#endif
}

static void print_json(const engine *e, int64_t n_prompt, int64_t n_generate, int64_t n_repeats, const measurement *m,
                       const step_times *t) {
    buffer json = {0}, device = {0};
    buffer_put_json(&json, e->info.name, strlen(e->info.name));
    bench_device_json(e, &device);
    printf("{\"name\":%s,\"scheme\":\"%s\",\"tier\":\"%s\",\"threads\":%d,\"threads_decode\":%d,\"prompt\":%lld,"
           "\"generate\":%lld,\"repeat\":"
           "%lld,"
           "\"prefill_tok_s\":%.3f,\"decode_tok_s\":%.3f,\"token_ms\":%.3f,\"token_p99_ms\":%.3f,\"ttft_ms\":%.3f,"
           "\"load_ms\":%.3f,\"peak_rss_bytes\":%llu,\"guessed\":%llu,\"accepted\":%llu%s}\n",
           json.data, e->info.scheme, e->info.tier, (int)engine_threads_prefill(e), (int)engine_threads_decode(e),
           (long long)n_prompt, (long long)n_generate, (long long)n_repeats, m->prefill_tok_s, m->decode_tok_s,
           bench_quantile(t, t->n, 0.5), bench_quantile(t, t->n, 0.99), m->first_token_ms, e->load_ms,
           (unsigned long long)bench_peak_rss_bytes(), (unsigned long long)t->lookup.n_guessed,
           (unsigned long long)t->lookup.n_accepted, device.n > 0 ? device.data : "");
    buffer_free(&json);
    buffer_free(&device);
}

static ellm_status repeat(engine *e, const settings *s, int64_t n_prompt, int64_t n_generate, int64_t n_repeats,
                          ellm_error *error) {
    int32_t *prompt = bench_tokens(e, n_prompt);
    measurement *m = calloc((size_t)n_repeats, sizeof *m);
    ellm_status status = ELLM_OK;
    step_times times = {.cap = (size_t)((n_generate + n_prompt + 2) * n_repeats)};
    times.ms = calloc(times.cap, sizeof *times.ms);
    if (prompt == NULL || m == NULL || times.ms == NULL) {
        free(prompt);
        free(m);
        free(times.ms);
        return ellm_fail(error, ELLM_NO_MEMORY, "a prompt of %lld tokens", (long long)n_prompt);
    }
    /* The first touch maps the weights and wakes the threads: not what is measured. One full step, one decoded token. */
    status = bench_measure(e, prompt, (size_t)(n_prompt < bench_warm ? n_prompt : bench_warm), 1, true, &m[0], &times,
                           error);
    times.n = 0;
    for (int64_t i = 0; status == ELLM_OK && i < n_repeats; i++) {
        status = bench_measure(e, prompt, (size_t)n_prompt, n_generate, true, &m[i], &times, error);
    }
    if (status == ELLM_OK) {
        size_t n = (size_t)n_repeats;
        measurement middle = {median(m, n, offsetof(measurement, prefill_tok_s)),
                              median(m, n, offsetof(measurement, decode_tok_s)),
                              median(m, n, offsetof(measurement, first_token_ms))};
        bench_sort(&times, times.n);
        (s->json ? print_json : print_table)(e, n_prompt, n_generate, n_repeats, &middle, &times);
    }
    free(prompt);
    free(m);
    free(times.ms);
    return status;
}

static ellm_status bench_once(const settings *s, ellm_error *error) {
    int64_t n_prompt = s->prompts.n > 0 ? s->prompts.values[0] : bench_prompt;
    int64_t n_generate = s->generate > 0 ? s->generate : bench_generate, n_repeats = s->repeat > 0 ? s->repeat : 3;
    engine e;
    ellm_status status = engine_open(&e, s, ELLM_LOOKUP_OFF, error);
    if (status == ELLM_OK && n_prompt + n_generate > e.context_length) {
        if (s->prompts.n == 0 && s->generate < 0) { /* a small model: what fits */
            n_prompt = e.context_length / 2 > 0 ? e.context_length / 2 : 1;
            n_generate = e.context_length > n_prompt ? e.context_length - n_prompt : 1;
        } else {
            status = ellm_fail(error, ELLM_USAGE, "--prompt %lld and --generate %lld do not fit the context of %d",
                               (long long)n_prompt, (long long)n_generate, (int)e.context_length);
        }
    }
    if (status == ELLM_OK) {
        status = repeat(&e, s, n_prompt, n_generate, n_repeats, error);
    }
    engine_close(&e);
    return status;
}

ellm_status bench_main(const settings *s, ellm_error *error) {
    interrupts_catch();
    if (s->bandwidth) {
        return bandwidth_main(s, error);
    }
    if (s->jsonl) {
        return bench_series(s, error);
    }
    if (s->prompts.n > 1 || s->depths.n > 0 || s->cold || s->sustained > 0 || s->limit > 0) {
        return ellm_fail(error, ELLM_USAGE,
                         "several prompts, --depth, --cold, --sustained and --limit go with --jsonl");
    }
    return bench_once(s, error);
}
