/* Grammars as text, a subset of llama.cpp's GBNF:
 *
 *     root ::= "yes" | "no" why?           a rule: its name, ::=, and what it stands for, to the next rule or the end
 *     why  ::= ", because " [a-z ]{1,40}   literals, classes, names of rules, groups ( ), | between alternatives
 *     # a comment                          * + ? {n} {n,} {n,m} repeat what stands before them, . is any character
 *
 * Escapes in literals and classes: \n \r \t \\ \" \] \[ \- \^ \xHH \uHHHH. The answer is a `root`. A rule must not begin
 * with itself. */
#include <string.h>

#include "grammar.h"
#include "utf8.h"

enum { most_nesting = 40, most_ranges = 256, longest_name = 64 };

typedef struct reader {
    ellm_builder *b;
    const uint8_t *start, *at, *end;
    const ellm_expr **bodies; /* of rules, (ELLM_GRAMMAR_RULES,) */
    int nesting;
} reader;

static ellm_expr *wrong(reader *r, const char *what) {
    size_t line = 1;
    for (const uint8_t *p = r->start; p < r->at; p++) {
        line += *p == '\n';
    }
    ellm_builder_fail(r->b, ELLM_GRAMMAR_INVALID, "line %zu: %s", line, what);
    r->at = r->end;
    return ellm_expr_new(r->b, EXPR_SEQUENCE);
}

static void skip(reader *r) {
    for (; r->at < r->end && (strchr(" \t\r\n#", *r->at) != NULL && *r->at != '\0'); r->at++) {
        if (*r->at == '#') {
            while (r->at < r->end && *r->at != '\n') {
                r->at++;
            }
            if (r->at == r->end) {
                return;
            }
        }
    }
}

static bool take(reader *r, char c) {
    bool is = r->at < r->end && *r->at == (uint8_t)c;
    r->at += is;
    return is;
}

static size_t name_length(const reader *r) {
    size_t n = 0;
    for (const uint8_t *p = r->at; p < r->end; p++, n++) {
        bool is_letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || *p == '_';
        if (!is_letter && !(n > 0 && ((*p >= '0' && *p <= '9') || *p == '-'))) {
            break;
        }
    }
    return n;
}

/* A rule of that name, made on the spot where nothing has mentioned it yet. */
static uint32_t find_rule(reader *r, size_t n) {
    for (uint32_t i = 0; i < r->b->n_rules; i++) {
        const char *name = r->b->rules[i].place;
        if (strlen(name) == n && memcmp(name, r->at, n) == 0) {
            return i;
        }
    }
    char *name = ellm_region_text(&r->b->region, (const char *)r->at, n);
    if (name == NULL) {
        wrong(r, "it is too large");
        return 0;
    }
    return ellm_rule_new(r->b, NULL, name);
}

static uint32_t read_character(reader *r) {
    static const char names[] = "nrt\\\"][-^", values[] = "\n\r\t\\\"][-^";
    uint32_t point = 0;
    if (*r->at != '\\') {
        r->at += ellm_utf8_read(r->at, (size_t)(r->end - r->at), &point);
        if (point > 0x10FFFF) {
            wrong(r, "it is not UTF-8");
        }
        return point;
    }
    r->at++;
    uint8_t c = r->at < r->end ? *r->at++ : 0;
    const char *found = c != 0 ? strchr(names, c) : NULL;
    if (found != NULL) {
        return (uint8_t)values[found - names];
    }
    for (int i = 0, n = c == 'x' ? 2 : c == 'u' ? 4 : 0; i < n || n == 0; i++) {
        uint8_t digit = r->at < r->end ? *r->at++ : 0, lower = digit | 0x20;
        bool is_digit = digit >= '0' && digit <= '9';
        if (n == 0 || (!is_digit && !(lower >= 'a' && lower <= 'f'))) {
            wrong(r, "escapes are \\n \\r \\t \\\\ \\\" \\] \\[ \\- \\^ \\xHH \\uHHHH");
            return 0;
        }
        point = point << 4 | (uint32_t)(is_digit ? digit - '0' : lower - 'a' + 10);
    }
    return point;
}

static ellm_expr *read_literal(reader *r) {
    ellm_expr *e = ellm_expr_new(r->b, EXPR_SEQUENCE);
    while (r->at < r->end && *r->at != '"' && r->b->status == ELLM_OK) {
        uint32_t point = read_character(r);
        ellm_range range = {point, point};
        ellm_expr *one = ellm_expr_set(r->b, &range, 1, false, 0);
        if (r->b->status == ELLM_OK) {
            ellm_expr_add(e, one);
        }
    }
    return take(r, '"') ? e : wrong(r, "a literal does not end");
}

static ellm_expr *read_class(reader *r) {
    ellm_range ranges[most_ranges];
    uint32_t n = 0;
    bool negated = take(r, '^');
    while (r->at < r->end && *r->at != ']' && r->b->status == ELLM_OK) {
        uint32_t first = read_character(r), last = first;
        if (r->at + 1 < r->end && r->at[0] == '-' && r->at[1] != ']') {
            r->at++;
            last = read_character(r);
        }
        if (n == most_ranges || first > last) {
            return wrong(r, "a class has ranges from its least to its greatest character, at most 256");
        }
        ranges[n++] = (ellm_range){first, last};
    }
    return take(r, ']') ? ellm_expr_set(r->b, ranges, n, negated, 0x10FFFF) : wrong(r, "a class does not end");
}

static ellm_expr *read_choice(reader *r);

static ellm_expr *read_atom(reader *r) {
    size_t n = name_length(r);
    if (n > longest_name) {
        return wrong(r, "a name of more than 64 characters");
    }
    if (n > 0) {
        ellm_expr *e = ellm_expr_new(r->b, EXPR_CALL);
        uint32_t rule = find_rule(r, n);
        r->at += r->b->status == ELLM_OK ? n : 0;
        if (r->b->status == ELLM_OK) {
            e->rule = rule;
        }
        return e;
    }
    if (take(r, '(')) {
        ellm_expr *inner = ++r->nesting > most_nesting ? wrong(r, "it is nested too deeply") : read_choice(r);
        r->nesting--;
        return take(r, ')') ? inner : wrong(r, "a group does not end");
    }
    if (take(r, '.')) {
        return ellm_expr_set(r->b, NULL, 0, true, 0x10FFFF);
    }
    return take(r, '"')   ? read_literal(r)
           : take(r, '[') ? read_class(r)
                          : wrong(r, "a literal, a class, a name or a group was expected");
}

static ellm_expr *read_part(reader *r) {
    ellm_expr *part = read_atom(r);
    while (r->at < r->end && r->b->status == ELLM_OK && *r->at != '\0' && strchr("*+?{", *r->at) != NULL) {
        ellm_expr *e = ellm_expr_new(r->b, EXPR_REPEAT);
        uint8_t c = *r->at++;
        if (r->b->status != ELLM_OK) {
            return part;
        }
        e->least = c == '+';
        e->most = c == '?' ? 1 : -1;
        if (c == '{' && !ellm_count_read(&r->at, r->end, &e->least, &e->most)) {
            return wrong(r, "a count is {n}, {n,} or {n,m}, up to 4096");
        }
        ellm_expr_add(e, part);
        part = e;
    }
    return part;
}

/* True where a sequence ends: at |, ), the end, or the name of the next rule. */
static bool ends_here(reader *r) {
    skip(r);
    size_t n = name_length(r);
    reader ahead = *r;
    ahead.at += n;
    skip(&ahead);
    bool is_rule = n > 0 && ahead.end - ahead.at >= 3 && memcmp(ahead.at, "::=", 3) == 0;
    return r->at == r->end || *r->at == '|' || *r->at == ')' || is_rule;
}

static ellm_expr *read_choice(reader *r) {
    ellm_expr *all = ellm_expr_new(r->b, EXPR_CHOICE);
    do {
        ellm_expr *e = ellm_expr_new(r->b, EXPR_SEQUENCE);
        while (r->b->status == ELLM_OK && !ends_here(r)) {
            ellm_expr_add(e, read_part(r));
        }
        if (r->b->status == ELLM_OK) {
            ellm_expr_add(all, e);
        }
    } while (r->b->status == ELLM_OK && take(r, '|'));
    return all;
}

static void read_rules(reader *r) {
    for (skip(r); r->at < r->end && r->b->status == ELLM_OK; skip(r)) {
        size_t n = name_length(r);
        if (n == 0 || n > longest_name) {
            wrong(r, "a rule was expected: its name, ::=, and what it stands for");
            return;
        }
        uint32_t rule = find_rule(r, n);
        r->at += r->b->status == ELLM_OK ? n : 0;
        skip(r);
        if (r->b->status == ELLM_OK && (r->end - r->at < 3 || memcmp(r->at, "::=", 3) != 0)) {
            wrong(r, "'::=' was expected behind a rule's name");
            return;
        }
        if (r->b->status == ELLM_OK && r->bodies[rule] != NULL) {
            wrong(r, "a rule of this name is there already");
        }
        if (r->b->status == ELLM_OK) {
            r->at += 3;
            r->bodies[rule] = read_choice(r);
        }
    }
}

/* Whether a rule can begin with itself: from its start, by what takes no byte. */
static bool begins_with_itself(const ellm_builder *b, const bool *is_empty, uint32_t rule, bool *seen,
                               ellm_node_id *stack) {
    const ellm_node *nodes = b->grammar->nodes;
    uint32_t n = 0;
    memset(seen, 0, b->grammar->n_nodes);
    stack[n++] = b->rules[rule].start;
    while (n > 0) {
        const ellm_node *node = &nodes[stack[--n]];
        ellm_node_id ways[2] = {ELLM_NODE_FAIL, ELLM_NODE_FAIL};
        if (node->kind == ELLM_SPLIT) {
            ways[0] = node->a;
            ways[1] = node->b;
        } else if (node->kind == ELLM_CALL) {
            if (node->a == rule) {
                return true;
            }
            ways[0] = b->rules[node->a].start;
            ways[1] = is_empty[ways[0]] ? node->b : (ellm_node_id)ELLM_NODE_FAIL;
        }
        for (int i = 0; i < 2; i++) {
            if (!seen[ways[i]]) {
                seen[ways[i]] = true;
                stack[n++] = ways[i];
            }
        }
    }
    return false;
}

/* Which nodes reach their rule's end without a byte. */
static void find_empty(const ellm_builder *b, bool *is_empty) {
    const ellm_grammar *g = b->grammar;
    is_empty[ELLM_NODE_END] = true;
    for (bool changed = true; changed;) {
        changed = false;
        for (uint32_t i = 0; i < g->n_nodes; i++) {
            const ellm_node *n = &g->nodes[i];
            bool now = n->kind == ELLM_SPLIT  ? is_empty[n->a] || is_empty[n->b]
                       : n->kind == ELLM_CALL ? is_empty[b->rules[n->a].start] && is_empty[n->b]
                                              : is_empty[i];
            changed = changed || now != is_empty[i];
            is_empty[i] = now;
        }
    }
}

static void check_beginnings(ellm_builder *b) {
    size_t n = b->grammar->n_nodes;
    bool *is_empty = ellm_region_alloc(&b->region, 2 * n, 1);
    ellm_node_id *stack = ellm_region_alloc(&b->region, n + 2, sizeof *stack);
    if (is_empty == NULL || stack == NULL || (uint64_t)n * b->n_rules > (UINT64_C(16) << 20)) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large");
        return;
    }
    find_empty(b, is_empty);
    for (uint32_t i = 0; i < b->n_rules && b->status == ELLM_OK; i++) {
        if (begins_with_itself(b, is_empty, i, is_empty + n, stack)) {
            ellm_builder_fail(b, ELLM_GRAMMAR_INVALID, "the rule '%s' begins with itself", b->rules[i].place);
        }
    }
}

ellm_node_id ellm_put_grammar(ellm_builder *b, const char *text, size_t n_bytes) {
    reader r = {
        .b = b, .start = (const uint8_t *)text, .at = (const uint8_t *)text, .end = (const uint8_t *)text + n_bytes};
    r.bodies = ellm_region_alloc(&b->region, ELLM_GRAMMAR_RULES, sizeof *r.bodies);
    if (r.bodies == NULL || n_bytes > ELLM_GRAMMAR_BYTES) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "a grammar has at most %d bytes", (int)ELLM_GRAMMAR_BYTES);
        return ELLM_NODE_FAIL;
    }
    read_rules(&r);
    uint32_t n_named = b->n_rules;
    ellm_node_id root = ELLM_NODE_FAIL;
    for (uint32_t i = 0; i < n_named && b->status == ELLM_OK; i++) {
        if (r.bodies[i] == NULL) {
            ellm_builder_fail(b, ELLM_GRAMMAR_INVALID, "there is no rule '%s'", b->rules[i].place);
            break;
        }
        ellm_node_id start = ellm_put_expr(b, r.bodies[i], false, ELLM_NODE_END);
        b->rules[i].start = start;
        root = strcmp(b->rules[i].place, "root") == 0 ? start : root;
    }
    if (b->status == ELLM_OK && root == ELLM_NODE_FAIL) {
        ellm_builder_fail(b, ELLM_GRAMMAR_INVALID, "there is no rule 'root'");
    }
    if (b->status == ELLM_OK) {
        check_beginnings(b);
    }
    return root;
}
