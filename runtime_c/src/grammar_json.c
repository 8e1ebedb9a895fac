/* JSON's own grammar (RFC 8259), with an end to blanks and to numbers: an answer must not go on for ever. Blanks stand
 * where people and programs put them: one behind a colon, and behind commas and inside brackets one, or a line's end and
 * an indent. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar.h"
#include "utf8.h"

static ellm_node_id put_indent(ellm_builder *b, void *user, int64_t index, ellm_node_id next) {
    (void)user, (void)index;
    return ellm_put_either(b, ellm_put_bytes(b, ' ', ' ', next), ellm_put_bytes(b, '\t', '\t', next));
}

ellm_node_id ellm_put_blanks(ellm_builder *b, ellm_node_id next) {
    if (b->blanks == UINT32_MAX) {
        ellm_node_id end = ELLM_NODE_END;
        b->blanks = ellm_rule_new(b, NULL, "");
        ellm_node_id indent = ellm_put_repeat(b, 0, ELLM_GRAMMAR_BLANKS, 0, put_indent, NULL, end);
        ellm_node_id blank =
            ellm_put_either(b, ellm_put_bytes(b, ' ', ' ', end), ellm_put_bytes(b, '\n', '\n', indent));
        b->rules[b->blanks].start = ellm_put_either(b, end, blank);
    }
    return ellm_put_call(b, b->blanks, next);
}

ellm_node_id ellm_put_colon(ellm_builder *b, ellm_node_id next) {
    return ellm_put_bytes(b, ':', ':', ellm_put_either(b, next, ellm_put_bytes(b, ' ', ' ', next)));
}

/* ---- strings ---- */

static ellm_node_id put_hex(ellm_builder *b, const char *first, const char *last, int n_any, ellm_node_id next) {
    for (int i = 0; i < n_any; i++) {
        next =
            ellm_put_either(b, ellm_put_bytes(b, '0', '9', next),
                            ellm_put_either(b, ellm_put_bytes(b, 'A', 'F', next), ellm_put_bytes(b, 'a', 'f', next)));
    }
    ellm_node_id found = ELLM_NODE_FAIL;
    for (; *first != '\0'; first++, last++) {
        found = ellm_put_either(b, found, ellm_put_bytes(b, (unsigned char)*first, (unsigned char)*last, next));
    }
    return found;
}

/* Behind \u: any four digits, but surrogates in pairs. */
static ellm_node_id put_unicode(ellm_builder *b) {
    ellm_node_id low = put_hex(b, "Cc", "Ff", 2, ELLM_NODE_END); /* of DC00 to DFFF */
    low = put_hex(b, "Dd", "Dd", 0, low);
    low = ellm_put_text(b, "\\u", 2, low);
    ellm_node_id high = put_hex(b, "89ABab", "89ABab", 0, put_hex(b, "0Aa", "9Ff", 1, low));
    ellm_node_id lone = put_hex(b, "0", "7", 2, ELLM_NODE_END);
    ellm_node_id d = put_hex(b, "Dd", "Dd", 0, ellm_put_either(b, high, lone));
    return ellm_put_either(b, put_hex(b, "0AEae", "9CFcf", 3, ELLM_NODE_END), d);
}

static void make_character(ellm_builder *b) {
    b->character = ellm_rule_new(b, NULL, "");
    b->wide = ellm_rule_new(b, NULL, "");
    b->rules[b->wide].start = ellm_put_points(b, 0x80, 0x10FFFF, ELLM_NODE_END);
    ellm_node_id end = ELLM_NODE_END, escapes = ELLM_NODE_FAIL;
    for (const char *at = "\"\\/bfnrt"; *at != '\0'; at++) {
        escapes = ellm_put_either(b, ellm_put_bytes(b, *at, *at, end), escapes);
    }
    escapes = ellm_put_either(b, escapes, ellm_put_bytes(b, 'u', 'u', put_unicode(b)));
    ellm_node_id others = ellm_put_either(b, ellm_put_bytes(b, '\\', '\\', escapes), ellm_put_call(b, b->wide, end));
    ellm_node_id low = ellm_put_either(b, ellm_put_bytes(b, ' ', '!', end), ellm_put_bytes(b, '#', '[', end));
    b->grammar->plain = ellm_put_bytes(b, ']', 0x7F, end);
    b->rules[b->character].start = ellm_put_either(b, b->grammar->plain, ellm_put_either(b, low, others));
}

typedef struct counted {
    int64_t most;
} counted;

static void note_room(ellm_builder *b, ellm_node_id id, int64_t room) {
    if (b->status == ELLM_OK) {
        b->grammar->nodes[id].room = room < 0 || room > UINT16_MAX ? UINT16_MAX : (uint16_t)room;
    }
}

static ellm_node_id put_character(ellm_builder *b, void *user, int64_t index, ellm_node_id next) {
    const counted *c = user;
    note_room(b, next, c->most < 0 ? -1 : c->most - index - 1);
    return ellm_put_call(b, b->character, next);
}

ellm_node_id ellm_put_characters(ellm_builder *b, int64_t least, int64_t most, ellm_node_id next) {
    counted c = {most};
    if (b->character == UINT32_MAX) {
        make_character(b);
    }
    /* The last character's successor would say how many may follow, and must be nobody else's. */
    next = ellm_put(b, ELLM_SPLIT, next, next);
    return ellm_put_repeat(b, least, most, 0, put_character, &c, next);
}

ellm_node_id ellm_put_string(ellm_builder *b, int64_t least, int64_t most, ellm_node_id next) {
    ellm_node_id end = ellm_put_bytes(b, '"', '"', next);
    return ellm_put_bytes(b, '"', '"', ellm_put_characters(b, least, most, end));
}

/* ---- names ---- */

static const ellm_range no_plain[] = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
enum { n_no_plain = sizeof no_plain / sizeof *no_plain, longest_name = 256 };

/* Characters without escapes; in ASCII, all but `taken`. */
static ellm_node_id put_untaken(ellm_builder *b, const ellm_range *taken, uint32_t n, uint32_t most,
                                ellm_node_id next) {
    ellm_node_id found = ellm_put_expr(b, ellm_expr_set(b, taken, n, true, most), false, next);
    return most > 0x7F ? found : ellm_put_either(b, found, ellm_put_call(b, b->wide, next));
}

/* What is not among n names, which are in order and share their first `depth` bytes: a trie, that is left to `other` where
 * a character leads to none of them. */
static ellm_node_id put_unlike(ellm_builder *b, const char *const *names, size_t n, size_t depth, ellm_node_id other,
                               ellm_node_id end) {
    ellm_range *taken = ellm_region_alloc(&b->region, n + n_no_plain, sizeof *taken);
    ellm_node_id found = ELLM_NODE_FAIL;
    if (taken == NULL || b->status != ELLM_OK) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large: too many names");
        return found;
    }
    memcpy(taken, no_plain, sizeof no_plain);
    uint32_t n_taken = n_no_plain, most = 0x7F;
    bool is_name = false;
    for (size_t i = 0, same; i < n; i = same) {
        const uint8_t *at = (const uint8_t *)names[i] + depth;
        uint32_t point;
        same = i + 1;
        if (*at == '\0') {
            is_name = true;
            continue;
        }
        size_t bytes = ellm_utf8_read(at, strlen((const char *)at), &point);
        while (same < n && strncmp(names[same] + depth, names[i] + depth, bytes) == 0) {
            same++;
        }
        taken[n_taken++] = (ellm_range){point, point};
        most = point > 0x7F ? 0x10FFFF : most;
        ellm_node_id further = put_unlike(b, names + i, same - i, depth + bytes, other, end);
        found = ellm_put_either(b, found, ellm_put_points(b, point, point, further));
    }
    found = ellm_put_either(b, found, put_untaken(b, taken, n_taken, most, other));
    return is_name ? found : ellm_put_either(b, found, end);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

ellm_node_id ellm_put_other_name(ellm_builder *b, const char *const *names, size_t n_names, ellm_node_id next) {
    const char **own = ellm_region_alloc(&b->region, n_names + 1, sizeof *own);
    if (b->character == UINT32_MAX) {
        make_character(b);
    }
    if (own == NULL) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large: too many names");
        return ELLM_NODE_FAIL;
    }
    size_t n = 0;
    for (size_t i = 0; i < n_names && b->status == ELLM_OK; i++) {
        size_t length = strlen(names[i]);
        bool is_plain = true; /* others cannot be written without an escape: nothing else is like them */
        for (size_t k = 0; k < length; k++) {
            is_plain = is_plain && (unsigned char)names[i][k] >= ' ' && names[i][k] != '"' && names[i][k] != '\\';
        }
        if (length > longest_name) {
            ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "beside further names, names have at most %d bytes",
                              (int)longest_name);
        } else if (is_plain) {
            own[n++] = names[i];
        }
    }
    if (b->status != ELLM_OK) {
        return ELLM_NODE_FAIL;
    }
    qsort(own, n, sizeof *own, compare_names);
    ellm_node_id end = ellm_put_bytes(b, '"', '"', next), rest = ellm_put(b, ELLM_SPLIT, ELLM_NODE_FAIL, end);
    ellm_node_id more = put_untaken(b, no_plain, n_no_plain, 0x7F, rest);
    b->grammar->nodes[rest].a = b->status == ELLM_OK ? more : ELLM_NODE_FAIL;
    return ellm_put_bytes(b, '"', '"', put_unlike(b, own, n, 0, rest, end));
}

/* ---- numbers without bounds ---- */

static ellm_node_id put_digit(ellm_builder *b, void *user, int64_t index, ellm_node_id next) {
    (void)user, (void)index;
    return ellm_put_bytes(b, '0', '9', next);
}

ellm_node_id ellm_put_number(ellm_builder *b, bool whole, int most_fraction, ellm_node_id next) {
    enum { most_whole = 15, most_exponent = 2 };
    ellm_node_id behind = next;
    if (!whole) {
        ellm_node_id digits = ellm_put_repeat(b, 1, most_exponent, 0, put_digit, NULL, next);
        ellm_node_id sign =
            ellm_put_either(b, ellm_put_bytes(b, '+', '+', digits), ellm_put_bytes(b, '-', '-', digits));
        ellm_node_id exponent = ellm_put_either(b, digits, sign);
        exponent = ellm_put_either(b, ellm_put_bytes(b, 'e', 'e', exponent), ellm_put_bytes(b, 'E', 'E', exponent));
        exponent = ellm_put_either(b, next, exponent);
        ellm_node_id fraction = ellm_put_repeat(b, 1, most_fraction, 0, put_digit, NULL, exponent);
        behind = ellm_put_either(b, exponent, ellm_put_bytes(b, '.', '.', fraction));
    }
    ellm_node_id digits = ellm_put_repeat(b, 0, most_whole - 1, 0, put_digit, NULL, behind);
    digits = ellm_put_either(b, ellm_put_bytes(b, '0', '0', behind), ellm_put_bytes(b, '1', '9', digits));
    return ellm_put_either(b, digits, ellm_put_bytes(b, '-', '-', digits));
}

/* ---- values ---- */

static ellm_node_id put_either_text(ellm_builder *b, const char *text, ellm_node_id next, ellm_node_id other) {
    return ellm_put_either(b, ellm_put_text(b, text, strlen(text), next), other);
}

/* `open`, parts with commas between them, `close`. `part` emits one. */
static ellm_node_id put_list(ellm_builder *b, char open, char close, ellm_node_id (*part)(ellm_builder *, ellm_node_id),
                             ellm_node_id next) {
    ellm_node_id end = ellm_put_bytes(b, close, close, next);
    ellm_node_id loop = ellm_put(b, ELLM_SPLIT, ELLM_NODE_FAIL, ellm_put_blanks(b, end));
    uint32_t rule = ellm_rule_new(b, NULL, "");
    b->rules[rule].start = part(b, ELLM_NODE_END);
    ellm_node_id each = ellm_put_call(b, rule, loop);
    ellm_node_id comma = ellm_put_bytes(b, ',', ',', ellm_put_blanks(b, each));
    if (b->status == ELLM_OK) {
        b->grammar->nodes[loop].a = comma;
    }
    return ellm_put_bytes(b, open, open, ellm_put_blanks(b, ellm_put_either(b, each, end)));
}

static ellm_node_id put_value(ellm_builder *b, ellm_node_id next) {
    return ellm_put_call(b, b->value, next);
}

static ellm_node_id put_member(ellm_builder *b, ellm_node_id next) {
    return ellm_put_string(b, 0, -1, ellm_put_colon(b, put_value(b, next)));
}

static void make_value(ellm_builder *b) {
    enum { most_fraction = 96 };
    if (b->value == UINT32_MAX) {
        b->value = ellm_rule_new(b, NULL, "");
        ellm_node_id end = ELLM_NODE_END;
        ellm_node_id words =
            put_either_text(b, "true", end, put_either_text(b, "false", end, ellm_put_text(b, "null", 4, end)));
        ellm_node_id lists =
            ellm_put_either(b, put_list(b, '[', ']', put_value, end), put_list(b, '{', '}', put_member, end));
        ellm_node_id scalars =
            ellm_put_either(b, ellm_put_string(b, 0, -1, end), ellm_put_number(b, false, most_fraction, end));
        b->rules[b->value].start = ellm_put_either(b, scalars, ellm_put_either(b, words, lists));
    }
}

ellm_node_id ellm_put_any(ellm_builder *b, ellm_node_id next) {
    make_value(b);
    return put_value(b, next);
}

ellm_node_id ellm_put_any_object(ellm_builder *b, ellm_node_id next) {
    make_value(b);
    return put_list(b, '{', '}', put_member, next);
}

/* ---- one value ---- */

typedef struct text {
    char *data;
    size_t n, cap;
    bool failed;
} text;

static void add(text *t, const char *data, size_t n) {
    if (t->failed || n > ELLM_GRAMMAR_BYTES || t->n + n > t->cap) {
        size_t cap = (t->n + n) * 2 + 64;
        char *larger = t->failed || t->n + n > ELLM_GRAMMAR_BYTES ? NULL : realloc(t->data, cap);
        if (larger == NULL) {
            t->failed = true;
            return;
        }
        t->data = larger;
        t->cap = cap;
    }
    memcpy(t->data + t->n, data, n);
    t->n += n;
}

static void add_string(text *t, const char *from, size_t n) {
    static const char points[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    add(t, "\"", 1);
    for (size_t i = 0; i < n; i++) {
        const char *found = from[i] != '\0' ? strchr(points, from[i]) : NULL;
        char escape[8];
        if (found != NULL) {
            escape[0] = '\\';
            escape[1] = names[found - points];
            add(t, escape, 2);
        } else if ((unsigned char)from[i] < ' ') {
            snprintf(escape, sizeof escape, "\\u%04x", (unsigned)from[i]);
            add(t, escape, 6);
        } else {
            add(t, from + i, 1);
        }
    }
    add(t, "\"", 1);
}

static void add_number(text *t, const ellm_json *value) {
    char digits[40];
    if (value->kind == ELLM_JSON_INT) {
        snprintf(digits, sizeof digits, "%lld", (long long)value->integer);
    } else {
        ellm_real_text(value->real, digits);
    }
    add(t, digits, strlen(digits));
}

static void add_value(text *t, const ellm_json *value) { /* recurses as deep as the reader did */
    static const char words[][6] = {"null", "false", "true"};
    bool is_array = value->kind == ELLM_JSON_ARRAY;
    switch (value->kind) {
    case ELLM_JSON_NULL:
    case ELLM_JSON_BOOL: {
        const char *word = words[value->kind == ELLM_JSON_NULL ? 0 : 1 + (value->integer != 0)];
        add(t, word, strlen(word));
        break;
    }
    case ELLM_JSON_INT:
    case ELLM_JSON_REAL: add_number(t, value); break;
    case ELLM_JSON_STRING: add_string(t, value->text, value->count); break;
    case ELLM_JSON_ARRAY:
    case ELLM_JSON_OBJECT:
        add(t, is_array ? "[" : "{", 1);
        for (const ellm_json *each = value->first; each != NULL; each = each->next) {
            if (!is_array) {
                add_string(t, each->key, strlen(each->key));
                add(t, ":", 1);
            }
            add_value(t, each);
            add(t, ",", each->next != NULL);
        }
        add(t, is_array ? "]" : "}", 1);
        break;
    }
}

ellm_node_id ellm_put_json(ellm_builder *b, const ellm_json *value, ellm_node_id next) {
    text t = {0};
    add_value(&t, value);
    ellm_node_id start = ELLM_NODE_FAIL;
    if (t.failed) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large: a value of more than %d bytes",
                          (int)ELLM_GRAMMAR_BYTES);
    } else {
        start = ellm_put_text(b, t.data, t.n, next);
    }
    free(t.data);
    return start;
}

ellm_node_id ellm_put_name(ellm_builder *b, const char *name, ellm_node_id next) {
    const ellm_json value = {.kind = ELLM_JSON_STRING, .text = name, .count = (uint32_t)strlen(name)};
    return ellm_put_json(b, &value, next);
}
