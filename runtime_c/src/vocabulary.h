/* vocabulary.h: the tokens' bytes, in order. Immutable once it is made: any number of matchers may use it. */
#ifndef ELLM_VOCABULARY_H
#define ELLM_VOCABULARY_H

#include "matcher.h"

typedef struct ellm_word {
    const uint8_t *text;
    uint32_t token;
    uint8_t n, shared; /* bytes; those that are the same as of the word before */
} ellm_word;

typedef struct ellm_words {
    ellm_word *words;
    uint32_t n, first[257]; /* first: by their first byte */
} ellm_words;

enum { ELLM_WORD_STOPS = 255 };

struct ellm_vocabulary {
    int32_t n_tokens;
    ellm_words all, rough; /* rough: without the plain ones */
    uint8_t *plain;   /* (n_tokens,) characters of a token that a JSON string may hold anywhere, else 0; or STOPS */
    uint8_t *n_bytes; /* (n_tokens,) 0: never picked */
    uint32_t *places; /* (n_tokens,) in text */
    uint8_t *text;
};

#endif
