/* matcher.h: which tokens an answer may go on with, by its grammar. The calls that applications need are in edgellm.h.
 *
 * A vocabulary is the tokens' bytes in order, made once for a model. A matcher follows one answer: it holds every way in
 * which the bytes so far can be read. Which tokens may follow is found by walking the vocabulary through the states that
 * its bytes lead to. States and masks are kept with the grammar, where the next answer of the same form finds them; what
 * is too far ahead for any token to reach is left out of them (ellm_node.like), so that a count makes few states. */
#ifndef ELLM_MATCHER_H
#define ELLM_MATCHER_H

#include "grammar.h"
#include "tokenizer.h"

enum {
    ELLM_CACHE_BYTES = 4 << 20, /* of a grammar's states and masks; beyond that they are made anew */
    ELLM_MASK_WORK = 4 << 20,   /* ways looked at for one mask */
    ELLM_MOST_WAYS = 1024,      /* in which one text may be read at a time */
};

typedef bool ellm_is_stop(const void *user, int32_t token);
/* As ellm_vocabulary_open, of a tokenizer: n_tokens of it, and which of them end an answer. */
ellm_status ellm_vocabulary_make(const ellm_tokenizer *tokenizer, int32_t n_tokens, ellm_is_stop *is_stop,
                                 const void *user, ellm_vocabulary **vocabulary);
/* The tokens that may follow, a bit each, and how many; valid until the next call for any matcher of the grammar. */
ellm_status ellm_matcher_mask(ellm_matcher *m, const uint64_t **mask, uint32_t *n_allowed);
/* Feeds bytes. False, and nothing changed, if they may not follow. */
bool ellm_matcher_feed(ellm_matcher *m, const uint8_t *text, size_t n_bytes);
/* Whether the last call failed because there were too many ways, or no memory: not for what the bytes were. */
bool ellm_matcher_is_given_up(const ellm_matcher *m);
/* Whether the text may end here. */
bool ellm_matcher_may_end(const ellm_matcher *m);
/* Masks looked for, and those of them that were not there yet. */
void ellm_matcher_get_stats(const ellm_matcher *m, uint64_t *n_masks, uint64_t *n_made);

#endif
