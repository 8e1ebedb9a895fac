/* golden on a GPU: its logits must be the processor's within a tolerance.
 *
 * Each golden prompt is computed as a whole, then the expected tokens one by one whatever the GPU would have said, so
 * that kernels of many rows and of one are used, and one near tie does not spoil the rest. At each token some logits are
 * compared with the processor's: those in the manifest, or, where the bundle is for both, what the processor computes
 * here. The last prompt is long enough for the kernels of the most rows and for several blocks of the KV cache; its last
 * rows are computed again in calls of as many as there are functions for. */
#include "posix.h"

#include "golden_gpu.h"

#ifdef ELLM_VULKAN

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bundle.h"
#include "device.h"
#include "engine.h"
#include "golden_text.h"
#include "gpu.h"
#include "gpu_note.h"
#include "trust.h"

enum { region_limit = 256 << 20 };
/* How far logits may be off, of the largest one that is compared at a position: half of each prompt's tokens by what the
 * tests allow every logit, nine tenths of all by twice that, and none by more than a mixture's ties do (docs/vulkan.md). */
static const double usual = 0.05, near = 0.1, most_off = 0.5, least_near = 0.9;

/* No text is begun, and none goes on beyond a few tokens, behind so long: a slow device is judged by less. */
static const double patience_ms = 60000;
enum { least_tokens = 4 };

/* How long tokens took that were computed one by one. */
typedef struct pace {
    double ms;
    size_t n;
} pace;

/* Whose GPU is tried. */
typedef struct trial {
    const settings *s;
    const ellm_trust *keys;
    const ellm_bundle *bundle;
    bool is_both;  /* the processor could compute, too */
    bool is_quiet; /* not what the user asked for */
} trial;

typedef struct judgement {
    size_t n_tokens, n_known, n_finite, n_usual, n_near, n_same;
    bool is_prompt_off;
    double farthest;
} judgement;

/* ---- on the processor ---- */

static int32_t likeliest(const float *logits, int32_t vocab) {
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

static double larger(double a, double b) {
    return a > b ? a : b;
}

static void compared(const float *logits, int32_t vocab, int32_t token, float to[golden_compared]) {
    for (size_t k = 0; k < golden_spread; k++) {
        to[k] = logits[golden_id(k, vocab)];
    }
    to[golden_spread] = logits[token];
}

/* CANCELLED where somebody has interrupted the program, which may have been before it could have stopped anything. */
static ellm_status go_on(ellm_error *error) {
    return interrupts_count() == 0 ? ELLM_OK : ellm_fail(error, ELLM_CANCELLED, "golden prompts: interrupted");
}

/* Feeds a prompt and its tokens; `each` sees the logits of every token before it is fed. Behind `until`, the text ends
 * where it is. */
typedef void token_run(void *user, const float *logits, int32_t vocab, golden_text *text, size_t i);

static ellm_status feed(engine *e, golden_text *text, token_run *each, void *user, pace *took, double until,
                        ellm_error *error) {
    size_t n_reused;
    ellm_status status = go_on(error);
    status = status == ELLM_OK ? engine_prefill(e, text->prompt, text->n_prompt, NULL, NULL, &n_reused, error) : status;
    if (status == ELLM_OK && text->n_prompt + text->n_tokens > (size_t)e->context_length) {
        return ellm_fail(error, ELLM_CONTEXT_FULL, "golden prompts need a context of %zu; raise --context",
                         text->n_prompt + text->n_tokens);
    }
    for (size_t i = 0; i < text->n_tokens && status == ELLM_OK; i++) {
        if (i >= least_tokens && clock_ms() > until) {
            text->n_tokens = i;
            break;
        }
        if (i > 0) {
            double start = clock_ms();
            status = ellm_session_eval(e->context, 0, &text->tokens[i - 1], 1, e->logits);
            took->ms += clock_ms() - start;
            took->n++;
        }
        if (status != ELLM_OK) {
            return ellm_fail(error, status, "golden prompts: %s", ellm_status_text(status));
        }
        each(user, e->logits, e->info.vocab_size, text, i);
    }
    return status;
}

/* Notes what the processor computes; user: the text whose tokens are its own choice. */
static void learn(void *user, const float *logits, int32_t vocab, golden_text *text, size_t i) {
    if (text == user) {
        text->tokens[i] = likeliest(logits, vocab);
    }
    compared(logits, vocab, text->tokens[i], text->logits + i * golden_compared);
}

/* What the processor says to texts, to fewer where it is slow; the last one's tokens are to be found. */
static ellm_status ask_processor(const settings *s, golden_text *texts, size_t *n, ellm_region *region, pace *took,
                                 ellm_error *error) {
    engine e;
    settings cpu = *s;
    golden_text *last = &texts[*n - 1];
    const double until = clock_ms() + patience_ms;
    cpu.device = "cpu";
    ellm_status status = engine_open(&e, &cpu, ELLM_LOOKUP_OFF, error);
    for (size_t i = 0; i < *n && status == ELLM_OK; i++) {
        if (i > 0 && clock_ms() > until) {
            *n = i;
            break;
        }
        texts[i].logits = ellm_region_alloc(region, texts[i].n_tokens * golden_compared, sizeof *texts[i].logits);
        status =
            texts[i].logits == NULL ? golden_no_memory(error) : feed(&e, &texts[i], learn, last, took, until, error);
    }
    engine_close(&e);
    return status;
}

/* ---- on the GPU ---- */

static void compare(void *user, const float *logits, int32_t vocab, golden_text *text, size_t i) {
    judgement *j = user;
    const float *expected = text->logits != NULL ? text->logits + i * golden_compared : NULL;
    bool finite = true;
    for (int32_t k = 0; k < vocab; k++) {
        finite = finite && isfinite(logits[k]);
    }
    const int32_t found = likeliest(logits, vocab);
    if (expected == NULL) {
        text->tokens[i] = finite ? found : 0;
    }
    float now[golden_compared];
    compared(logits, vocab, text->tokens[i], now);
    double off = 0, largest = 0;
    for (size_t k = 0; k < golden_compared && expected != NULL; k++) {
        off = larger(off, fabs((double)now[k] - (double)expected[k]));
        largest = larger(largest, fabs((double)expected[k]));
    }
    off = largest > 0 ? off / largest : off;
    j->n_tokens++;
    j->n_finite += finite;
    j->n_known += expected != NULL;
    j->n_usual += finite && off <= usual;
    j->n_near += finite && off <= near;
    j->n_same += finite && found == text->tokens[i] && expected != NULL;
    j->farthest = finite ? larger(j->farthest, off) : INFINITY;
}

/* Rows of a text that is there whole, one for each token that is fed. */
static ellm_row row_of(const golden_text *text, size_t at, size_t n_logits_before) {
    return (ellm_row){.token = at < text->n_prompt ? text->prompt[at] : text->tokens[at - text->n_prompt],
                      .position = (int32_t)at,
                      .wants_logits = at >= n_logits_before && at + 1 >= text->n_prompt};
}

/* Computes the last m rows of a text in one call, as a prompt's or several sessions' are, and looks at those that say a
 * token: what a function of m rows does wrong shows there at once, and not only in what later tokens read of it. */
static ellm_status feed_together(engine *e, golden_text *text, size_t m, judgement *j, ellm_error *error) {
    const size_t vocab = (size_t)e->info.vocab_size, n = text->n_prompt + text->n_tokens - 1, before = n - m;
    const size_t n_looks = m < text->n_tokens ? m : text->n_tokens, first = text->n_tokens - n_looks;
    ellm_row *rows = calloc(n + 1, sizeof *rows);
    float *logits = calloc(n_looks * vocab + 1, sizeof *logits);
    size_t at = before;
    ellm_status status = rows == NULL || logits == NULL ? ELLM_NO_MEMORY : ELLM_OK;
    if (status == ELLM_OK && ellm_session_truncate(e->context, 0, (int32_t)before) != ELLM_OK) {
        status = ellm_session_truncate(e->context, 0, 0); /* a state that cannot be cut */
        at = 0;
    }
    e->n_held = 0;
    for (size_t i = at; i < n && status == ELLM_OK; i++) {
        rows[i] = row_of(text, i, before);
    }
    if (status == ELLM_OK && at < before) {
        status = ellm_context_eval(e->context, rows + at, before - at, NULL);
    }
    status = status == ELLM_OK ? ellm_context_eval(e->context, rows + before, m, logits) : status;
    const size_t n_usual = j->n_usual;
    for (size_t i = 0; i < n_looks && status == ELLM_OK; i++) {
        compare(j, logits + i * vocab, (int32_t)vocab, text, first + i);
    }
    j->is_prompt_off = j->is_prompt_off || 2 * (j->n_usual - n_usual) < n_looks;
    free(rows);
    free(logits);
    return status == ELLM_OK ? status : ellm_fail(error, status, "golden prompts: %s", ellm_status_text(status));
}

static ellm_status judge(const engine *e, const judgement *j, bool is_both, ellm_error *error) {
    ellm_device_info device;
    (void)ellm_context_get_device(e->context, &device);
    const char *remedy = is_both ? "update its driver, or let the processor compute (--device cpu)"
                                 : "update its driver, or compile with --device cpu";
    if (j->n_finite < j->n_tokens) {
        return ellm_fail(error, ELLM_KERNEL_FAILED,
                         "%.100s computes wrongly: %zu of %zu golden tokens have logits that are no numbers; %s",
                         device.name, j->n_tokens - j->n_finite, j->n_tokens, remedy);
    }
    if ((double)j->n_near < least_near * (double)j->n_tokens || j->farthest > most_off || j->is_prompt_off) {
        return ellm_fail(error, ELLM_KERNEL_FAILED,
                         "%.100s computes wrongly: the logits of %zu of %zu golden tokens are more than %g of the "
                         "largest off the processor's, the farthest by %.2g; %s",
                         device.name, j->n_tokens - j->n_usual, j->n_tokens, usual, j->farthest, remedy);
    }
    return ELLM_OK;
}

static double rate(const pace *took) {
    return took->ms > 0 ? (double)took->n * 1e3 / took->ms : 0;
}

static void print(const settings *s, const engine *e, const judgement *j, size_t n_prompts, double ms, const pace *gpu,
                  const pace *cpu) {
    ellm_device_info device;
    buffer name = {0};
    (void)ellm_context_get_device(e->context, &device);
    if (s->json) {
        buffer_put_json(&name, device.name, strlen(device.name));
        printf("{\"golden\":true,\"prompts\":%zu,\"tokens\":%zu,\"ms\":%.1f,\"name\":%s,\"same\":%zu,\"farthest\":"
               "%.4f,\"decode_tok_s\":%.3f,\"cpu_decode_tok_s\":%.3f}\n",
               n_prompts, j->n_known, ms, name.data, j->n_same, j->farthest, rate(gpu), rate(cpu));
        buffer_free(&name);
    } else if (j->n_known > 0) {
        printf(
            "%s: %zu golden prompts, %zu of %zu tokens as on the processor; logits at most %.2g of the largest off\n",
            device.name, n_prompts, j->n_same, j->n_known, j->farthest);
    } else {
        printf("%s: there are no golden prompts; it computes numbers\n", device.name);
    }
}

/* Rows that functions exist for (crosscompile/program.py), where the GPU has them. */
static const int32_t counts[] = {512, 128, 64, 32, 8, 0};

static ellm_status run(const trial *t, golden_text *texts, size_t n, const pace *cpu, ellm_region *region,
                       ellm_error *error) {
    engine e;
    judgement j = {0};
    pace gpu = {0};
    double start = clock_ms();
    settings gpus = *t->s;
    gpus.takes_cpu = false;
    gpus.proves = true;
    gpus.device = "vulkan";
    ellm_status status = engine_open(&e, &gpus, ELLM_LOOKUP_OFF, error);
    const bool knows = n > 0;
    if (status == ELLM_OK && !knows) { /* nobody knows what should come out, but something should */
        status = golden_text_make(&e.info, region, &texts[n++], error);
    }
    for (size_t i = 0; i < n && status == ELLM_OK; i++) {
        size_t before = j.n_usual;
        if (i > 0 && clock_ms() > start + patience_ms) {
            n = i;
            break;
        }
        status = feed(&e, &texts[i], compare, &j, &gpu, start + patience_ms, error);
        j.is_prompt_off = j.is_prompt_off || 2 * (j.n_usual - before) < texts[i].n_tokens;
    }
    for (int i = 0; counts[i] != 0 && status == ELLM_OK && clock_ms() < start + patience_ms; i++) {
        golden_text *last = &texts[n - 1]; /* the longest */
        if (counts[i] <= e.info.step_rows && (size_t)counts[i] < last->n_prompt + last->n_tokens) {
            status = feed_together(&e, last, (size_t)counts[i], &j, error);
        }
    }
    status = status == ELLM_OK ? judge(&e, &j, t->is_both, error) : status;
    ellm_device_info device;
    if (status == ELLM_OK && ellm_context_get_device(e.context, &device)) {
        gpu_proof_write(t->bundle->directory, t->bundle->sha256, device.driver);
    }
    if (status == ELLM_OK && !t->is_quiet) {
        print(t->s, &e, &j, knows ? n : 0, clock_ms() - start, &gpu, cpu);
    }
    engine_close(&e);
    return status;
}

/* How many rows the largest function of the GPU's has, which its driver is not asked for. */
static ellm_status long_text(const settings *s, const ellm_trust *keys, ellm_region *region, golden_text *text,
                             ellm_error *error) {
    ellm_model *model = NULL;
    ellm_model_info info;
    ellm_status status = ellm_model_open_on(s->directory, keys, ELLM_DEVICE_GPU, &model, error);
    if (status == ELLM_OK) {
        ellm_model_get_info(model, &info);
        status = golden_text_make(&info, region, text, error);
    }
    ellm_model_close(model);
    return status;
}

static ellm_status compare_devices(const trial *t, bool real, ellm_error *error) {
    ellm_region region;
    ellm_region_init(&region, region_limit);
    golden_text *texts = NULL;
    size_t n = 0;
    pace cpu = {0};
    char driver[ELLM_GPU_DRIVER];
    ellm_status status = ellm_gpu_find(NULL, real, driver, error);
    status = status == ELLM_OK ? golden_texts_read(t->bundle, &region, &texts, &n, error) : status;
    if (status == ELLM_OK && t->is_both) {
        status = long_text(t->s, t->keys, &region, &texts[n++], error);
        status = status == ELLM_OK ? ask_processor(t->s, texts, &n, &region, &cpu, error) : status;
    }
    status = status == ELLM_OK ? run(t, texts, n, &cpu, &region, error) : status;
    ellm_region_free(&region);
    return status;
}

/* Tries the GPU. Of a bundle for both, a note stays meanwhile, for drivers that take the program down with them; one that
 * was there before says why the processor computes as well. */
static ellm_status try_gpu(const trial *t, bool real, ellm_error *error) {
    const int directory = t->bundle->directory;
    const char *sha256 = t->bundle->sha256;
    char before[gpu_note_cap];
    const bool had_note = t->is_both && gpu_note_read(directory, sha256, before);
    if (t->is_both && !had_note
        && !gpu_note_write(directory, sha256, "the GPU was tried, and nobody heard how that ended") && t->is_quiet) {
        return ellm_fail(error, ELLM_GPU_MISSING,
                         "its driver is another one than the GPU has proven itself with, and how it does now cannot be "
                         "noted in this folder; run `edgellm-rt golden DIR --device vulkan` as its owner");
    }
    ellm_status status = compare_devices(t, real, error);
    if (t->is_both && (status == ELLM_OK || (status == ELLM_CANCELLED && !had_note))) {
        gpu_note_clear(directory);
    } else if (t->is_both && status != ELLM_CANCELLED) {
        (void)gpu_note_write(directory, sha256, error->text);
    }
    return status;
}

ellm_status golden_gpu(const settings *s, bool *is_gpus, ellm_error *error) {
    trust keys;
    ellm_bundle bundle;
    ellm_device device;
    *is_gpus = false;
    ellm_status status = trust_find(&keys, error);
    status = status == ELLM_OK ? device_wanted(s, ELLM_DEVICE_CPU_FIRST, &device, error) : status;
    status = status == ELLM_OK ? ellm_bundle_open_trusted(s->directory, &keys.files, &bundle, error) : status;
    if (status != ELLM_OK) {
        return status;
    }
    const ellm_manifest *manifest = &bundle.manifest;
    const trial t = {s, &keys.files, &bundle, manifest->has_gpu && manifest->has_cpu, false};
    const bool is_auto = s->device != NULL && strcmp(s->device, "auto") == 0;
    *is_gpus = manifest->has_gpu && device != ELLM_DEVICE_CPU && (device == ELLM_DEVICE_GPU || !t.is_both || is_auto);
    if (*is_gpus && t.is_both && is_auto && manifest->times_slower > 0) {
        status =
            ellm_fail(error, ELLM_GPU_MISSING, "this board's GPU takes about %.3g times as long, and was not tried",
                      manifest->times_slower);
    } else if (*is_gpus) {
        status = try_gpu(&t, t.is_both && is_auto, error);
    }
    ellm_bundle_close(&bundle);
    return status;
}

ellm_status golden_gpu_again(const char *directory, const ellm_trust *keys, ellm_error *error) {
    static const int stops[] = {SIGINT, SIGTERM};
    const settings s = {.directory = directory, .device = "vulkan", .lookup = -1};
    struct sigaction before[2];
    ellm_bundle bundle;
    ellm_status status = ellm_bundle_open_trusted(directory, keys, &bundle, error);
    if (status != ELLM_OK) {
        return status;
    }
    for (int i = 0; i < 2; i++) { /* a server that starts has not caught them yet */
        sigaction(stops[i], NULL, &before[i]);
    }
    interrupts_catch();
    const trial t = {&s, keys, &bundle, true, true};
    status = try_gpu(&t, true, error);
    status = status == ELLM_OK ? go_on(error) : status;
    for (int i = 0; i < 2; i++) {
        sigaction(stops[i], &before[i], NULL);
    }
    ellm_bundle_close(&bundle);
    return status;
}

#else
typedef int golden_gpu_none; /* ISO C forbids an empty file */
#endif
