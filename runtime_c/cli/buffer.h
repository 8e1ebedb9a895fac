/* buffer.h: growing text. When memory runs out the program ends with NO_MEMORY: there is nothing else to do. */
#ifndef EDGELLM_RT_BUFFER_H
#define EDGELLM_RT_BUFFER_H

#include <stddef.h>

#include "error.h"

typedef struct buffer {
    char *data; /* NUL-terminated after the first put */
    size_t n, cap;
} buffer;

void buffer_reserve(buffer *b, size_t n_bytes); /* room for n_bytes more and a NUL */
void buffer_put(buffer *b, const char *text, size_t n_bytes);
void buffer_print(buffer *b, const char *format, ...) ELLM_PRINTF(2, 3);
void buffer_drop(buffer *b, size_t n_bytes); /* the first n_bytes */
void buffer_clear(buffer *b);                /* keeps the memory */
void buffer_free(buffer *b);

/* Appends a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD. */
void buffer_put_json(buffer *b, const char *text, size_t n_bytes);
/* [1,2,3] */
void buffer_put_ids(buffer *b, const int32_t *ids, size_t n);

#endif
