/* generation.h: one answer under way: tokens become text, and something ends it. Without threads: batch.h has those. */
#ifndef EDGELLM_RT_GENERATION_H
#define EDGELLM_RT_GENERATION_H

#include "buffer.h"
#include "edgellm.h"
#include "stops.h"

enum { MOST_STOPS = 16, MOST_LIKELY = 20, MOST_BIASES = 1024 };

typedef struct likely_token {
    int32_t token;
    float logprob; /* natural logarithm of the probability that the model gave it, before any sampling option */
} likely_token;

typedef struct token_note {
    likely_token chosen;
    int32_t n_likely;
    likely_token likely[MOST_LIKELY]; /* the likeliest, in that order */
} token_note;

/* What is asked for. Everything in it belongs to the generation. */
typedef struct generation_options {
    int64_t most_tokens; /* negative: until the model stops or the context is full */
    ellm_sampler_options sampling;
    ellm_logit_bias *biases;
    char *stops[MOST_STOPS];
    int n_stops;
    int n_likely;          /* of each token's note; negative: no notes */
    ellm_grammar *grammar; /* NULL: any text; this generation's own use of it */
    const ellm_vocabulary *vocabulary;
} generation_options;

typedef enum generation_reason { GENERATING, ENDED_STOP, ENDED_LENGTH, ENDED_FAILED } generation_reason;

typedef struct generation_times {
    double submitted, begun, first, ended; /* clock_ms; 0: not yet */
} generation_times;

typedef struct generation {
    generation_options options;
    int32_t *prompt;
    size_t n_prompt;
    size_t *ends; /* of an embedding: where each text ends in `prompt`, n_ends of them; NULL: an answer */
    size_t n_ends, n_embedded;
    double *sum;   /* of the text under way, (width,); its embeddings go to `notes`, float32 */
    uint64_t turn; /* when it gets a session: the smallest comes first */

    const ellm_model *model;
    ellm_sampler *sampler;
    ellm_matcher *matcher;
    ellm_status picked; /* how the last pick went */
    float *plain;       /* (vocab,) logits as the model gave them, where notes are wanted */
    token_note note;
    ellm_stream stream;
    stops filter;
    size_t n_reused, n_tokens; /* of the prompt: kept from before; of the answer, a stop token included */
    generation_reason reason;
    generation_times times;
    ellm_status failed;
    buffer text, notes; /* not taken yet: whole characters; token_note after token_note */
} generation;

/* An empty generation with the model's recommended options. NULL where memory ran out. */
generation *generation_new(const ellm_model *model);
void generation_free(generation *g);
/* Another one that asks the same with another seed, from the same prompt. */
generation *generation_again(const generation *g, uint64_t seed);

/* Before the first token. USAGE or TOKEN_RANGE where the sampler cannot be set up like this. */
ellm_status generation_begin(generation *g);
/* Picks the next token from its logits, (vocab,), which change. A failure shows when it is pushed. */
int32_t generation_pick(generation *g, float *logits);
/* Appends the text of that token. `is_full`: no position is left for it. The token is only to be computed further while
 * g->reason is GENERATING. */
void generation_push(generation *g, int32_t token, bool is_full);
/* A text of an embedding has been summed up: its vector is appended to the notes. True for the last one. */
bool generation_embedded(generation *g);
void generation_fail(generation *g, ellm_status status);

#endif
