/* JSON schemas (2020-12, and what older drafts share with it) to grammars.
 *
 * What a grammar allows always satisfies the schema; it may allow less: keys come in the schema's order, without others
 * unless `additionalProperties` says so, and numbers have at most 15 digits. Each schema within the schema is a rule that
 * is emitted once, so that the grammar is no longer than the text, whatever refers to what. Keywords that are not known
 * are refused: an answer that ignores one would be wrong. runtime_c/serve/README.md lists those that are. */
#include <stdio.h>
#include <string.h>

#include "grammar.h"

enum { most_members = 512, most_branches = 128, most_count = 1 << 15, most_compared = 1 << 18, longest_place = 200 };

typedef struct reader {
    ellm_builder *b;
    const ellm_json *root;
    const char *root_place;
    int64_t n_compared; /* work spent on telling alternatives apart */
} reader;

enum { T_NULL = 1, T_BOOLEAN = 2, T_OBJECT = 4, T_ARRAY = 8, T_STRING = 16, T_INTEGER = 32, T_REAL = 64, T_ANY = 127 };
enum { T_NUMBER = T_INTEGER | T_REAL };

/* What a keyword is about: types, or one of these. */
enum { K_NOTE = 128, K_WHOLE = 256 };

static const struct {
    const char *name;
    int about;
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

static ellm_node_id refuse(reader *r, const char *place, const char *keyword, const char *why) {
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
static const char *place_of(reader *r, const char *place, const char *key) {
    size_t n = strlen(place), more = strlen(key);
    more = more > 100 ? 100 : more;
    char *text = ellm_region_alloc(&r->b->region, n + more + 2, 1);
    if (text == NULL) {
        ellm_builder_fail(r->b, ELLM_GRAMMAR_LIMIT, "it is too large");
        return place;
    }
    memcpy(text, place, n);
    text[n] = '/';
    memcpy(text + n + 1, key, more);
    return text;
}

static uint32_t rule_of(reader *r, const ellm_json *schema, const char *place, const char *key) {
    for (uint32_t i = 0; i < r->b->n_rules; i++) {
        if (r->b->rules[i].source == schema) {
            return i;
        }
    }
    return ellm_rule_new(r->b, schema, key != NULL ? place_of(r, place, key) : place);
}

static ellm_node_id call(reader *r, const ellm_json *schema, const char *place, const char *key, ellm_node_id next) {
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
        unsigned code = 0;
        char c = at[i];
        if (c == '%' && i + 2 < n && sscanf(at + i + 1, "%2x", &code) == 1) {
            c = (char)code;
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

static const ellm_json *find_target(const reader *r, const ellm_json *ref) {
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
static int types_named(const ellm_json *schema) {
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

static int type_of_value(const ellm_json *value) {
    static const int types[] = {[ELLM_JSON_NULL] = T_NULL,     [ELLM_JSON_BOOL] = T_BOOLEAN,
                                [ELLM_JSON_INT] = T_INTEGER,   [ELLM_JSON_REAL] = T_REAL,
                                [ELLM_JSON_STRING] = T_STRING, [ELLM_JSON_ARRAY] = T_ARRAY,
                                [ELLM_JSON_OBJECT] = T_OBJECT};
    bool is_whole = value->kind == ELLM_JSON_REAL && value->real > -9e15 && value->real < 9e15
                    && !((double)(int64_t)value->real < value->real || (double)(int64_t)value->real > value->real);
    return is_whole ? T_INTEGER : types[value->kind];
}

/* ---- oneOf: which alternatives cannot both hold ---- */

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

/* The values of enum or const: the first, and the one behind the last. */
static const ellm_json *values_of(const ellm_json *schema, bool *is_one) {
    const ellm_json *all = get(schema, "enum"), *one = get(schema, "const");
    *is_one = one != NULL;
    return one != NULL ? one : all != NULL && all->kind == ELLM_JSON_ARRAY ? all->first : NULL;
}

static int types_allowed(const ellm_json *schema) {
    int types = types_named(schema), listed = 0;
    bool is_one;
    const ellm_json *value = values_of(schema, &is_one);
    for (const ellm_json *each = value; each != NULL; each = is_one ? NULL : each->next) {
        listed |= type_of_value(each);
    }
    return types < 0 ? 0 : value != NULL ? types & listed : types;
}

static const ellm_json *resolve(const reader *r, const ellm_json *schema) {
    for (int i = 0; i < 16 && schema != NULL && get(schema, "$ref") != NULL; i++) {
        schema = find_target(r, get(schema, "$ref"));
    }
    return schema;
}

static bool is_listed(reader *r, const ellm_json *list, const char *name) {
    for (const ellm_json *each = list != NULL ? list->first : NULL; each != NULL; each = each->next) {
        r->n_compared++;
        if (ellm_json_equals(each, name)) {
            return true;
        }
    }
    return false;
}

static const ellm_json *property(reader *r, const ellm_json *schema, const char *name) {
    const ellm_json *all = get(schema, "properties");
    r->n_compared += all != NULL ? all->count : 0;
    return ellm_json_get(all, name);
}

static bool is_no(const ellm_json *value) {
    return value != NULL && value->kind == ELLM_JSON_BOOL && value->integer == 0;
}

/* Whether objects of x have no key but those of its properties. As we write them. */
static bool is_closed(const ellm_json *x) {
    const ellm_json *more = get(x, "additionalProperties"), *all = get(x, "properties");
    return is_no(more) || (more == NULL && all != NULL && all->count > 0);
}

/* True if nothing that is written for x is valid for y. */
static bool excludes(reader *r, const ellm_json *x, const ellm_json *y, int depth) {
    x = resolve(r, x);
    y = resolve(r, y);
    if (x == NULL || y == NULL || depth == 0 || r->n_compared > most_compared) {
        return false;
    }
    bool x_one, y_one;
    const ellm_json *xs = values_of(x, &x_one), *ys = values_of(y, &y_one);
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
    if (types_named(x) != T_OBJECT) {
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
        if ((each->kind == ELLM_JSON_STRING && in_y == NULL && is_no(get(y, "additionalProperties")))
            || (in_x != NULL && in_y != NULL && excludes(r, in_x, in_y, depth - 1))) {
            return true;
        }
    }
    return false;
}

/* ---- keywords ---- */

/* Refuses keywords that are not known, and known ones beside `keyword` that would have to hold, too. */
static bool check_keywords(reader *r, const ellm_json *schema, const char *place, const char *keyword, bool type_too) {
    for (const ellm_json *each = schema->first; each != NULL; each = each->next) {
        int what = about(each->key);
        bool is_beside = keyword != NULL && what != K_NOTE && strcmp(each->key, keyword) != 0
                         && !(type_too && strcmp(each->key, "type") == 0);
        if (what == 0 && strcmp(each->key, "uniqueItems") == 0 && is_no(each)) {
            continue;
        }
        if (what == 0 || is_beside) {
            char why[80] = "is not supported";
            if (what != 0) {
                snprintf(why, sizeof why, "beside '%s' is not supported", keyword);
            }
            refuse(r, place, each->key, why);
            return false;
        }
    }
    return true;
}

/* A count; false if it is malformed. */
static bool read_count(reader *r, const ellm_json *schema, const char *place, const char *keyword, int64_t *count) {
    const ellm_json *value = get(schema, keyword);
    if (value != NULL && !ellm_json_int(value, 0, INT64_MAX, count)) {
        refuse(r, place, keyword, "must be a whole number from 0 on");
        return false;
    }
    if (*count > most_count) {
        refuse(r, place, keyword, "is too large");
        return false;
    }
    return true;
}

/* The tighter one of an inclusive and an exclusive bound. */
static bool read_bound(reader *r, const ellm_json *schema, const char *place, bool is_upper, ellm_bound *bound) {
    static const char *const names[][2] = {{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}};
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
            refuse(r, place, keyword, "must be a number");
            return false;
        }
        if (value->kind == ELLM_JSON_REAL
            && (is_upper ? real >= 9.2e18 : real <= -9.2e18)) { /* further than anything that is written */
            continue;
        }
        if (!ellm_bound_read(value, i == 1, &one)) {
            refuse(r, place, keyword, "has too many digits");
            return false;
        }
        int order = bound->is_set ? ellm_bound_compare(&one, bound) : 0;
        if (!bound->is_set || order == 0 || (order < 0) == is_upper) {
            *bound = one;
        }
    }
    return true;
}

static ellm_node_id put_numbers(reader *r, const ellm_json *schema, const char *place, bool whole, ellm_node_id next) {
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

static ellm_node_id put_format(reader *r, const ellm_json *format, const char *place, ellm_node_id next) {
    static const char *const formats[][2] = {
        {"date", "^" DATE "$"},
        {"time", "^" TIME "$"},
        {"date-time", "^" DATE "T" TIME "$"},
        {"duration", "^P(\\d{1,4}W|\\d{1,4}D(T\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?)?|T(\\d{1,4}H(\\d{1,4}M(\\d{1,4}S)?)?|"
                     "\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S))$"},
        {"uuid", "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"},
        {"ipv4", "^(" OCTET "\\.){3}" OCTET "$"},
        {"hostname", "^" LABEL "(\\." LABEL "){0,6}$"},
        {"email", "^[a-z0-9_+-]{1,30}(\\.[a-z0-9_+-]{1,30}){0,3}@" LABEL "(\\." LABEL "){1,6}$"},
        {"uri", "^https?://" LABEL "(\\." LABEL "){0,6}(:[1-9]\\d{0,3})?(/[A-Za-z0-9._~-]{0,60}){0,10}"
                "(\\?[A-Za-z0-9._~=&-]{0,100})?$"},
    };
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        if (ellm_json_equals(format, formats[i][0])) {
            return ellm_put_pattern(r->b, formats[i][1], strlen(formats[i][1]), place, next);
        }
    }
    return refuse(r, place, "format",
                  "is known as date, time, date-time, duration, uuid, ipv4, hostname, email and uri");
}

static ellm_node_id put_strings(reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    const ellm_json *pattern = get(schema, "pattern"), *format = get(schema, "format");
    const ellm_json *lengths[] = {get(schema, "minLength"), get(schema, "maxLength")};
    int64_t least = 0, most = -1;
    if (!read_count(r, schema, place, "minLength", &least) || !read_count(r, schema, place, "maxLength", &most)) {
        return ELLM_NODE_FAIL;
    }
    if (pattern == NULL && format == NULL) {
        return ellm_put_string(r->b, least, most, next);
    }
    if (lengths[0] != NULL || lengths[1] != NULL || (pattern != NULL && format != NULL)) {
        const char *other = lengths[0] != NULL ? "minLength" : lengths[1] != NULL ? "maxLength" : "format";
        return refuse(r, place, other,
                      pattern != NULL ? "beside 'pattern' is not supported" : "beside 'format' is not supported");
    }
    ellm_node_id end = ellm_put_bytes(r->b, '"', '"', next);
    if (pattern != NULL && pattern->kind != ELLM_JSON_STRING) {
        return refuse(r, place, "pattern", "must be a text");
    }
    ellm_node_id inner = pattern != NULL ? ellm_put_pattern(r->b, pattern->text, pattern->count, place, end)
                                         : put_format(r, format, place, end);
    return ellm_put_bytes(r->b, '"', '"', inner);
}

/* ---- arrays ---- */

typedef struct elements {
    reader *r;
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
    ellm_node_id at = schema == NULL ? ellm_put_any(b, next) : call(e->r, schema, e->place, key, next);
    return index == 0 ? at : ellm_put_bytes(b, ',', ',', ellm_put_blanks(b, at));
}

static ellm_node_id put_arrays(reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    elements e = {.r = r, .prefix = get(schema, "prefixItems"), .items = get(schema, "items"), .place = place};
    int64_t least = 0, most = -1, n_prefix = e.prefix != NULL ? e.prefix->count : 0;
    if (!read_count(r, schema, place, "minItems", &least) || !read_count(r, schema, place, "maxItems", &most)) {
        return ELLM_NODE_FAIL;
    }
    if (e.prefix != NULL && (e.prefix->kind != ELLM_JSON_ARRAY || n_prefix > most_members)) {
        return refuse(r, place, "prefixItems", "must be an array of at most 512 schemas");
    }
    if (e.items != NULL && e.items->kind == ELLM_JSON_ARRAY) {
        return refuse(r, place, "items", "must be one schema; 'prefixItems' lists several");
    }
    if (is_no(e.items)) {
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

static bool add_member(reader *r, members *m, const char *name, const ellm_json *schema, const char *place) {
    if (m->n == most_members) {
        refuse(r, place, "properties", "are more than 512");
        return false;
    }
    m->names[m->n] = name;
    m->schemas[m->n++] = schema;
    return true;
}

/* Those of `properties` in order, then those that are required besides. */
static bool read_members(reader *r, const ellm_json *schema, const char *place, members *m) {
    const ellm_json *all = get(schema, "properties"), *required = get(schema, "required");
    const ellm_json *more = get(schema, "additionalProperties");
    if (all != NULL && (all->kind != ELLM_JSON_OBJECT || all->count > most_members)) {
        refuse(r, place, "properties", "must be an object of at most 512 schemas");
        return false;
    }
    if (required != NULL && (required->kind != ELLM_JSON_ARRAY || required->count > most_members)) {
        refuse(r, place, "required", "must be an array of at most 512 names");
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
            refuse(r, place, "required", "must be an array of names");
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

static uint32_t put_member(reader *r, const members *m, size_t i, const char *place) {
    ellm_builder *b = r->b;
    uint32_t rule = ellm_rule_new(b, NULL, "");
    const char *key = m->schemas[i] != NULL && m->schemas[i]->key != NULL ? m->schemas[i]->key : m->names[i];
    ellm_node_id value = m->schemas[i] == NULL
                             ? ellm_put_any(b, ELLM_NODE_END)
                             : call(r, m->schemas[i], place_of(r, place, "properties"), key, ELLM_NODE_END);
    ellm_node_id start = value == ELLM_NODE_FAIL ? value : ellm_put_name(b, m->names[i], ellm_put_colon(b, value));
    b->rules[rule].start = start;
    return rule;
}

static ellm_node_id put_objects(reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
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
    bool is_open = more == NULL ? m->n == 0 : !is_no(more);
    if (is_open && m->n == 0 && (more == NULL || more->kind == ELLM_JSON_BOOL)) {
        return ellm_put_any_object(b, next);
    }
    ellm_node_id end = ellm_put_blanks(b, ellm_put_bytes(b, '}', '}', next)), later = end, first = end;
    if (is_open) { /* any number of others */
        uint32_t rule = ellm_rule_new(b, NULL, "");
        bool is_any = more == NULL || more->kind == ELLM_JSON_BOOL;
        ellm_node_id value =
            is_any ? ellm_put_any(b, ELLM_NODE_END) : call(r, more, place, "additionalProperties", ELLM_NODE_END);
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

/* ---- a schema ---- */

static ellm_node_id put_values(reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    bool is_one;
    const char *keyword = get(schema, "const") != NULL ? "const" : "enum";
    int types = types_named(schema);
    const ellm_json *value = values_of(schema, &is_one);
    ellm_node_id found = ELLM_NODE_FAIL;
    if (value == NULL) {
        return refuse(r, place, keyword, "must be an array of values");
    }
    for (; value != NULL && r->b->status == ELLM_OK; value = is_one ? NULL : value->next) {
        if (value->kind == ELLM_JSON_REAL && (value->real >= 9e15 || value->real <= -9e15)) {
            return refuse(r, place, keyword, "has a number too large to be kept exactly");
        }
        if ((type_of_value(value) & types) != 0) {
            found = ellm_put_either(r->b, found, ellm_put_json(r->b, value, next));
        }
    }
    return found;
}

static ellm_node_id put_branches(reader *r, const ellm_json *schema, const char *place, const char *keyword,
                                 ellm_node_id next) {
    const ellm_json *all = get(schema, keyword);
    ellm_node_id found = ELLM_NODE_FAIL;
    bool is_one_of = strcmp(keyword, "oneOf") == 0;
    const char *own_place = place_of(r, place, keyword);
    if (all->kind != ELLM_JSON_ARRAY || all->count == 0 || all->count > most_branches) {
        return refuse(r, place, keyword, "must be an array of 1 to 128 schemas");
    }
    if (strcmp(keyword, "allOf") == 0 && all->count > 1) {
        return refuse(r, place, keyword, "is supported with one schema in it");
    }
    int index = 0;
    for (const ellm_json *each = all->first; each != NULL; each = each->next, index++) {
        int other = 0;
        char key[80];
        for (const ellm_json *another = all->first; is_one_of && another != NULL; another = another->next, other++) {
            if (another != each && !excludes(r, each, another, 8)) {
                snprintf(key, sizeof key, "has alternatives that may both hold: %d and %d; use 'anyOf'", index, other);
                return refuse(r, place, keyword, key);
            }
        }
        snprintf(key, sizeof key, "%d", index);
        found = ellm_put_either(r->b, found, call(r, each, own_place, key, next));
    }
    return found;
}

static ellm_node_id put_types(reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    int types = types_named(schema), hinted = 0;
    if (types < 0) {
        return refuse(r, place, "type", "must be one of JSON's types, or an array of them");
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
    if ((types & T_ARRAY) != 0) found = ellm_put_either(b, found, put_arrays(r, schema, place, next));
    if ((types & T_OBJECT) != 0) found = ellm_put_either(b, found, put_objects(r, schema, place, next));
    return found;
}

static ellm_node_id put_one(reader *r, const ellm_json *schema, const char *place, ellm_node_id next) {
    static const char *const whole[] = {"$ref", "anyOf", "oneOf", "allOf"};
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
        const ellm_json *target = find_target(r, value);
        const char *text = ellm_json_text(value, 150);
        return target != NULL ? call(r, target, text != NULL ? text : place, NULL, next)
                              : refuse(r, place, "$ref", "leads nowhere; it must be '#/...' within the schema");
    }
    bool has_values = get(schema, "enum") != NULL || get(schema, "const") != NULL;
    const char *keyword = !has_values ? NULL : get(schema, "const") != NULL ? "const" : "enum";
    if (!check_keywords(r, schema, place, keyword, true)) {
        return ELLM_NODE_FAIL;
    }
    return has_values ? put_values(r, schema, place, next) : put_types(r, schema, place, next);
}

ellm_node_id ellm_put_schema(ellm_builder *b, const ellm_json *schema, const char *place, ellm_node_id next) {
    reader r = {.b = b, .root = schema, .root_place = place};
    uint32_t done = b->n_rules;
    ellm_node_id start = call(&r, schema, place, NULL, next);
    for (; done < b->n_rules && b->status == ELLM_OK; done++) { /* each may add more */
        const ellm_rule rule = b->rules[done];
        if (rule.source != NULL) {
            ellm_node_id node = put_one(&r, rule.source, rule.place, ELLM_NODE_END);
            b->rules[done].start = node;
        }
    }
    return start;
}
