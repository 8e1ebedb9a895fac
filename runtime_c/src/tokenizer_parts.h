/* tokenizer_parts.h: what the tokenizer's files share. */
#ifndef ELLM_TOKENIZER_PARTS_H
#define ELLM_TOKENIZER_PARTS_H

#include "tokenizer.h"

#define NO_ID 0xFFFFFFFFu

enum {
    BYTE_LEVEL = 1,
    BYTE_FALLBACK = 2,
    FUSE_UNKNOWN = 4,
    IGNORE_MERGES = 8,
    DROP_FIRST = 16,
    UNIGRAM = 32,
    LONGEST = 64
};
enum { TOKEN_EXISTS = 1, TOKEN_SPECIAL = 2, TOKEN_BYTE = 4, TOKEN_WORD = 8 };
enum { ADDED_LSTRIP = 1, ADDED_RSTRIP = 2, ADDED_SINGLE_WORD = 4, ADDED_SPECIAL = 8 };
enum { STEP_DECOMPOSE = 1, STEP_COMPOSE, STEP_MAP, STEP_REPLACE, STEP_PREPEND, STEP_STRIP, STEP_CHARSMAP };
enum { STEP_PIECES = 32, STEP_PREFIX_SPACE, STEP_METASPACE, STEP_STAND_INS };
enum { ISOLATED, REMOVED, CONTIGUOUS, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT };
enum { DECODE_CONCATENATE, DECODE_BYTES, DECODE_FALLBACK, DECODE_JOIN_SPACES };
enum { OP_CHAR = 1, OP_CLASS, OP_SPAN, OP_SPLIT, OP_JUMP, OP_LOOK, OP_MATCH };

typedef struct merge {
    uint32_t right, rank, merged;
} merge;

typedef struct added_token {
    uint32_t text, bytes, id, flags;
} added_token;

typedef struct added_list {
    const added_token *tokens; /* ascending by text */
    size_t n;
    uint32_t leads[8]; /* bit set of their first bytes */
} added_list;

typedef struct piece {
    uint32_t text, bytes, id, zero;
    double score;
} piece;

typedef struct class_entry {
    uint32_t first, n, ascii[4];
} class_entry;

typedef struct map_entry {
    uint32_t point, first, n;
} map_entry;

typedef struct triple {
    uint32_t a, b, c;
} triple;

typedef struct image {
    uint32_t key, key_bytes, text, bytes;
} image;

typedef struct step {
    uint32_t kind, a[7];
} step;

struct ellm_tokenizer {
    uint32_t n_tokens, flags, unknown, n_normalizers, n_prefix, mode, strip, start, space_class, word_class;
    const uint32_t *text_ends;
    const uint8_t *text, *token_flags, *strings;
    const uint32_t *merge_rows, *byte_ids, *chars, *words, *code, *ranges, *values, *post, *replacement;
    const merge *merges;
    const step *steps;
    const class_entry *classes;
    const map_entry *maps;
    const triple *marks, *compose; /* marks: first, last, combining class */
    size_t n_chars, n_words, n_steps, n_code, n_classes, n_marks, n_compose, n_post;
    added_list raw, normalized;
    const image *charsmap;   /* ascending by key, none the beginning of another */
    const triple *graphemes; /* first, last, kind */
    size_t n_graphemes;
    const piece *pieces; /* of a Unigram model, ascending by text */
    double unknown_score;
    uint32_t n_pieces, piece_leads[257]; /* the first piece that begins with a byte, or with a later one */
};

/* A growing byte buffer. */
typedef struct buffer {
    uint8_t *data;
    size_t n, cap;
} buffer;

bool ellm_buffer_add(buffer *to, const void *data, size_t n);
bool ellm_buffer_add_point(buffer *to, uint32_t point);
void ellm_buffer_free(buffer *from);

/* Backtracking memory of the matcher; zero-initialise, free `frames`. */
typedef struct matcher {
    const ellm_tokenizer *tokenizer;
    struct frame *frames;
    size_t n_frames, cap_frames;
    uint64_t budget; /* instructions left before a file is called hostile */
    ellm_status status;
} matcher;

bool ellm_class_has(const ellm_tokenizer *tokenizer, uint32_t class_index, uint32_t point);
/* The leftmost match of the program at `pc` in text[from, n). False if there is none or matcher->status is set. */
bool ellm_match_find(matcher *matcher, uint32_t pc, const uint8_t *text, size_t n, size_t from, size_t *start,
                     size_t *end);

/* Adds text with its clusters or characters replaced as a step of kind CHARSMAP says. */
bool ellm_charsmap(const ellm_tokenizer *tokenizer, const step *step, const buffer *text, buffer *out);

/* Appends the ids of a piece of text, uint32_t each. */
ellm_status ellm_unigram(const ellm_tokenizer *tokenizer, const uint8_t *text, size_t n, buffer *ids);
/* Whether the pieces are sound; notes where those of each first byte begin. */
bool ellm_unigram_check(ellm_tokenizer *tokenizer, size_t n_strings);

/* Runs all normalizer steps on `text`; the result replaces it. */
ellm_status ellm_normalize(matcher *matcher, buffer *text);

#endif
