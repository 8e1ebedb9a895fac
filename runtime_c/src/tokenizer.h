/* tokenizer.h: text to token ids and back, without a model. The tables are tokenizer.bin's (FORMAT.md). */
#ifndef ELLM_TOKENIZER_H
#define ELLM_TOKENIZER_H

#include "edgellm.h"

typedef struct ellm_tokenizer ellm_tokenizer;

/* Checks `data` (tokenizer.bin, aligned to 8 bytes) completely and opens it. The tokenizer points into `data`, which
 * must outlive it. TOKENIZER_INVALID if anything is wrong. Immutable afterwards: any number of threads may use it. */
ellm_status ellm_tokenizer_open(const uint8_t *data, size_t bytes, ellm_tokenizer **tokenizer, ellm_error *error);
void ellm_tokenizer_close(ellm_tokenizer *tokenizer);
/* Ids are below this number; not every id needs to exist. */
uint32_t ellm_tokenizer_size(const ellm_tokenizer *tokenizer);

/* As ellm_encode, ellm_decode, ellm_stream_push and ellm_stream_flush. Encoding takes temporary memory from malloc, about
 * 60 bytes per byte of the longest piece of text (ELLM_NO_MEMORY if there is none); decoding takes none. */
ellm_status ellm_tokenizer_encode(const ellm_tokenizer *tokenizer, const char *text, size_t n_bytes, bool add_special,
                                  bool parse_special, int32_t *tokens, size_t cap, size_t *n_tokens);
ellm_status ellm_tokenizer_decode(const ellm_tokenizer *tokenizer, const int32_t *tokens, size_t n_tokens,
                                  bool skip_special, char *text, size_t cap, size_t *n_bytes);
ellm_status ellm_tokenizer_push(const ellm_tokenizer *tokenizer, ellm_stream *stream, int32_t token, char *text,
                                size_t cap, size_t *n_bytes);
ellm_status ellm_tokenizer_flush(const ellm_tokenizer *tokenizer, ellm_stream *stream, char *text, size_t cap,
                                 size_t *n_bytes);

/* The bytes that a token adds to a text, as they are decoded behind others. 0: none, or more than `cap`, or it is
 * special. */
size_t ellm_tokenizer_bytes(const ellm_tokenizer *tokenizer, uint32_t token, uint8_t *text, size_t cap);

#endif
