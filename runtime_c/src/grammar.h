/* grammar.h: what an answer may be, as a pushdown automaton over bytes; and how one is built.
 *
 * A grammar is a graph of nodes. BYTES takes one byte and goes on, SPLIT goes on in two ways, CALL goes on with a rule and
 * then behind it, END is the end of a rule. Whoever builds one begins at its end: a part is emitted with the node that
 * follows it. Grammars come from clients: nodes, rules and depth are bounded, and every part is emitted once. */
#ifndef ELLM_GRAMMAR_H
#define ELLM_GRAMMAR_H

#include <stdatomic.h>

#include "edgellm.h"
#include "error.h"
#include "json.h"
#include "region.h"

enum {
    ELLM_GRAMMAR_NODES = 1 << 15,
    ELLM_GRAMMAR_RULES = 1 << 12,
    ELLM_GRAMMAR_DEPTH = 60,       /* calls within calls; an answer nests no deeper, so that ELLM_JSON_DEPTH reads it */
    ELLM_GRAMMAR_BYTES = 1 << 18,  /* of a schema's or grammar's text */
    ELLM_GRAMMAR_REGION = 4 << 20, /* memory while one is compiled */
    ELLM_GRAMMAR_FAR = 32,         /* longer tokens are never picked: what is further away cannot matter to one */
    ELLM_GRAMMAR_BLANKS = 24,      /* a line's indent in a JSON text */
};

typedef uint16_t ellm_node_id;
enum { ELLM_NODE_FAIL = 0, ELLM_NODE_END = 1 }; /* the first two of each grammar */

typedef enum ellm_node_kind { ELLM_FAIL, ELLM_END, ELLM_BYTES, ELLM_SPLIT, ELLM_CALL } ellm_node_kind;

typedef struct ellm_node {
    uint8_t kind, least, most; /* BYTES: those that it takes */
    uint8_t need;              /* frames that are needed to get to the rule's end; NO_END: there is no way */
    ellm_node_id a, b;         /* BYTES: next; SPLIT: both ways; CALL: the rule's start, and what follows */
    ellm_node_id like;         /* itself, or another one that ELLM_GRAMMAR_FAR bytes cannot tell from it */
    uint16_t room;             /* string characters that may follow from here on; UINT16_MAX: any number */
} ellm_node;
enum { ELLM_NO_END = 255 };

typedef struct ellm_grammar_cache ellm_grammar_cache; /* matcher.c */

struct ellm_grammar {
    atomic_int n_users;
    ellm_node *nodes;
    uint32_t n_nodes, cap_nodes;
    ellm_node_id root, plain; /* plain: a node that only the start of a string's character leads to */
    ellm_grammar_cache *cache;
};

/* ---- building ---- */

typedef struct ellm_rule {
    const void *source; /* what it comes from, or NULL */
    const char *place;  /* where that stands, for errors */
    ellm_node_id start;
} ellm_rule;

typedef struct ellm_builder {
    ellm_grammar *grammar;
    ellm_region region;
    ellm_rule *rules;
    uint32_t n_rules;
    uint32_t character, blanks, value, wide; /* rules of JSON's grammar, UINT32_MAX: not made yet */
    ellm_status status;                      /* the first failure; what is emitted after it does not count */
    ellm_error *error;
} ellm_builder;

ellm_status ellm_builder_open(ellm_builder *b, ellm_error *error);
/* Checks what was built. On success the grammar is the caller's; frees everything else. */
ellm_status ellm_builder_close(ellm_builder *b, ellm_node_id root, ellm_grammar **grammar);
void ellm_builder_fail(ellm_builder *b, ellm_status status, const char *format, ...) ELLM_PRINTF(3, 4);

ellm_node_id ellm_put(ellm_builder *b, ellm_node_kind kind, ellm_node_id x, ellm_node_id y);
ellm_node_id ellm_put_bytes(ellm_builder *b, int least, int most, ellm_node_id next);
/* Either of two; the same as the other where one is FAIL. */
ellm_node_id ellm_put_either(ellm_builder *b, ellm_node_id x, ellm_node_id y);
ellm_node_id ellm_put_text(ellm_builder *b, const char *text, size_t n_bytes, ellm_node_id next);
/* The characters `first` to `last` in UTF-8, surrogates left out. */
ellm_node_id ellm_put_points(ellm_builder *b, uint32_t first, uint32_t last, ellm_node_id next);
ellm_node_id ellm_put_call(ellm_builder *b, uint32_t rule, ellm_node_id next);
/* A rule without a start yet, which the caller sets. */
uint32_t ellm_rule_new(ellm_builder *b, const void *source, const char *place);

/* `least` to `most` items (negative: any number) one after the other. `item` emits number `index` of them; from `alike`
 * on they are all the same. */
typedef ellm_node_id ellm_put_item(ellm_builder *b, void *user, int64_t index, ellm_node_id next);
ellm_node_id ellm_put_repeat(ellm_builder *b, int64_t least, int64_t most, int64_t alike, ellm_put_item *item,
                             void *user, ellm_node_id next);

/* ---- expressions: what patterns and grammars are read to (grammar_text.c, pattern.c) ---- */

typedef struct ellm_range {
    uint32_t first, last;
} ellm_range;

typedef enum ellm_expr_kind { EXPR_SET, EXPR_SEQUENCE, EXPR_CHOICE, EXPR_REPEAT, EXPR_CALL } ellm_expr_kind;

typedef struct ellm_expr {
    ellm_expr_kind kind;
    struct ellm_expr *last, *before; /* last: of its parts, with `before` from the last to the first; REPEAT has one */
    const ellm_range *ranges;        /* SET: ascending, apart */
    uint32_t n_ranges, rule;         /* rule: CALL; UINT32_MAX: any characters of a JSON string */
    int64_t least, most;             /* REPEAT; negative: any number */
} ellm_expr;

ellm_expr *ellm_expr_new(ellm_builder *b, ellm_expr_kind kind);
void ellm_expr_add(ellm_expr *parent, ellm_expr *part);
/* A set of any ranges, put in order; `negated`: of all other characters, `ascii`: of those below 0x80. */
ellm_expr *ellm_expr_set(ellm_builder *b, const ellm_range *ranges, uint32_t n, bool negated, uint32_t most);
/* in_json: within a JSON string, so that characters are escaped where they must be. */
ellm_node_id ellm_put_expr(ellm_builder *b, const ellm_expr *e, bool in_json, ellm_node_id next);

/* The regular expression `pattern` as what stands between a JSON string's quotes: pattern.c says which are known. */
ellm_node_id ellm_put_pattern(ellm_builder *b, const char *pattern, size_t n_bytes, const char *place,
                              ellm_node_id next);

/* Reads {n}, {n,} or {n,m} behind its bracket. */
bool ellm_count_read(const uint8_t **at, const uint8_t *end, int64_t *least, int64_t *most);
/* A whole grammar: grammar_text.c says how it is written. */
ellm_node_id ellm_put_grammar(ellm_builder *b, const char *text, size_t n_bytes);

/* ---- JSON's own grammar (grammar_json.c) ---- */

/* A blank or a new line, or nothing; a colon and perhaps a blank. */
ellm_node_id ellm_put_blanks(ellm_builder *b, ellm_node_id next);
ellm_node_id ellm_put_colon(ellm_builder *b, ellm_node_id next);
/* A string of so many characters with its quotes. */
ellm_node_id ellm_put_string(ellm_builder *b, int64_t least, int64_t most, ellm_node_id next);
ellm_node_id ellm_put_characters(ellm_builder *b, int64_t least, int64_t most, ellm_node_id next);
/* Any value; any object. */
ellm_node_id ellm_put_any(ellm_builder *b, ellm_node_id next);
ellm_node_id ellm_put_any_object(ellm_builder *b, ellm_node_id next);
ellm_node_id ellm_put_number(ellm_builder *b, bool whole, int most_fraction, ellm_node_id next);
/* A name that is none of `names`, with its quotes; without escapes. */
ellm_node_id ellm_put_other_name(ellm_builder *b, const char *const *names, size_t n_names, ellm_node_id next);
/* This very value, without blanks; a string. */
ellm_node_id ellm_put_json(ellm_builder *b, const ellm_json *value, ellm_node_id next);
ellm_node_id ellm_put_name(ellm_builder *b, const char *name, ellm_node_id next);

/* ---- numbers within bounds (grammar_number.c) ---- */

/* One side of a range, as digits: d.ddd without leading or trailing zeros. */
typedef struct ellm_bound {
    bool is_set, is_negative, is_exclusive;
    int n_whole, n_fraction;
    char whole[24], fraction[24];
} ellm_bound;

/* The shortest digits that are this number again, as JSON writes them. */
void ellm_real_text(double value, char text[40]);
/* Reads a bound; false if it has too many digits. */
bool ellm_bound_read(const ellm_json *value, bool is_exclusive, ellm_bound *bound);
/* Less than, equal to or greater than 0, as a is to b. */
int ellm_bound_compare(const ellm_bound *a, const ellm_bound *b);
/* A number from `least` to `most`. With both unset: any. */
ellm_node_id ellm_put_range(ellm_builder *b, bool whole, const ellm_bound *least, const ellm_bound *most,
                            ellm_node_id next);

/* ---- schemas (schema.c) ---- */

/* Emits what a JSON schema allows; failures name the keyword and where it stands, `place` being the whole. */
ellm_node_id ellm_put_schema(ellm_builder *b, const ellm_json *schema, const char *place, ellm_node_id next);

#endif
