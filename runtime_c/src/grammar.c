/* Nodes, rules and their check. */
#include "grammar.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "matcher.h"
#include "utf8.h"

void ellm_builder_fail(ellm_builder *b, ellm_status status, const char *format, ...) {
    if (b->status == ELLM_OK) {
        b->status = status;
        if (b->error != NULL) {
            va_list arguments;
            va_start(arguments, format);
            vsnprintf(b->error->text, sizeof b->error->text, format, arguments);
            va_end(arguments);
        }
    }
}

ellm_status ellm_builder_open(ellm_builder *b, ellm_error *error) {
    *b = (ellm_builder){
        .error = error, .character = UINT32_MAX, .blanks = UINT32_MAX, .value = UINT32_MAX, .wide = UINT32_MAX};
    ellm_region_init(&b->region, ELLM_GRAMMAR_REGION);
    b->grammar = calloc(1, sizeof *b->grammar);
    b->rules = calloc(ELLM_GRAMMAR_RULES, sizeof *b->rules);
    if (b->grammar == NULL || b->rules == NULL) {
        ellm_builder_fail(b, ELLM_NO_MEMORY, "no memory for a grammar");
        return b->status;
    }
    atomic_init(&b->grammar->n_users, 1);
    ellm_put(b, ELLM_FAIL, 0, 0);
    ellm_put(b, ELLM_END, 0, 0);
    return b->status;
}

/* ---- nodes ---- */

ellm_node_id ellm_put(ellm_builder *b, ellm_node_kind kind, ellm_node_id x, ellm_node_id y) {
    ellm_grammar *g = b->grammar;
    if (b->status != ELLM_OK) {
        return ELLM_NODE_FAIL;
    }
    if (g->n_nodes == g->cap_nodes) {
        uint32_t cap = g->cap_nodes > 0 ? g->cap_nodes * 2 : 256;
        ellm_node *larger = cap > ELLM_GRAMMAR_NODES ? NULL : realloc(g->nodes, cap * sizeof *larger);
        if (larger == NULL) {
            ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large: counts, names and patterns may make %d states",
                              (int)ELLM_GRAMMAR_NODES);
            return ELLM_NODE_FAIL;
        }
        g->nodes = larger;
        g->cap_nodes = cap;
    }
    ellm_node_id id = (ellm_node_id)g->n_nodes++;
    g->nodes[id] = (ellm_node){.kind = (uint8_t)kind, .a = x, .b = y, .like = id};
    return id;
}

ellm_node_id ellm_put_bytes(ellm_builder *b, int least, int most, ellm_node_id next) {
    if (next == ELLM_NODE_FAIL || least > most) {
        return ELLM_NODE_FAIL;
    }
    ellm_node_id id = ellm_put(b, ELLM_BYTES, next, 0);
    if (id != ELLM_NODE_FAIL) {
        b->grammar->nodes[id].least = (uint8_t)least;
        b->grammar->nodes[id].most = (uint8_t)most;
    }
    return id;
}

ellm_node_id ellm_put_either(ellm_builder *b, ellm_node_id x, ellm_node_id y) {
    return x == ELLM_NODE_FAIL ? y : y == ELLM_NODE_FAIL ? x : ellm_put(b, ELLM_SPLIT, x, y);
}

ellm_node_id ellm_put_text(ellm_builder *b, const char *text, size_t n_bytes, ellm_node_id next) {
    while (n_bytes > 0 && next != ELLM_NODE_FAIL) {
        unsigned char c = (unsigned char)text[--n_bytes];
        next = ellm_put_bytes(b, c, c, next);
    }
    return next;
}

/* Sequences of n bytes from low to high, which have the same number of bytes. */
static ellm_node_id put_sequences(ellm_builder *b, const uint8_t *low, const uint8_t *high, int n, ellm_node_id next) {
    static const uint8_t least[3] = {0x80, 0x80, 0x80}, most[3] = {0xBF, 0xBF, 0xBF};
    if (n == 1) {
        return ellm_put_bytes(b, low[0], high[0], next);
    }
    if (low[0] == high[0]) {
        return ellm_put_bytes(b, low[0], low[0], put_sequences(b, low + 1, high + 1, n - 1, next));
    }
    int first = low[0], last = high[0];
    ellm_node_id found = ELLM_NODE_FAIL;
    if (memcmp(low + 1, least, (size_t)n - 1) != 0) {
        found = ellm_put_bytes(b, first, first, put_sequences(b, low + 1, most, n - 1, next));
        first++;
    }
    if (memcmp(high + 1, most, (size_t)n - 1) != 0) {
        found =
            ellm_put_either(b, found, ellm_put_bytes(b, last, last, put_sequences(b, least, high + 1, n - 1, next)));
        last--;
    }
    if (first <= last) {
        found = ellm_put_either(b, found, ellm_put_bytes(b, first, last, put_sequences(b, least, most, n - 1, next)));
    }
    return found;
}

ellm_node_id ellm_put_points(ellm_builder *b, uint32_t first, uint32_t last, ellm_node_id next) {
    static const uint32_t ends[] = {0x7F, 0x7FF, 0xD7FF, 0xDFFF, 0xFFFF, 0x10FFFF};
    ellm_node_id found = ELLM_NODE_FAIL;
    for (size_t i = 0; i < sizeof ends / sizeof *ends && first <= last; i++) {
        uint32_t end = last < ends[i] ? last : ends[i];
        if (first > end) {
            continue;
        }
        if (ends[i] != 0xDFFF) {
            uint8_t low[4], high[4];
            size_t n = ellm_utf8_write(first, low);
            ellm_utf8_write(end, high);
            found = ellm_put_either(b, found, put_sequences(b, low, high, (int)n, next));
        }
        first = end + 1;
    }
    return found;
}

/* ---- rules ---- */

uint32_t ellm_rule_new(ellm_builder *b, const void *source, const char *place) {
    if (b->n_rules == ELLM_GRAMMAR_RULES) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large: more than %d parts", (int)ELLM_GRAMMAR_RULES);
        return 0;
    }
    b->rules[b->n_rules] = (ellm_rule){.source = source, .place = place};
    return b->n_rules++;
}

ellm_node_id ellm_put_call(ellm_builder *b, uint32_t rule, ellm_node_id next) {
    return next == ELLM_NODE_FAIL ? next : ellm_put(b, ELLM_CALL, (ellm_node_id)rule, next);
}

/* Which nodes nobody can tell apart from afar: those with many items to come, where none or many of them must. */
static void note_likeness(ellm_builder *b, ellm_node_id id, int64_t least, int64_t most, ellm_node_id same[2]) {
    bool must = least > 0;
    if (b->status != ELLM_OK || (most >= 0 && most <= ELLM_GRAMMAR_FAR) || (must && least <= ELLM_GRAMMAR_FAR)) {
        return;
    }
    same[must] = same[must] == ELLM_NODE_FAIL ? id : same[must];
    b->grammar->nodes[id].like = same[must];
}

ellm_node_id ellm_put_repeat(ellm_builder *b, int64_t least, int64_t most, int64_t alike, ellm_put_item *item,
                             void *user, ellm_node_id next) {
    ellm_node_id same[2] = {ELLM_NODE_FAIL, ELLM_NODE_FAIL}, at = next;
    if (next == ELLM_NODE_FAIL || (most >= 0 && least > most)) {
        return ELLM_NODE_FAIL;
    }
    int64_t i = most;
    if (most < 0) { /* round and round */
        i = least > alike ? least : alike;
        at = ellm_put(b, ELLM_SPLIT, ELLM_NODE_FAIL, next);
        ellm_node_id body = item(b, user, i, at);
        if (b->status == ELLM_OK) {
            b->grammar->nodes[at].a = body;
        }
        note_likeness(b, at, 0, -1, same);
    }
    for (i--; i >= 0 && b->status == ELLM_OK; i--) {
        at = item(b, user, i, at);
        if (i >= least) {
            at = ellm_put_either(b, at, next);
        } else if (at == ELLM_NODE_FAIL) {
            return at;
        }
        if (i >= alike) {
            note_likeness(b, at, least - i, most < 0 ? -1 : most - i, same);
        }
    }
    return at;
}

/* ---- check ---- */

/* How a node gets to its rule's end with the fewest frames, by what is known of others. */
static uint8_t need_of(const ellm_node *nodes, const ellm_node *n) {
    uint8_t a = nodes[n->a].need, other = nodes[n->b].need;
    switch (n->kind) {
    case ELLM_FAIL: return ELLM_NO_END;
    case ELLM_END: return 0;
    case ELLM_BYTES: return a;
    case ELLM_SPLIT: return a < other ? a : other;
    default:
        if (a == ELLM_NO_END || other == ELLM_NO_END || a + 1 > ELLM_GRAMMAR_DEPTH) {
            return ELLM_NO_END;
        }
        a = n->b == ELLM_NODE_END ? a : (uint8_t)(a + 1); /* a call at the end takes no frame */
        return a > other ? a : other;
    }
}

/* Fills in every node's need. False if it is not known after so many rounds. */
static bool find_needs(ellm_grammar *g) {
    for (uint32_t i = 0; i < g->n_nodes; i++) {
        g->nodes[i].need = ELLM_NO_END;
    }
    for (int round = 0; round < 400; round++) {
        bool changed = false;
        for (uint32_t k = 0; k < g->n_nodes; k++) { /* forth and back: parts are emitted from their end */
            ellm_node *n = &g->nodes[round % 2 == 0 ? k : g->n_nodes - 1 - k];
            uint8_t need = need_of(g->nodes, n);
            changed = changed || need != n->need;
            n->need = need;
        }
        if (!changed) {
            return true;
        }
    }
    return false;
}

ellm_status ellm_builder_close(ellm_builder *b, ellm_node_id root, ellm_grammar **grammar) {
    ellm_grammar *g = b->grammar;
    *grammar = NULL;
    if (b->status == ELLM_OK) {
        for (uint32_t i = 0; i < g->n_nodes; i++) {
            if (g->nodes[i].kind == ELLM_CALL) {
                g->nodes[i].a = b->rules[g->nodes[i].a].start;
            }
        }
        g->root = root;
        if (!find_needs(g)) {
            ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too intricate");
        } else if (g->nodes[root].need == ELLM_NO_END) {
            ellm_builder_fail(
                b, ELLM_GRAMMAR_INVALID,
                "nothing satisfies it: its parts contradict each other, or never end, or nest deeper than %d",
                (int)ELLM_GRAMMAR_DEPTH);
        }
    }
    if (b->status == ELLM_OK) {
        *grammar = g;
    } else {
        ellm_grammar_close(g); /* may be NULL */
    }
    ellm_region_free(&b->region);
    free(b->rules);
    return b->status;
}

/* ---- expressions ---- */

ellm_expr *ellm_expr_new(ellm_builder *b, ellm_expr_kind kind) {
    static ellm_expr nothing; /* never looked at: a builder that failed emits nothing */
    ellm_expr *e = ellm_region_alloc(&b->region, 1, sizeof *e);
    if (e == NULL) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large: compiling takes more than %d MB",
                          (int)(ELLM_GRAMMAR_REGION >> 20));
        return &nothing;
    }
    e->kind = kind;
    return e;
}

void ellm_expr_add(ellm_expr *parent, ellm_expr *part) {
    part->before = parent->last;
    parent->last = part;
}

static int compare_ranges(const void *x, const void *y) {
    const ellm_range *a = x, *b = y;
    return (a->first > b->first) - (a->first < b->first);
}

ellm_expr *ellm_expr_set(ellm_builder *b, const ellm_range *ranges, uint32_t n, bool negated, uint32_t most) {
    ellm_expr *e = ellm_expr_new(b, EXPR_SET);
    ellm_range *own = ellm_region_alloc(&b->region, n + 1, sizeof *own), *out = own;
    ellm_range *sorted = ellm_region_alloc(&b->region, n + 1, sizeof *sorted);
    if (own == NULL || sorted == NULL || b->status != ELLM_OK) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large");
        return e;
    }
    if (n > 0) {
        memcpy(sorted, ranges, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, compare_ranges);
    }
    uint32_t free_from = 0; /* the first character that no range so far has */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t first = sorted[i].first > free_from ? sorted[i].first : free_from;
        if (negated && sorted[i].first > free_from) {
            *out++ = (ellm_range){free_from, sorted[i].first - 1};
        } else if (!negated && first <= sorted[i].last) {
            *out++ = (ellm_range){first, sorted[i].last};
        }
        free_from = sorted[i].last + 1 > free_from ? sorted[i].last + 1 : free_from;
    }
    if (negated && free_from <= most) {
        *out++ = (ellm_range){free_from, most};
    }
    e->ranges = own;
    e->n_ranges = (uint32_t)(out - own);
    return e;
}

/* One character of a JSON string, escaped where it must be. */
static ellm_node_id put_escaped(ellm_builder *b, uint32_t point, ellm_node_id next) {
    static const char points[] = "\"\\\b\f\n\r\t", names[] = "\"\\bfnrt";
    char text[8] = "\\";
    const char *found = point != 0 ? strchr(points, (int)point) : NULL;
    if (found != NULL) {
        text[1] = names[found - points];
        return ellm_put_text(b, text, 2, next);
    }
    snprintf(text, sizeof text, "\\u%04x", (unsigned)point);
    return ellm_put_text(b, text, 6, next);
}

static ellm_node_id put_set(ellm_builder *b, const ellm_expr *e, bool in_json, ellm_node_id next) {
    ellm_node_id found = ELLM_NODE_FAIL;
    for (uint32_t i = 0; i < e->n_ranges && b->status == ELLM_OK; i++) {
        uint32_t first = e->ranges[i].first, last = e->ranges[i].last < 0x10FFFF ? e->ranges[i].last : 0x10FFFF;
        for (uint32_t c = first; in_json && c <= last && c <= '\\'; c++) {
            bool escapes = c < ' ' || c == '"' || c == '\\';
            if (escapes) {
                found = ellm_put_either(b, found, put_escaped(b, c, next));
                found = ellm_put_either(b, found, first < c ? ellm_put_points(b, first, c - 1, next) : ELLM_NODE_FAIL);
                first = c + 1;
            }
        }
        found = ellm_put_either(b, found, first <= last ? ellm_put_points(b, first, last, next) : ELLM_NODE_FAIL);
    }
    return found;
}

typedef struct item {
    const ellm_expr *part;
    bool in_json;
    uint32_t rule;
} item;

static ellm_node_id put_item(ellm_builder *b, void *user, int64_t index, ellm_node_id next) {
    const item *i = user;
    (void)index;
    return i->rule != UINT32_MAX ? ellm_put_call(b, i->rule, next) : ellm_put_expr(b, i->part, i->in_json, next);
}

/* What is repeated is emitted once, as a rule, unless it stands in one place anyway. */
static ellm_node_id put_repeated(ellm_builder *b, const ellm_expr *e, bool in_json, ellm_node_id next) {
    item part = {e->last, in_json, UINT32_MAX};
    if (e->last->kind == EXPR_CALL && e->last->rule != UINT32_MAX) {
        part.rule = e->last->rule;
    } else if (e->least + (e->most < 0) > 1 || e->most > 1) {
        part.rule = ellm_rule_new(b, NULL, "");
        ellm_node_id start = ellm_put_expr(b, e->last, in_json, ELLM_NODE_END);
        b->rules[part.rule].start = start;
    }
    return ellm_put_repeat(b, e->least, e->most, 0, put_item, &part, next);
}

ellm_node_id ellm_put_expr(ellm_builder *b, const ellm_expr *e, bool in_json, ellm_node_id next) {
    ellm_node_id found = ELLM_NODE_FAIL;
    if (b->status != ELLM_OK) {
        return found;
    }
    switch (e->kind) {
    case EXPR_SET: return put_set(b, e, in_json, next);
    case EXPR_CALL:
        return e->rule == UINT32_MAX ? ellm_put_characters(b, 0, -1, next) : ellm_put_call(b, e->rule, next);
    case EXPR_REPEAT: return put_repeated(b, e, in_json, next);
    case EXPR_SEQUENCE:
        for (const ellm_expr *part = e->last; part != NULL; part = part->before) {
            next = ellm_put_expr(b, part, in_json, next);
        }
        return next;
    case EXPR_CHOICE:
        for (const ellm_expr *part = e->last; part != NULL; part = part->before) {
            found = ellm_put_either(b, ellm_put_expr(b, part, in_json, next), found);
        }
        return found;
    }
    return found;
}
