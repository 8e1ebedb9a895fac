/* schema_parts.h: what the files that read JSON schemas share. */
#ifndef ELLM_SCHEMA_PARTS_H
#define ELLM_SCHEMA_PARTS_H

#include "grammar.h"

enum { most_members = 512, most_branches = 128, most_count = 1 << 15, most_compared = 1 << 18, longest_place = 200 };

typedef struct schema_reader {
    ellm_builder *b;
    const ellm_json *root;
    int64_t n_compared; /* work spent on telling alternatives apart */
} schema_reader;

enum { T_NULL = 1, T_BOOLEAN = 2, T_OBJECT = 4, T_ARRAY = 8, T_STRING = 16, T_INTEGER = 32, T_REAL = 64, T_ANY = 127 };
enum { T_NUMBER = T_INTEGER | T_REAL };

/* Fails with the keyword and where it stands; always FAIL. */
ellm_node_id schema_refuse(schema_reader *r, const char *place, const char *keyword, const char *why);
/* The place of a part, "PLACE/KEY". */
const char *schema_place(schema_reader *r, const char *place, const char *key);
/* Goes on with what a schema within the schema allows; `key`: where it stands in `place`, or NULL. */
ellm_node_id schema_call(schema_reader *r, const ellm_json *schema, const char *place, const char *key,
                         ellm_node_id next);
/* A count; false if it is malformed. */
bool schema_count(schema_reader *r, const ellm_json *schema, const char *place, const char *keyword, int64_t *count);
bool schema_is_no(const ellm_json *value);
/* What a $ref leads to, NULL: nowhere. */
const ellm_json *schema_target(const schema_reader *r, const ellm_json *ref);
/* The types that `type` names; -1: it is malformed; T_ANY without it. */
int schema_types(const ellm_json *schema);
int schema_type_of(const ellm_json *value);
/* The values of enum or const: the first of them. */
const ellm_json *schema_values(const ellm_json *schema, bool *is_one);

/* True if nothing that is written for x is valid for y (schema_choice.c). */
bool schema_excludes(schema_reader *r, const ellm_json *x, const ellm_json *y, int depth);
/* schema_lists.c */
ellm_node_id schema_put_arrays(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next);
ellm_node_id schema_put_objects(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next);

#endif
