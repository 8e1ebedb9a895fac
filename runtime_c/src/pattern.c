/* Regular expressions, as JSON Schema's `pattern` has them, to what stands between a JSON string's quotes.
 *
 * Known are: characters and their escapes (\n \t \r \f \v \0 \xHH \uHHHH, \ before punctuation), `.`, classes [a-z] and
 * [^a-z], \d \w \s \D \W \S, groups ( ), (?: ) and (?<name> ), |, * + ? {n} {n,} {n,m} also with ? behind, and ^ and $ at
 * the ends of an alternative. A pattern without ^ or $ may stand anywhere in the text, as the standard wants. Others are
 * refused: look-around, back-references, \b, \p. What is not ASCII is in no \D, \W or \S: programs differ about it. */
#include <string.h>

#include "grammar.h"
#include "utf8.h"

enum { most_ranges = 256, most_nesting = 40, most_count = 4096 };

typedef struct reader {
    ellm_builder *b;
    const char *place;
    const uint8_t *at, *end;
    int nesting;
} reader;

typedef struct set {
    ellm_range ranges[most_ranges];
    uint32_t n, most; /* most: the last character that its complement may have */
} set;

static ellm_expr *wrong(reader *r, const char *what) {
    ellm_builder_fail(r->b, ELLM_GRAMMAR_INVALID, "%s/pattern: %s", r->place, what);
    r->at = r->end;
    return ellm_expr_new(r->b, EXPR_SEQUENCE);
}

static bool take(reader *r, char c) {
    bool is = r->at < r->end && *r->at == (uint8_t)c;
    r->at += is;
    return is;
}

static bool is_any_of(const reader *r, const char *characters) {
    return r->at < r->end && *r->at != '\0' && strchr(characters, *r->at) != NULL;
}

static void add_range(reader *r, set *s, uint32_t first, uint32_t last) {
    if (s->n == most_ranges || first > last) {
        wrong(r, first > last ? "a range ends before it begins" : "a class has too many parts");
        return;
    }
    s->ranges[s->n++] = (ellm_range){first, last};
}

/* \d and the like. False if `c` names none. */
static bool add_class(reader *r, set *s, char c) {
    static const ellm_range digits[] = {{'0', '9'}}, words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const ellm_range spaces[] = {{'\t', '\r'}, {' ', ' '}};
    char lower = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    const ellm_range *from = lower == 'd' ? digits : lower == 'w' ? words : lower == 's' ? spaces : NULL;
    uint32_t n = lower == 'd' ? 1 : lower == 'w' ? 4 : 2, first = 0;
    if (from == NULL) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (lower == c) {
            add_range(r, s, from[i].first, from[i].last);
        } else if (first < from[i].first) {
            add_range(r, s, first, from[i].first - 1);
        }
        first = from[i].last + 1;
    }
    if (lower != c) {
        add_range(r, s, first, 0x7F);
    }
    s->most = 0x7F; /* a complement of it, too, is of ASCII */
    return true;
}

static uint32_t read_hex(reader *r, int n) {
    uint32_t value = 0;
    for (int i = 0; i < n; i++) {
        uint8_t c = r->at < r->end ? *r->at++ : 0;
        bool is_digit = c >= '0' && c <= '9';
        uint8_t lower = c | 0x20;
        if (!is_digit && !(lower >= 'a' && lower <= 'f')) {
            wrong(r, "\\x wants two hexadecimal digits, \\u four");
            return 0;
        }
        value = value << 4 | (uint32_t)(is_digit ? c - '0' : lower - 'a' + 10);
    }
    return value;
}

/* One character, its escape read; UINT32_MAX: a class that went to `s`. */
static uint32_t read_character(reader *r, set *s) {
    static const char names[] = "nrtfv0", values[] = "\n\r\t\f\v";
    uint32_t point;
    if (*r->at != '\\') {
        r->at += ellm_utf8_read(r->at, (size_t)(r->end - r->at), &point);
        return point;
    }
    r->at++;
    char c = r->at < r->end ? (char)*r->at++ : '\0';
    if (add_class(r, s, c)) {
        return UINT32_MAX;
    }
    if (c == 'x' || c == 'u') {
        point = read_hex(r, c == 'x' ? 2 : 4);
        if (point >= 0xD800 && point < 0xE000) {
            wrong(r, "a surrogate is no character");
        }
        return point;
    }
    const char *found = c != '\0' ? strchr(names, c) : NULL;
    if (found != NULL) {
        return (uint8_t)values[found - names];
    }
    bool is_letter = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '\0';
    if (is_letter) {
        wrong(r, "this escape is not known here (back-references, \\b and \\p are not)");
    }
    return (uint8_t)c;
}

static ellm_expr *read_class(reader *r) {
    set s = {.most = 0x10FFFF};
    bool negated = take(r, '^');
    while (r->at < r->end && *r->at != ']' && r->b->status == ELLM_OK) {
        uint32_t first = read_character(r, &s), last = first;
        if (first != UINT32_MAX && r->at + 1 < r->end && r->at[0] == '-' && r->at[1] != ']') {
            r->at++;
            last = read_character(r, &s);
            if (last == UINT32_MAX) {
                wrong(r, "a range ends in a class");
            }
        }
        if (first != UINT32_MAX) {
            add_range(r, &s, first, last);
        }
    }
    if (!take(r, ']')) {
        return wrong(r, "a class does not end");
    }
    return ellm_expr_set(r->b, s.ranges, s.n, negated, s.most);
}

static ellm_expr *one_character(reader *r, uint32_t point) {
    ellm_range range = {point, point};
    return ellm_expr_set(r->b, &range, 1, false, 0);
}

static ellm_expr *read_choice(reader *r, bool is_top);

static ellm_expr *read_atom(reader *r) {
    static const ellm_range ends_of_lines[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    set s = {0};
    if (take(r, '(')) {
        if (take(r, '?') && !take(r, ':')) {
            (void)take(r, 'P');
            bool is_name = take(r, '<') && r->at < r->end && *r->at != '=' && *r->at != '!';
            const uint8_t *close = is_name ? memchr(r->at, '>', (size_t)(r->end - r->at)) : NULL;
            if (close == NULL) {
                return wrong(r, "look-around and flags are not known here");
            }
            r->at = close + 1;
        }
        ellm_expr *inner = ++r->nesting > most_nesting ? wrong(r, "it is nested too deeply") : read_choice(r, false);
        r->nesting--;
        return take(r, ')') ? inner : wrong(r, "a group does not end");
    }
    if (take(r, '[')) {
        return read_class(r);
    }
    if (take(r, '.')) {
        return ellm_expr_set(r->b, ends_of_lines, 3, true, 0x10FFFF);
    }
    if (is_any_of(r, "*+?{")) {
        return wrong(r, "there is nothing to repeat");
    }
    if (is_any_of(r, "^$")) {
        return wrong(r, "^ and $ are known at the ends of an alternative only");
    }
    uint32_t point = read_character(r, &s);
    return point != UINT32_MAX ? one_character(r, point) : ellm_expr_set(r->b, s.ranges, s.n, false, 0);
}

bool ellm_count_read(const uint8_t **at, const uint8_t *end, int64_t *least, int64_t *most) {
    const uint8_t *p = *at;
    int64_t counts[2] = {0, -1};
    for (int i = 0; i < 2; i++) {
        const uint8_t *first = p;
        int64_t value = 0;
        for (; p < end && *p >= '0' && *p <= '9' && value <= most_count; p++) {
            value = value * 10 + (*p - '0');
        }
        if ((p == first && i == 0) || value > most_count || p == end) {
            return false;
        }
        counts[i] = p > first ? value : -1;
        if (i == 0 && *p == '}') {
            counts[1] = value;
            break;
        }
        if (i == 0 && *p++ != ',') {
            return false;
        }
    }
    if (p == end || *p != '}' || (counts[1] >= 0 && counts[1] < counts[0])) {
        return false;
    }
    *at = p + 1;
    *least = counts[0];
    *most = counts[1];
    return true;
}

static ellm_expr *read_part(reader *r) {
    ellm_expr *part = read_atom(r);
    while (r->b->status == ELLM_OK && is_any_of(r, "*+?{")) {
        ellm_expr *e = ellm_expr_new(r->b, EXPR_REPEAT);
        uint8_t c = *r->at++;
        e->least = c == '+';
        e->most = c == '?' ? 1 : -1;
        if (c == '{' && !ellm_count_read(&r->at, r->end, &e->least, &e->most)) {
            return wrong(r, "a count is {n}, {n,} or {n,m}, up to 4096");
        }
        if (r->b->status == ELLM_OK) {
            ellm_expr_add(e, part);
        }
        (void)take(r, '?'); /* how much a repetition prefers to take does not change what matches */
        part = e;
    }
    return part;
}

static ellm_expr *read_anything(reader *r) {
    ellm_expr *e = ellm_expr_new(r->b, EXPR_CALL);
    e->rule = UINT32_MAX; /* any number of characters: see put_pattern */
    return e;
}

static ellm_expr *read_sequence(reader *r, bool is_top) {
    ellm_expr *e = ellm_expr_new(r->b, EXPR_SEQUENCE);
    bool ends = false;
    if (is_top && !take(r, '^')) {
        ellm_expr_add(e, read_anything(r));
    }
    while (r->at < r->end && *r->at != '|' && *r->at != ')' && r->b->status == ELLM_OK) {
        const uint8_t *behind = r->at + 1;
        if (is_top && *r->at == '$' && (behind == r->end || *behind == '|')) {
            r->at++;
            ends = true;
            break;
        }
        ellm_expr_add(e, read_part(r));
    }
    if (is_top && !ends) {
        ellm_expr_add(e, read_anything(r));
    }
    return e;
}

static ellm_expr *read_choice(reader *r, bool is_top) {
    ellm_expr *first = read_sequence(r, is_top);
    if (r->at == r->end || *r->at != '|') {
        return first;
    }
    ellm_expr *e = ellm_expr_new(r->b, EXPR_CHOICE);
    if (r->b->status == ELLM_OK) {
        ellm_expr_add(e, first);
    }
    while (take(r, '|') && r->b->status == ELLM_OK) {
        ellm_expr_add(e, read_sequence(r, is_top));
    }
    return e;
}

ellm_node_id ellm_put_pattern(ellm_builder *b, const char *pattern, size_t n_bytes, const char *place,
                              ellm_node_id next) {
    reader r = {.b = b, .place = place, .at = (const uint8_t *)pattern, .end = (const uint8_t *)pattern + n_bytes};
    const ellm_expr *e = read_choice(&r, true);
    if (r.at < r.end) {
        wrong(&r, "')' closes nothing");
    }
    return ellm_put_expr(b, e, true, next);
}
