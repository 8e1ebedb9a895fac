/* Arrays and objects of a JSON schema. */
#include <stdio.h>
#include <string.h>

#include "schema_parts.h"

static const ellm_json *get(const ellm_json *schema, const char *keyword) {
    return ellm_json_get(schema, keyword);
}

/* ---- arrays ---- */

typedef struct elements {
    schema_reader *r;
    const ellm_json *prefix, *items; /* NULL: any */
    const char *place;
} elements;

static ellm_node_id put_element(ellm_builder *b, void *user, int64_t index, ellm_node_id next) {
    const elements *e = user;
    const ellm_json *schema = e->prefix != NULL ? e->prefix->first : NULL;
    char key[40] = "items";
    for (int64_t i = 0; i < index && schema != NULL; i++) {
        schema = schema->next;
    }
    if (schema != NULL) {
        snprintf(key, sizeof key, "prefixItems/%d", (int)index);
    } else {
        schema = e->items;
    }
    ellm_node_id at = schema == NULL ? ellm_put_any(b, next) : schema_call(e->r, schema, e->place, key, next);
    return index == 0 ? at : ellm_put_bytes(b, ',', ',', ellm_put_blanks(b, at));
}

ellm_node_id schema_put_arrays(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    elements e = {.r = r, .prefix = get(schema, "prefixItems"), .items = get(schema, "items"), .place = place};
    int64_t least = 0, most = -1, n_prefix = e.prefix != NULL ? e.prefix->count : 0;
    if (!schema_count(r, schema, place, "minItems", &least) || !schema_count(r, schema, place, "maxItems", &most)) {
        return ELLM_NODE_FAIL;
    }
    if (e.prefix != NULL && (e.prefix->kind != ELLM_JSON_ARRAY || n_prefix > most_members)) {
        return schema_refuse(r, place, "prefixItems", "must be an array of at most 512 schemas");
    }
    if (e.items != NULL && e.items->kind == ELLM_JSON_ARRAY) {
        return schema_refuse(r, place, "items", "must be one schema; 'prefixItems' lists several");
    }
    if (schema_is_no(e.items)) {
        most = most < 0 || most > n_prefix ? n_prefix : most;
    }
    ellm_node_id end = ellm_put_blanks(r->b, ellm_put_bytes(r->b, ']', ']', next));
    int64_t alike = n_prefix > 1 ? n_prefix : 1;
    ellm_node_id all = most == 0 && least == 0 ? end : ellm_put_repeat(r->b, least, most, alike, put_element, &e, end);
    return ellm_put_bytes(r->b, '[', '[', ellm_put_blanks(r->b, all));
}

/* ---- objects ---- */

typedef struct members {
    const char *names[most_members];
    const ellm_json *schemas[most_members]; /* NULL: any */
    bool required[most_members];
    size_t n;
} members;

static bool add_member(schema_reader *r, members *m, const char *name, const ellm_json *schema, const char *place) {
    if (m->n == most_members) {
        schema_refuse(r, place, "properties", "are more than 512");
        return false;
    }
    m->names[m->n] = name;
    m->schemas[m->n++] = schema;
    return true;
}

/* Those of `properties` in order, then those that are required besides. */
static bool read_members(schema_reader *r, const ellm_json *schema, const char *place, members *m) {
    const ellm_json *all = get(schema, "properties"), *required = get(schema, "required");
    const ellm_json *more = get(schema, "additionalProperties");
    if (all != NULL && (all->kind != ELLM_JSON_OBJECT || all->count > most_members)) {
        schema_refuse(r, place, "properties", "must be an object of at most 512 schemas");
        return false;
    }
    if (required != NULL && (required->kind != ELLM_JSON_ARRAY || required->count > most_members)) {
        schema_refuse(r, place, "required", "must be an array of at most 512 names");
        return false;
    }
    for (const ellm_json *each = all != NULL ? all->first : NULL; each != NULL; each = each->next) {
        if (ellm_json_get(all, each->key) == each && !add_member(r, m, each->key, each, place)) {
            return false;
        }
    }
    for (const ellm_json *each = required != NULL ? required->first : NULL; each != NULL; each = each->next) {
        size_t i = 0;
        if (each->kind != ELLM_JSON_STRING || strlen(each->text) != each->count) {
            schema_refuse(r, place, "required", "must be an array of names");
            return false;
        }
        while (i < m->n && strcmp(m->names[i], each->text) != 0) {
            i++;
        }
        if (i == m->n && !add_member(r, m, each->text, more, place)) {
            return false;
        }
        m->required[i] = true;
    }
    return true;
}

static uint32_t put_member(schema_reader *r, const members *m, size_t i, const char *place) {
    ellm_builder *b = r->b;
    uint32_t rule = ellm_rule_new(b, NULL, "");
    const char *key = m->schemas[i] != NULL && m->schemas[i]->key != NULL ? m->schemas[i]->key : m->names[i];
    ellm_node_id value = m->schemas[i] == NULL
                             ? ellm_put_any(b, ELLM_NODE_END)
                             : schema_call(r, m->schemas[i], schema_place(r, place, "properties"), key, ELLM_NODE_END);
    ellm_node_id start = value == ELLM_NODE_FAIL ? value : ellm_put_name(b, m->names[i], ellm_put_colon(b, value));
    b->rules[rule].start = start;
    return rule;
}

ellm_node_id schema_put_objects(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    ellm_builder *b = r->b;
    const ellm_json *more = get(schema, "additionalProperties");
    members *m = ellm_region_alloc(&b->region, 1, sizeof *m);
    if (m == NULL) {
        ellm_builder_fail(b, ELLM_GRAMMAR_LIMIT, "it is too large");
        return ELLM_NODE_FAIL;
    }
    if (!read_members(r, schema, place, m)) {
        return ELLM_NODE_FAIL;
    }
    bool is_open = more == NULL ? m->n == 0 : !schema_is_no(more);
    if (is_open && m->n == 0 && (more == NULL || more->kind == ELLM_JSON_BOOL)) {
        return ellm_put_any_object(b, next);
    }
    ellm_node_id end = ellm_put_blanks(b, ellm_put_bytes(b, '}', '}', next)), later = end, first = end;
    if (is_open) { /* any number of others */
        uint32_t rule = ellm_rule_new(b, NULL, "");
        bool is_any = more == NULL || more->kind == ELLM_JSON_BOOL;
        ellm_node_id value = is_any ? ellm_put_any(b, ELLM_NODE_END)
                                    : schema_call(r, more, place, "additionalProperties", ELLM_NODE_END);
        ellm_node_id start =
            value == ELLM_NODE_FAIL ? value : ellm_put_other_name(b, m->names, m->n, ellm_put_colon(b, value));
        later = ellm_put(b, ELLM_SPLIT, ELLM_NODE_FAIL, end);
        ellm_node_id each = ellm_put_call(b, rule, later);
        ellm_node_id comma = ellm_put_bytes(b, ',', ',', ellm_put_blanks(b, each));
        if (b->status != ELLM_OK) {
            return ELLM_NODE_FAIL;
        }
        b->rules[rule].start = start;
        b->grammar->nodes[later].a = comma;
        first = ellm_put_either(b, each, end);
    }
    for (size_t i = m->n; i-- > 0 && b->status == ELLM_OK;) {
        uint32_t rule = put_member(r, m, i, place);
        ellm_node_id each = ellm_put_call(b, rule, later);
        ellm_node_id comma = ellm_put_bytes(b, ',', ',', ellm_put_blanks(b, each));
        bool needed = m->required[i];
        later = ellm_put_either(b, comma, needed ? (ellm_node_id)ELLM_NODE_FAIL : later);
        first = ellm_put_either(b, each, needed ? (ellm_node_id)ELLM_NODE_FAIL : first);
    }
    return ellm_put_bytes(b, '{', '{', ellm_put_blanks(b, first));
}
