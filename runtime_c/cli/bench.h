/* bench.h: one measurement, which the two faces of `edgellm-rt bench` share. */
#ifndef EDGELLM_RT_BENCH_H
#define EDGELLM_RT_BENCH_H

#include "engine.h"

enum { bench_prompt = 128, bench_generate = 64, bench_warm = 64, most_repeats = 1000 };

typedef struct measurement {
    double prefill_tok_s, decode_tok_s, first_token_ms;
} measurement;

/* Times between two tokens. */
typedef struct step_times {
    double last_ms;
    double *ms; /* n of them, room for cap */
    size_t n, cap;
    ellm_lookup_stats lookup; /* of the last measurement */
    void (*each)(void *user); /* called between two parts of the prompt, and after each token; may be NULL */
    void *user;
} step_times;

/* Evaluates a prompt, then generates n_generate tokens behind it, each one step. fresh: with an empty cache; otherwise
 * what the cache has in common with the prompt stays, except for the last token. The steps' times are appended. */
ellm_status bench_measure(engine *e, const int32_t *prompt, size_t n_prompt, int64_t n_generate, bool fresh,
                          measurement *m, step_times *times, ellm_error *error);
/* n arbitrary tokens, the same ones each time. NULL: no memory. The caller frees them. */
int32_t *bench_tokens(const engine *e, int64_t n);
/* Sorts the n last of the times; the time that a share of them stays below. */
void bench_sort(step_times *times, size_t n);
double bench_quantile(const step_times *times, size_t n, double share);
/* Most memory this process ever had in RAM, mapped weights included; 0 if the kernel does not say. */
uint64_t bench_peak_rss_bytes(void);
/* What a GPU adds to an object: the device, its memory, how much work a token is for the driver, and what the GPU reads
 * for it, of all layers or, where they are split, of its own. */
void bench_device_json(const engine *e, buffer *json);

/* bench --jsonl: every sample as it is taken, of several lengths; see bench_series.c. */
ellm_status bench_series(const settings *s, ellm_error *error);

#endif
