#include "buffer.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

void buffer_reserve(buffer *b, size_t n_bytes) {
    if (n_bytes >= SIZE_MAX / 4 - b->n) {
        n_bytes = SIZE_MAX / 4; /* malloc will refuse */
    }
    size_t want = b->n + n_bytes + 1;
    if (want > b->cap) {
        size_t cap = b->cap * 2 > want ? b->cap * 2 : want + 64;
        char *data = realloc(b->data, cap);
        if (data == NULL) {
            fprintf(stderr, "edgellm-rt: %s: a text of %zu bytes\n", ellm_status_name(ELLM_NO_MEMORY), want);
            exit(ELLM_NO_MEMORY);
        }
        b->data = data;
        b->cap = cap;
    }
}

void buffer_put(buffer *b, const char *text, size_t n_bytes) {
    buffer_reserve(b, n_bytes);
    if (n_bytes > 0) {
        memcpy(b->data + b->n, text, n_bytes);
    }
    b->n += n_bytes;
    b->data[b->n] = '\0';
}

void buffer_print(buffer *b, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int n = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (n > 0) {
        buffer_reserve(b, (size_t)n);
        vsnprintf(b->data + b->n, (size_t)n + 1, format, again);
        b->n += (size_t)n;
    }
    va_end(again);
}

void buffer_drop(buffer *b, size_t n_bytes) {
    if (n_bytes > 0) {
        memmove(b->data, b->data + n_bytes, b->n - n_bytes);
        b->n -= n_bytes;
        b->data[b->n] = '\0';
    }
}

void buffer_clear(buffer *b) {
    b->n = 0;
    if (b->data != NULL) {
        b->data[0] = '\0';
    }
}

void buffer_free(buffer *b) {
    free(b->data);
    *b = (buffer){0};
}

void buffer_put_json(buffer *b, const char *text, size_t n_bytes) {
    const unsigned char *s = (const unsigned char *)text;
    buffer_put(b, "\"", 1);
    for (size_t i = 0; i < n_bytes;) {
        uint32_t point;
        size_t length = ellm_utf8_read(s + i, n_bytes - i, &point);
        if (point == ELLM_UTF8_BAD || point == ELLM_UTF8_CUT) {
            buffer_put(b, "\xef\xbf\xbd", 3);
        } else if (s[i] == '"' || s[i] == '\\') {
            buffer_put(b, "\\", 1);
            buffer_put(b, text + i, 1);
        } else if (s[i] == '\n') {
            buffer_put(b, "\\n", 2);
        } else if (s[i] < 0x20 || s[i] == 0x7f) {
            buffer_print(b, "\\u%04x", s[i]);
        } else {
            buffer_put(b, text + i, length);
        }
        i += length;
    }
    buffer_put(b, "\"", 1);
}

void buffer_put_ids(buffer *b, const int32_t *ids, size_t n) {
    buffer_put(b, "[", 1);
    for (size_t i = 0; i < n; i++) {
        buffer_print(b, i == 0 ? "%d" : ",%d", (int)ids[i]);
    }
    buffer_put(b, "]", 1);
}
