/* json.h: a strict JSON reader (RFC 8259) for files and messages that nobody vouches for.
 *
 * The text becomes a tree in a region. Depth and size are bounded, nothing recurses, strings are checked to be
 * UTF-8 and are unescaped (lone surrogates become U+FFFD, and so do NULs in names). Of two members with one name the last counts. */
#ifndef ELLM_JSON_H
#define ELLM_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "edgellm.h"
#include "region.h"

enum { ELLM_JSON_DEPTH = 64 };

typedef enum ellm_json_kind {
    ELLM_JSON_NULL,
    ELLM_JSON_BOOL,
    ELLM_JSON_INT,  /* an integer that fits int64 */
    ELLM_JSON_REAL, /* any other number */
    ELLM_JSON_STRING,
    ELLM_JSON_ARRAY,
    ELLM_JSON_OBJECT,
} ellm_json_kind;

typedef struct ellm_json ellm_json;
struct ellm_json {
    ellm_json_kind kind;
    uint32_t count;  /* elements of an array or object, bytes of a string */
    const char *key; /* name within an object, NUL-terminated, else NULL */
    ellm_json *next; /* next element of the parent in the text's order, NULL at its end */
    union {
        ellm_json *first; /* ARRAY, OBJECT: first element or NULL */
        const char *text; /* STRING: NUL-terminated, and may itself hold NULs */
        int64_t integer;  /* INT; BOOL: 0 or 1 */
        double real;      /* REAL */
    };
};

/* Reads one value that fills all of `text`. The tree lives in `region`, independent of `text`.
 * On failure returns `bad` (NO_MEMORY if the region is exhausted), the reason and line in `error`. */
ellm_status ellm_json_read(const char *text, size_t n_bytes, ellm_region *region, ellm_status bad, const char *name,
                           ellm_json **value, ellm_error *error);

/* The last member called `key`, NULL if there is none or `object` is NULL or no object. */
const ellm_json *ellm_json_get(const ellm_json *object, const char *key);

/* Typed access. False if `value` is NULL or of another kind or out of range; the result is then untouched. */
bool ellm_json_int(const ellm_json *value, int64_t least, int64_t most, int64_t *result);
bool ellm_json_real(const ellm_json *value, double *result);
/* The text of a string without NULs of 1 to most_bytes bytes, else NULL. */
const char *ellm_json_text(const ellm_json *value, size_t most_bytes);
bool ellm_json_equals(const ellm_json *value, const char *text);

#endif
