/* Alternatives of `oneOf`: which of them cannot both hold, as far as it can be told. */
#include <string.h>

#include "schema_parts.h"

static const ellm_json *get(const ellm_json *schema, const char *keyword) {
    return ellm_json_get(schema, keyword);
}

static bool may_equal(const ellm_json *a, const ellm_json *b) {
    double x, y;
    if (ellm_json_real(a, &x) && ellm_json_real(b, &y)) {
        return !(x < y || x > y);
    }
    if (a->kind != b->kind) {
        return false;
    }
    switch (a->kind) {
    case ELLM_JSON_STRING: return a->count == b->count && memcmp(a->text, b->text, a->count) == 0;
    case ELLM_JSON_BOOL: return a->integer == b->integer;
    default: return true;
    }
}

static int types_allowed(const ellm_json *schema) {
    int types = schema_types(schema), listed = 0;
    bool is_one;
    const ellm_json *value = schema_values(schema, &is_one);
    for (const ellm_json *each = value; each != NULL; each = is_one ? NULL : each->next) {
        listed |= schema_type_of(each);
    }
    return types < 0 ? 0 : value != NULL ? types & listed : types;
}

static const ellm_json *resolve(const schema_reader *r, const ellm_json *schema) {
    for (int i = 0; i < 16 && schema != NULL && get(schema, "$ref") != NULL; i++) {
        schema = schema_target(r, get(schema, "$ref"));
    }
    return schema;
}

static bool is_listed(schema_reader *r, const ellm_json *list, const char *name) {
    for (const ellm_json *each = list != NULL ? list->first : NULL; each != NULL; each = each->next) {
        r->n_compared++;
        if (ellm_json_equals(each, name)) {
            return true;
        }
    }
    return false;
}

static const ellm_json *property(schema_reader *r, const ellm_json *schema, const char *name) {
    const ellm_json *all = get(schema, "properties");
    r->n_compared += all != NULL ? all->count : 0;
    return ellm_json_get(all, name);
}

/* Whether objects of x have no key but those of its properties. As we write them. */
static bool is_closed(const ellm_json *x) {
    const ellm_json *more = get(x, "additionalProperties"), *all = get(x, "properties");
    return schema_is_no(more) || (more == NULL && all != NULL && all->count > 0);
}

/* True if nothing that is written for x is valid for y. */
bool schema_excludes(schema_reader *r, const ellm_json *x, const ellm_json *y, int depth) {
    x = resolve(r, x);
    y = resolve(r, y);
    if (x == NULL || y == NULL || depth == 0 || r->n_compared > most_compared) {
        return false;
    }
    bool x_one, y_one;
    const ellm_json *xs = schema_values(x, &x_one), *ys = schema_values(y, &y_one);
    if ((types_allowed(x) & types_allowed(y)) == 0) {
        return true;
    }
    if (xs != NULL && ys != NULL) {
        bool meet = false;
        for (const ellm_json *a = xs; a != NULL; a = x_one ? NULL : a->next) {
            for (const ellm_json *b = ys; b != NULL; b = y_one ? NULL : b->next) {
                meet = meet || ++r->n_compared > most_compared || may_equal(a, b);
            }
        }
        return !meet;
    }
    if (schema_types(x) != T_OBJECT) {
        return false;
    }
    const ellm_json *needs_x = get(x, "required"), *needs_y = get(y, "required");
    for (const ellm_json *each = needs_y != NULL ? needs_y->first : NULL; each != NULL; each = each->next) {
        if (each->kind == ELLM_JSON_STRING && is_closed(x) && property(r, x, each->text) == NULL
            && !is_listed(r, needs_x, each->text)) {
            return true;
        }
    }
    for (const ellm_json *each = needs_x != NULL ? needs_x->first : NULL; each != NULL; each = each->next) {
        const ellm_json *in_x = each->kind == ELLM_JSON_STRING ? property(r, x, each->text) : NULL;
        const ellm_json *in_y = each->kind == ELLM_JSON_STRING ? property(r, y, each->text) : NULL;
        if ((each->kind == ELLM_JSON_STRING && in_y == NULL && schema_is_no(get(y, "additionalProperties")))
            || (in_x != NULL && in_y != NULL && schema_excludes(r, in_x, in_y, depth - 1))) {
            return true;
        }
    }
    return false;
}
