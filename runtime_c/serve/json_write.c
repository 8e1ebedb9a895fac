#include "json_write.h"

#include <inttypes.h>
#include <string.h>

void buffer_put_string(buffer *b, const char *text) {
    buffer_put_json(b, text, strlen(text));
}

void buffer_put_text(buffer *b, const buffer *text) {
    buffer_put_json(b, text->n > 0 ? text->data : "", text->n);
}

/* Recurses as deep as the reader allows: ELLM_JSON_DEPTH. */
void buffer_put_value(buffer *b, const ellm_json *value) {
    switch (value->kind) {
    case ELLM_JSON_NULL: buffer_put(b, "null", 4); break;
    case ELLM_JSON_BOOL: buffer_print(b, "%s", value->integer != 0 ? "true" : "false"); break;
    case ELLM_JSON_INT: buffer_print(b, "%" PRId64, value->integer); break;
    case ELLM_JSON_REAL: {
        size_t before = b->n;
        buffer_print(b, "%.17g", value->real);
        if (strpbrk(b->data + before, ".e") == NULL) { /* stays a real */
            buffer_put(b, ".0", 2);
        }
        break;
    }
    case ELLM_JSON_STRING: buffer_put_json(b, value->text, value->count); break;
    case ELLM_JSON_ARRAY:
    case ELLM_JSON_OBJECT: {
        bool is_array = value->kind == ELLM_JSON_ARRAY;
        buffer_put(b, is_array ? "[" : "{", 1);
        for (const ellm_json *each = value->first; each != NULL; each = each->next) {
            if (is_array) {
                buffer_put(b, ",", each != value->first);
                buffer_put_value(b, each);
            } else {
                buffer_put_member(b, each->key, each);
            }
        }
        buffer_put(b, is_array ? "]" : "}", 1);
        break;
    }
    }
}

void buffer_put_member(buffer *b, const char *key, const ellm_json *value) {
    buffer_put(b, ",", b->n > 0 && b->data[b->n - 1] != '{');
    buffer_put_string(b, key);
    buffer_put(b, ":", 1);
    buffer_put_value(b, value);
}
