/* engine.h: an opened bundle with one session, and the loop that turns a prompt into an answer. */
#ifndef EDGELLM_RT_ENGINE_H
#define EDGELLM_RT_ENGINE_H

#include "buffer.h"
#include "constrained.h"
#include "program.h"

typedef struct engine {
    ellm_model *model;
    ellm_model_info info;
    ellm_context *context;
    ellm_lookup *lookup;
    int32_t context_length;
    float *logits; /* (vocab,) */
    int32_t *held; /* tokens in the KV cache, (context_length,) */
    size_t n_held;
    double load_ms;
    constrained form; /* of every answer */
} engine;

/* Opens bundle and context as the options say; `lookup` where they say nothing. Close it also after a failure. */
ellm_status engine_open(engine *e, const settings *s, ellm_lookup_mode lookup, ellm_error *error);
void engine_close(engine *e);

/* Text to ids in a fresh array of the caller's. special: add BOS and the like. */
ellm_status engine_encode(engine *e, const char *text, size_t n_bytes, bool special, int32_t **ids, size_t *n,
                          ellm_error *error);
/* Makes the KV cache hold exactly `ids`, keeping what it has in common with them, and leaves the last one's
 * logits in e->logits. CANCELLED if `poll` says so or a signal came. */
typedef bool engine_poll(void *user);
ellm_status engine_prefill(engine *e, const int32_t *ids, size_t n, engine_poll *poll, void *user, size_t *n_reused,
                           ellm_error *error);
/* Threads that prompts and answers are computed with now. */
int32_t engine_threads_prefill(const engine *e);
int32_t engine_threads_decode(const engine *e);
/* Appends one token; its logits are in e->logits afterwards. */
ellm_status engine_append(engine *e, int32_t token, ellm_error *error);

typedef struct answer_request {
    const int32_t *prompt;
    size_t n_prompt;
    int64_t most_tokens; /* negative: until the model stops or the context is full */
    bool ignore_stop;
    ellm_sampler_options sampling;
    const char *const *stops;
    int n_stops;
    ellm_status (*text)(void *user, const char *text, size_t n_bytes, ellm_error *error); /* whole characters */
    engine_poll *poll; /* between tokens; true cancels; may be NULL */
    void *user;
} answer_request;

typedef struct answer {
    const char *reason; /* "stop", "length", "cancelled" */
    bool context_full;
    int32_t *ids; /* what was generated, a stop token included; the caller frees it */
    size_t n_ids, n_reused;
    double prefill_ms, decode_ms, first_token_ms;
    ellm_lookup_stats lookup;
} answer;

/* Being cancelled is no failure: reason says so. */
ellm_status engine_answer(engine *e, const answer_request *request, answer *a, ellm_error *error);

/* ", 12 of 15 guesses right" for the statistics, "" where nothing was guessed. */
const char *answer_guesses(const answer *a, char *text, size_t cap);

/* The model's recommendation, overruled by the options. Without --seed a fresh one each time. */
ellm_sampler_options engine_sampling(const engine *e, const settings *s);

#endif
