/* golden_text.h: golden prompts, with logits that a GPU is compared by. */
#ifndef EDGELLM_RT_GOLDEN_TEXT_H
#define EDGELLM_RT_GOLDEN_TEXT_H

#include "bundle.h"
#include "error.h"

enum {
    golden_spread = 16,                  /* logits that are compared: of these ids */
    golden_compared = golden_spread + 1, /* and of the expected token */
    golden_long_tokens = 16,
};

typedef struct golden_text {
    const int32_t *prompt;
    int32_t *tokens;
    float *logits; /* (n_tokens, golden_compared); NULL: not known */
    size_t n_prompt, n_tokens;
} golden_text;

/* The k-th of ids that are spread over a vocabulary (FORMAT.md, golden). */
int32_t golden_id(size_t k, int32_t vocab);
/* The manifest's prompts in `region`, and room for one more. */
ellm_status golden_texts_read(const ellm_bundle *bundle, ellm_region *region, golden_text **texts, size_t *n,
                              ellm_error *error);
/* Arbitrary ids for the largest function and some more rows; the tokens are still to be found. */
ellm_status golden_text_make(const ellm_model_info *info, ellm_region *region, golden_text *text, ellm_error *error);
ellm_status golden_no_memory(ellm_error *error);

#endif
