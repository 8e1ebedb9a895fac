#include "posix.h"

#include "stops.h"

#include <string.h>

static ellm_status emit(stops *s, size_t n_bytes, ellm_error *error) {
    ellm_status status = ELLM_OK;
    if (n_bytes > 0 && s->sink != NULL) {
        status = s->sink(s->user, s->pending.data, n_bytes, error);
    }
    buffer_drop(&s->pending, n_bytes);
    return status;
}

ellm_status stops_push(stops *s, const char *text, size_t n_bytes, ellm_error *error) {
    if (s->stopped || n_bytes == 0) {
        return ELLM_OK;
    }
    buffer_put(&s->pending, text, n_bytes);
    const buffer *b = &s->pending;
    size_t found = b->n, keep = 0;
    for (int i = 0; i < s->n_texts; i++) {
        const char *stop = s->texts[i];
        size_t n = strlen(stop);
        const char *at = memmem(b->data, b->n, stop, n);
        if (at != NULL && (size_t)(at - b->data) < found) {
            found = (size_t)(at - b->data);
            s->stopped = true;
        }
        /* The longest end of the text that begins this stop string. It begins with a stop string's first byte,
         * so the text before it ends with a whole character. */
        size_t most = b->n < n - 1 ? b->n : n - 1;
        for (size_t length = most; length > keep; length--) {
            if (memcmp(b->data + b->n - length, stop, length) == 0) {
                keep = length;
            }
        }
    }
    ellm_status status = emit(s, s->stopped ? found : b->n - keep, error);
    if (s->stopped) {
        buffer_clear(&s->pending);
    }
    return status;
}

ellm_status stops_flush(stops *s, ellm_error *error) {
    return emit(s, s->pending.n, error);
}
