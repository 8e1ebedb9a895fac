#include "posix.h"

#include "tool_calls.h"

#include <string.h>

static const char open_tag[] = "<tool_call>", close_tag[] = "</tool_call>";
enum { n_open = sizeof open_tag - 1, n_close = sizeof close_tag - 1, region_limit = 16 << 20 };

static bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static void put_text(tool_reader *r, const char *text, size_t n_bytes) {
    if (n_bytes > 0) {
        r->is_behind = false;
        r->text(r->user, text, n_bytes);
    }
}

/* What stands between the tags. False if it is no call. */
static bool put_call(tool_reader *r, const char *text, size_t n_bytes) {
    ellm_region region;
    ellm_json *value = NULL;
    ellm_region_init(&region, region_limit);
    bool good = ellm_json_read(text, n_bytes, &region, ELLM_USAGE, "call", &value, NULL) == ELLM_OK;
    const ellm_json *name = ellm_json_get(value, "name"), *arguments = ellm_json_get(value, "arguments");
    static const ellm_json nothing = {.kind = ELLM_JSON_OBJECT};
    arguments = arguments == NULL ? ellm_json_get(value, "parameters") : arguments;
    arguments = arguments == NULL ? &nothing : arguments;
    good = good && ellm_json_text(name, 256) != NULL && arguments->kind == ELLM_JSON_OBJECT;
    if (good) {
        r->n_calls++;
        r->is_behind = true;
        r->call(r->user, name->text, name->count, arguments);
    }
    ellm_region_free(&region);
    return good;
}

/* Bytes at the end of the text that may belong to a call: blanks, and the beginning of a tag. */
static size_t doubtful(const char *text, size_t n_bytes) {
    size_t n = n_bytes < n_open - 1 ? n_bytes : n_open - 1;
    while (n > 0 && memcmp(text + n_bytes - n, open_tag, n) != 0) {
        n--;
    }
    while (n < n_bytes && is_space(text[n_bytes - n - 1])) {
        n++;
    }
    return n;
}

/* Text before a tag, or where none can begin. Blanks next to calls are nobody's. */
static void read_text(tool_reader *r) {
    buffer *b = &r->held;
    size_t blank = 0;
    while (r->is_behind && blank < b->n && is_space(b->data[blank])) {
        blank++;
    }
    if (blank < b->n) {
        buffer_drop(b, blank);
    }
    const char *tag = b->n > 0 ? memmem(b->data, b->n, open_tag, n_open) : NULL;
    size_t n = tag != NULL ? (size_t)(tag - b->data) : b->n - doubtful(b->data, b->n);
    size_t shown = n;
    while (tag != NULL && shown > 0 && is_space(b->data[shown - 1])) {
        shown--;
    }
    put_text(r, b->data, shown);
    buffer_drop(b, n);
    r->in_call = tag != NULL;
}

void tool_reader_push(tool_reader *r, const char *text, size_t n_bytes) {
    if (!r->is_on) {
        put_text(r, text, n_bytes);
        return;
    }
    buffer *b = &r->held;
    buffer_put(b, text, n_bytes);
    for (;;) {
        if (!r->in_call) {
            read_text(r);
            if (!r->in_call) {
                return;
            }
        }
        const char *end = memmem(b->data, b->n, close_tag, n_close);
        if (end == NULL) {
            return;
        }
        size_t n = (size_t)(end - b->data);
        if (!put_call(r, b->data + n_open, n - n_open)) {
            put_text(r, b->data, n + n_close);
        }
        buffer_drop(b, n + n_close);
        r->in_call = false;
    }
}

void tool_reader_end(tool_reader *r) {
    buffer *b = &r->held;
    bool is_call = r->in_call && put_call(r, b->data + n_open, b->n - n_open); /* the tag was cut off */
    size_t blank = 0;
    while (!r->in_call && r->is_behind && blank < b->n && is_space(b->data[blank])) {
        blank++;
    }
    if (!is_call && b->n > 0) {
        put_text(r, b->data + blank, b->n - blank);
    }
    buffer_free(b);
    r->in_call = false;
}
