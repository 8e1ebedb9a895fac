/* JSON schemas (2020-12, and what older drafts share with it) to grammars.
 *
 * What a grammar allows always satisfies the schema; it may allow less: keys come in the schema's order, without others
 * unless `additionalProperties` says so, and numbers have at most 15 digits. Each schema within the schema is a rule that
 * is emitted once, so that the grammar is no longer than the text, whatever refers to what. Keywords that are not known
 * are refused: an answer that ignores one would be wrong. runtime_c/serve/README.md lists those that are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema_parts.h"

/* What a keyword is about: types, or one of these. */
enum { K_NOTE = 128, K_WHOLE = 256 };

static const struct {
    char name[21]; /* no pointer, which costs more than what is empty here */
    uint16_t about;
} keywords[] = {
    {"type", K_WHOLE},
    {"enum", K_WHOLE},
    {"const", K_WHOLE},
    {"$ref", K_WHOLE},
    {"anyOf", K_WHOLE},
    {"oneOf", K_WHOLE},
    {"allOf", K_WHOLE},
    {"properties", T_OBJECT},
    {"required", T_OBJECT},
    {"additionalProperties", T_OBJECT},
    {"items", T_ARRAY},
    {"prefixItems", T_ARRAY},
    {"minItems", T_ARRAY},
    {"maxItems", T_ARRAY},
    {"minLength", T_STRING},
    {"maxLength", T_STRING},
    {"pattern", T_STRING},
    {"format", T_STRING},
    {"minimum", T_NUMBER},
    {"maximum", T_NUMBER},
    {"exclusiveMinimum", T_NUMBER},
    {"exclusiveMaximum", T_NUMBER},
    {"title", K_NOTE},
    {"description", K_NOTE},
    {"default", K_NOTE},
    {"examples", K_NOTE},
    {"example", K_NOTE},
    {"$schema", K_NOTE},
    {"$id", K_NOTE},
    {"$comment", K_NOTE},
    {"$defs", K_NOTE},
    {"definitions", K_NOTE},
    {"deprecated", K_NOTE},
    {"readOnly", K_NOTE},
    {"writeOnly", K_NOTE},
    {"discriminator", K_NOTE},
};
enum { n_keywords = sizeof keywords / sizeof *keywords };

ellm_node_id schema_refuse(schema_reader *r, const char *place, const char *keyword, const char *why) {
    ellm_builder_fail(r->b, ELLM_GRAMMAR_INVALID, "%.*s: '%.100s' %s", (int)longest_place, place, keyword, why);
    return ELLM_NODE_FAIL;
}

static int about(const char *keyword) {
    for (int i = 0; i < n_keywords; i++) {
        if (strcmp(keywords[i].name, keyword) == 0) {
            return keywords[i].about;
        }
    }
    return strncmp(keyword, "x-", 2) == 0 ? K_NOTE : 0;
}

static const ellm_json *get(const ellm_json *schema, const char *keyword) {
    return ellm_json_get(schema, keyword);
}

/* The place of a part, "PLACE/KEY". */
const char *schema_place(schema_reader *r, const char *place, const char *key) {
    size_t n = strlen(place), more = strlen(key);
    more = more > 100 ? 100 : more;
    char *text = ellm_region_alloc(&r->b->region, n + more + 2, 1);
    if (text == NULL) {
        ellm_builder_fail(r->b, ELLM_GRAMMAR_LIMIT, "it is too large");
        return place;
    }
    snprintf(text, n + more + 2, "%s/%.*s", place, (int)more, key);
    return text;
}

static uint32_t rule_of(schema_reader *r, const ellm_json *schema, const char *place, const char *key) {
    for (uint32_t i = 0; i < r->b->n_rules; i++) {
        if (r->b->rules[i].source == schema) {
            return i;
        }
    }
    return ellm_rule_new(r->b, schema, key != NULL ? schema_place(r, place, key) : place);
}

ellm_node_id schema_call(schema_reader *r, const ellm_json *schema, const char *place, const char *key,
                         ellm_node_id next) {
    if (schema->kind == ELLM_JSON_BOOL) {
        return schema->integer != 0 ? ellm_put_any(r->b, next) : (ellm_node_id)ELLM_NODE_FAIL;
    }
    return ellm_put_call(r->b, rule_of(r, schema, place, key), next);
}

/* ---- $ref ---- */

/* One step of a pointer: ~0 ~1 and %XX as RFC 6901 has them. */
static const ellm_json *step_to(const ellm_json *from, const char *at, size_t n) {
    char key[512];
    size_t n_key = 0;
    for (size_t i = 0; i < n && n_key + 1 < sizeof key; i++) {
        char c = at[i];
        if (c == '%' && i + 2 < n) {
            const char digits[3] = {at[i + 1], at[i + 2], '\0'};
            c = (char)strtoul(digits, NULL, 16);
            i += 2;
        } else if (c == '~' && i + 1 < n) {
            c = at[++i] == '1' ? '/' : '~';
        }
        key[n_key++] = c;
    }
    key[n_key] = '\0';
    if (from->kind != ELLM_JSON_ARRAY) {
        return ellm_json_get(from, key);
    }
    size_t index = 0;
    for (const char *digit = key; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9' || index > most_count) {
            return NULL;
        }
        index = index * 10 + (size_t)(*digit - '0');
    }
    const ellm_json *each = from->first;
    while (each != NULL && index-- > 0) {
        each = each->next;
    }
    return each;
}

const ellm_json *schema_target(const schema_reader *r, const ellm_json *ref) {
    const char *at = ellm_json_text(ref, 4096);
    const ellm_json *found = r->root;
    if (at == NULL || *at++ != '#') {
        return NULL;
    }
    while (found != NULL && *at == '/') {
        size_t n = strcspn(++at, "/");
        found = step_to(found, at, n);
        at += n;
    }
    return *at == '\0' ? found : NULL;
}

/* ---- types ---- */

static int type_named(const ellm_json *name) {
    static const struct {
        const char *name;
        int type;
    } types[] = {{"null", T_NULL},     {"boolean", T_BOOLEAN}, {"object", T_OBJECT}, {"array", T_ARRAY},
                 {"string", T_STRING}, {"integer", T_INTEGER}, {"number", T_NUMBER}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (ellm_json_equals(name, types[i].name)) {
            return types[i].type;
        }
    }
    return 0;
}

/* The types that `type` names; -1: it is malformed; T_ANY without it. */
int schema_types(const ellm_json *schema) {
    const ellm_json *type = get(schema, "type");
    if (type == NULL) {
        return T_ANY;
    }
    int types = type->kind == ELLM_JSON_ARRAY ? 0 : type_named(type);
    for (const ellm_json *each = type->kind == ELLM_JSON_ARRAY ? type->first : NULL; each != NULL; each = each->next) {
        int one = type_named(each);
        types = one == 0 || types < 0 ? -1 : types | one;
    }
    return types == 0 ? -1 : types;
}

int schema_type_of(const ellm_json *value) {
    static const int types[] = {[ELLM_JSON_NULL] = T_NULL,     [ELLM_JSON_BOOL] = T_BOOLEAN,
                                [ELLM_JSON_INT] = T_INTEGER,   [ELLM_JSON_REAL] = T_REAL,
                                [ELLM_JSON_STRING] = T_STRING, [ELLM_JSON_ARRAY] = T_ARRAY,
                                [ELLM_JSON_OBJECT] = T_OBJECT};
    bool is_whole = value->kind == ELLM_JSON_REAL && value->real > -9e15 && value->real < 9e15
                    && !((double)(int64_t)value->real < value->real || (double)(int64_t)value->real > value->real);
    return is_whole ? T_INTEGER : types[value->kind];
}

const ellm_json *schema_values(const ellm_json *schema, bool *is_one) {
    const ellm_json *all = get(schema, "enum"), *one = get(schema, "const");
    *is_one = one != NULL;
    return one != NULL ? one : all != NULL && all->kind == ELLM_JSON_ARRAY ? all->first : NULL;
}

bool schema_is_no(const ellm_json *value) {
    return value != NULL && value->kind == ELLM_JSON_BOOL && value->integer == 0;
}

/* ---- keywords ---- */

/* Refuses keywords that are not known, and known ones beside `keyword` that would have to hold, too. */
static bool check_keywords(schema_reader *r, const ellm_json *schema, const char *place, const char *keyword,
                           bool type_too) {
    for (const ellm_json *each = schema->first; each != NULL; each = each->next) {
        int what = about(each->key);
        bool is_beside = keyword != NULL && what != K_NOTE && strcmp(each->key, keyword) != 0
                         && !(type_too && strcmp(each->key, "type") == 0);
        if (what == 0 && strcmp(each->key, "uniqueItems") == 0 && schema_is_no(each)) {
            continue;
        }
        if (what == 0 || is_beside) {
            char why[80] = "is not supported";
            if (what != 0) {
                snprintf(why, sizeof why, "beside '%s' is not supported", keyword);
            }
            schema_refuse(r, place, each->key, why);
            return false;
        }
    }
    return true;
}

/* A count; false if it is malformed. */
bool schema_count(schema_reader *r, const ellm_json *schema, const char *place, const char *keyword, int64_t *count) {
    const ellm_json *value = get(schema, keyword);
    if (value != NULL && !ellm_json_int(value, 0, INT64_MAX, count)) {
        schema_refuse(r, place, keyword, "must be a whole number from 0 on");
        return false;
    }
    if (*count > most_count) {
        schema_refuse(r, place, keyword, "is too large");
        return false;
    }
    return true;
}

/* The tighter one of an inclusive and an exclusive bound. */
static bool read_bound(schema_reader *r, const ellm_json *schema, const char *place, bool is_upper, ellm_bound *bound) {
    static const char names[][2][17] = {{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}};
    *bound = (ellm_bound){0};
    for (int i = 0; i < 2; i++) {
        const char *keyword = names[is_upper][i];
        const ellm_json *value = get(schema, keyword);
        ellm_bound one;
        double real = 0;
        if (value == NULL) {
            continue;
        }
        if (!ellm_json_real(value, &real)) {
            schema_refuse(r, place, keyword, "must be a number");
            return false;
        }
        if (value->kind == ELLM_JSON_REAL
            && (is_upper ? real >= 9.2e18 : real <= -9.2e18)) { /* further than anything that is written */
            continue;
        }
        if (!ellm_bound_read(value, i == 1, &one)) {
            schema_refuse(r, place, keyword, "has too many digits");
            return false;
        }
        int order = bound->is_set ? ellm_bound_compare(&one, bound) : 0;
        if (!bound->is_set || order == 0 || (order < 0) == is_upper) {
            *bound = one;
        }
    }
    return true;
}

static ellm_node_id put_numbers(schema_reader *r, const ellm_json *schema, const char *place, bool whole,
                                ellm_node_id next) {
    ellm_bound least, most;
    if (!read_bound(r, schema, place, false, &least) || !read_bound(r, schema, place, true, &most)) {
        return ELLM_NODE_FAIL;
    }
    return ellm_put_range(r->b, whole, &least, &most, next);
}

#define DATE                                                                                                           \
    "(\\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8])))"
#define TIME  "(([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d))"
#define OCTET "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
#define LABEL "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"

static ellm_node_id put_format(schema_reader *r, const ellm_json *format, const char *place, ellm_node_id next) {
    static const char formats[] = /* the name and the pattern of each */
        "date\0"
        "^" DATE "$\0"
        "time\0"
        "^" TIME "$\0"
        "date-time\0"
        "^" DATE "T" TIME "$\0"
        "duration\0"
        "^P(\\d{1,4}W|\\d{1,4}D(T\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?)?|T(\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?|"
        "\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S))$\0"
        "uuid\0"
        "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$\0"
        "ipv4\0"
        "^(" OCTET "\\.){3}" OCTET "$\0"
        "hostname\0"
        "^" LABEL "(\\." LABEL "){0,6}$\0"
        "email\0"
        "^[a-z0-9_+-]{1,30}(\\.[a-z0-9_+-]{1,30}){0,3}@" LABEL "(\\." LABEL "){1,6}$\0"
        "uri\0"
        "^https?://" LABEL "(\\." LABEL "){0,6}(:[1-9]\\d{0,3})?(/[A-Za-z0-9._~-]{0,60}){0,10}"
        "(\\?[A-Za-z0-9._~=&-]{0,100})?$";
    const char *name = formats;
    while (name < formats + sizeof formats) {
        const char *pattern = name + strlen(name) + 1;
        if (ellm_json_equals(format, name)) {
            return ellm_put_pattern(r->b, pattern, strlen(pattern), place, next);
        }
        name = pattern + strlen(pattern) + 1;
    }
    return schema_refuse(r, place, "format",
                         "is known as date, time, date-time, duration, uuid, ipv4, hostname, email and uri");
}

static ellm_node_id put_strings(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    const ellm_json *pattern = get(schema, "pattern"), *format = get(schema, "format");
    const ellm_json *lengths[] = {get(schema, "minLength"), get(schema, "maxLength")};
    int64_t least = 0, most = -1;
    if (!schema_count(r, schema, place, "minLength", &least) || !schema_count(r, schema, place, "maxLength", &most)) {
        return ELLM_NODE_FAIL;
    }
    if (pattern == NULL && format == NULL) {
        return ellm_put_string(r->b, least, most, next);
    }
    if (lengths[0] != NULL || lengths[1] != NULL || (pattern != NULL && format != NULL)) {
        const char *other = lengths[0] != NULL ? "minLength" : lengths[1] != NULL ? "maxLength" : "format";
        return schema_refuse(r, place, other,
                             pattern != NULL ? "beside 'pattern' is not supported"
                                             : "beside 'format' is not supported");
    }
    ellm_node_id end = ellm_put_bytes(r->b, '"', '"', next);
    if (pattern != NULL && pattern->kind != ELLM_JSON_STRING) {
        return schema_refuse(r, place, "pattern", "must be a text");
    }
    ellm_node_id inner = pattern != NULL ? ellm_put_pattern(r->b, pattern->text, pattern->count, place, end)
                                         : put_format(r, format, place, end);
    return ellm_put_bytes(r->b, '"', '"', inner);
}

/* ---- a schema ---- */

static ellm_node_id put_values(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    bool is_one;
    const char *keyword = get(schema, "const") != NULL ? "const" : "enum";
    int types = schema_types(schema);
    const ellm_json *value = schema_values(schema, &is_one);
    ellm_node_id found = ELLM_NODE_FAIL;
    if (value == NULL) {
        return schema_refuse(r, place, keyword, "must be an array of values");
    }
    for (; value != NULL && r->b->status == ELLM_OK; value = is_one ? NULL : value->next) {
        if (value->kind == ELLM_JSON_REAL && (value->real >= 9e15 || value->real <= -9e15)) {
            return schema_refuse(r, place, keyword, "has a number too large to be kept exactly");
        }
        if ((schema_type_of(value) & types) != 0) {
            found = ellm_put_either(r->b, found, ellm_put_json(r->b, value, next));
        }
    }
    return found;
}

static ellm_node_id put_branches(schema_reader *r, const ellm_json *schema, const char *place, const char *keyword,
                                 ellm_node_id next) {
    const ellm_json *all = get(schema, keyword);
    ellm_node_id found = ELLM_NODE_FAIL;
    bool is_one_of = strcmp(keyword, "oneOf") == 0;
    const char *own_place = schema_place(r, place, keyword);
    if (all->kind != ELLM_JSON_ARRAY || all->count == 0 || all->count > most_branches) {
        return schema_refuse(r, place, keyword, "must be an array of 1 to 128 schemas");
    }
    if (strcmp(keyword, "allOf") == 0 && all->count > 1) {
        return schema_refuse(r, place, keyword, "is supported with one schema in it");
    }
    int index = 0;
    for (const ellm_json *each = all->first; each != NULL; each = each->next, index++) {
        int other = 0;
        char key[80];
        for (const ellm_json *another = all->first; is_one_of && another != NULL; another = another->next, other++) {
            if (another != each && !schema_excludes(r, each, another, 8)) {
                snprintf(key, sizeof key, "has alternatives that may both hold: %d and %d; use 'anyOf'", index, other);
                return schema_refuse(r, place, keyword, key);
            }
        }
        snprintf(key, sizeof key, "%d", index);
        found = ellm_put_either(r->b, found, schema_call(r, each, own_place, key, next));
    }
    return found;
}

static ellm_node_id put_types(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    int types = schema_types(schema), hinted = 0;
    if (types < 0) {
        return schema_refuse(r, place, "type", "must be one of JSON's types, or an array of them");
    }
    for (const ellm_json *each = schema->first; each != NULL && get(schema, "type") == NULL; each = each->next) {
        int what = about(each->key);
        hinted |= what < K_NOTE ? what : 0;
    }
    if (types == T_ANY && hinted == 0) {
        return ellm_put_any(r->b, next);
    }
    types = hinted != 0 ? hinted : types;
    ellm_builder *b = r->b;
    ellm_node_id found = ELLM_NODE_FAIL;
    if ((types & T_NULL) != 0) found = ellm_put_text(b, "null", 4, next);
    if ((types & T_BOOLEAN) != 0) {
        found = ellm_put_either(
            b, found, ellm_put_either(b, ellm_put_text(b, "true", 4, next), ellm_put_text(b, "false", 5, next)));
    }
    if ((types & T_STRING) != 0) found = ellm_put_either(b, found, put_strings(r, schema, place, next));
    if ((types & T_NUMBER) != 0) {
        found = ellm_put_either(b, found, put_numbers(r, schema, place, (types & T_REAL) == 0, next));
    }
    if ((types & T_ARRAY) != 0) found = ellm_put_either(b, found, schema_put_arrays(r, schema, place, next));
    if ((types & T_OBJECT) != 0) found = ellm_put_either(b, found, schema_put_objects(r, schema, place, next));
    return found;
}

static ellm_node_id put_one(schema_reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    static const char whole[][6] = {"$ref", "anyOf", "oneOf", "allOf"};
    if (schema->kind != ELLM_JSON_OBJECT) {
        ellm_builder_fail(r->b, ELLM_GRAMMAR_INVALID, "%.*s: a schema is an object, true or false", (int)longest_place,
                          place);
        return ELLM_NODE_FAIL;
    }
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        const ellm_json *value = get(schema, whole[i]);
        if (value == NULL) {
            continue;
        }
        if (!check_keywords(r, schema, place, whole[i], false)) {
            return ELLM_NODE_FAIL;
        }
        if (i > 0) {
            return put_branches(r, schema, place, whole[i], next);
        }
        const ellm_json *target = schema_target(r, value);
        const char *text = ellm_json_text(value, 150);
        return target != NULL ? schema_call(r, target, text != NULL ? text : place, NULL, next)
                              : schema_refuse(r, place, "$ref", "leads nowhere; it must be '#/...' within the schema");
    }
    bool has_values = get(schema, "enum") != NULL || get(schema, "const") != NULL;
    const char *keyword = !has_values ? NULL : get(schema, "const") != NULL ? "const" : "enum";
    if (!check_keywords(r, schema, place, keyword, true)) {
        return ELLM_NODE_FAIL;
    }
    return has_values ? put_values(r, schema, place, next) : put_types(r, schema, place, next);
}

ellm_node_id ellm_put_schema(ellm_builder *b, const ellm_json *schema, const char *place, ellm_node_id next) {
    schema_reader r = {.b = b, .root = schema};
    uint32_t done = b->n_rules;
    ellm_node_id start = schema_call(&r, schema, place, NULL, next);
    for (; done < b->n_rules && b->status == ELLM_OK; done++) { /* each may add more */
        const ellm_rule rule = b->rules[done];
        if (rule.source != NULL) {
            ellm_node_id node = put_one(&r, rule.source, rule.place, ELLM_NODE_END);
            b->rules[done].start = node;
        }
    }
    return start;
}
