/* batch.h: the thread that computes. It takes one row of every answer under way, and rows of prompts, into each step, so
 * that the weights are read once for all of them. Answers do not see each other: every row's bits are those it would have
 * alone (FORMAT.md, Arithmetic).
 *
 * Everything here may be called from one other thread. */
#ifndef EDGELLM_RT_BATCH_H
#define EDGELLM_RT_BATCH_H

#include "generation.h"

typedef struct batch batch;

typedef struct batch_options {
    int32_t n_sessions; /* answers at a time */
    int32_t n_waiting;  /* requests that may wait beyond those */
    const char *keep;   /* folder in which sessions outlive the batch, or NULL */
    int wake;           /* an eventfd that is written to whenever there is something to take; the caller's */
} batch_options;

/* Starts the thread over a context with so many sessions, which belongs to it until it is closed. */
ellm_status batch_open(ellm_context *context, const ellm_model *model, const batch_options *options, batch **opened,
                       ellm_error *error);
/* Ends all answers, and the thread. What was submitted is freed. */
void batch_close(batch *b);

/* Hands over answers to one request: all of them are taken, or none where too many wait already. They are the batch's
 * until they are dropped. */
bool batch_submit(batch *b, generation *const *answers, size_t n);

typedef struct batch_news {
    generation_reason reason;
    ellm_status failed;
    size_t n_prompt, n_reused, n_tokens;
    generation_times times;
} batch_news;

/* Appends the text and the notes that came since the last call, and tells how far the answer is. */
void batch_take(batch *b, generation *g, buffer *text, buffer *notes, batch_news *news);
/* Nobody wants it any more, finished or not. */
void batch_drop(batch *b, generation *g);

typedef struct batch_stats {
    int32_t n_sessions, n_running, n_waiting;
    uint64_t n_steps, n_rows, n_prompt_tokens, n_reused_tokens, n_tokens, n_answers, n_dropped, n_failed;
    double computing_ms;
    bool is_stuck; /* a step runs for longer than `stuck_ms` of batch_get_stats */
} batch_stats;
void batch_get_stats(batch *b, double stuck_ms, batch_stats *stats);

#endif
