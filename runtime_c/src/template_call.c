/* Filters, tests, methods and functions of the template language. */
#include "posix.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "template_parts.h"
#include "utf8.h"

/* The argument at `position` among the unnamed ones or called `name`; NULL if it was not given. */
static const value *argument(const machine *vm, const arguments *args, unsigned position, const char *name) {
    unsigned unnamed = 0;
    for (unsigned i = 0; i < args->n; i++) {
        if (args->names[i] == NO_NODE) {
            if (unnamed++ == position) {
                return &args->values[i];
            }
        } else {
            const slice *own = &vm->t->strings[args->names[i]];
            if (own->bytes == strlen(name) && memcmp(vm->t->text + own->offset, name, own->bytes) == 0) {
                return &args->values[i];
            }
        }
    }
    return NULL;
}

static value wrong(machine *vm, const char *what) {
    return ellm_vm_fail(vm, "chat template, line %u: %s", (unsigned)vm->line, what);
}

static int64_t integer_or(machine *vm, const value *v, int64_t fallback) {
    if (v == NULL || v->kind == NONE) {
        return fallback;
    }
    if (v->kind != INTEGER && v->kind != BOOLEAN) {
        wrong(vm, "an integer is needed here");
        return fallback;
    }
    return v->i;
}

static bool truth_or(const value *v, bool fallback) {
    return v == NULL ? fallback : ellm_vm_truth(v);
}

static value of_list(const list *items) {
    return items != NULL ? (value){.kind = LIST, .list = items} : (value){.kind = UNDEFINED};
}

/* "a.b.0": one item after the other, as Jinja's attribute arguments work. */
static value by_path(machine *vm, const value *v, const value *path) {
    value found = *v;
    if (path->kind != STRING) {
        return ellm_vm_item(vm, v, path);
    }
    for (size_t at = 0; at <= path->bytes && vm->status == ELLM_OK;) {
        size_t end = at;
        bool digits = true;
        int64_t number = 0;
        while (end < path->bytes && path->s[end] != '.') {
            digits = digits && path->s[end] >= '0' && path->s[end] <= '9' && end - at < 9;
            number = digits ? 10 * number + (path->s[end] - '0') : 0;
            end++;
        }
        value part = digits && end > at ? ellm_vm_integer(number) : ellm_vm_borrow(path->s + at, end - at);
        found = ellm_vm_item(vm, &found, &part);
        at = end + 1;
    }
    return found;
}

static value pairs_of(machine *vm, const value *v, bool keys, bool values) {
    if (v->kind == UNDEFINED) {
        return of_list(ellm_vm_list(vm, 0));
    }
    if (v->kind != DICT) {
        return wrong(vm, "a dict is needed here");
    }
    list *items = ellm_vm_list(vm, v->dict->n);
    for (size_t i = 0; items != NULL && i < items->n; i++) {
        const value *pair = &v->dict->pairs[2 * i];
        items->items[i] = keys ? pair[0] : pair[1];
        if (keys && values) {
            list *both = ellm_vm_list(vm, 2);
            if (both == NULL) {
                return (value){.kind = UNDEFINED};
            }
            both->items[0] = pair[0];
            both->items[1] = pair[1];
            items->items[i] = (value){.kind = TUPLE, .list = both};
        }
    }
    return of_list(items);
}

static value join(machine *vm, const value *v, const value *separator, const value *attribute) {
    const list *items = ellm_vm_iterate(vm, v);
    text_buffer text = {0};
    for (size_t i = 0; items != NULL && i < items->n && vm->status == ELLM_OK; i++) {
        value item = attribute != NULL ? by_path(vm, &items->items[i], attribute) : items->items[i];
        if (i > 0 && separator != NULL) {
            ellm_vm_print(vm, &text, separator);
        }
        ellm_vm_print(vm, &text, &item);
    }
    return ellm_vm_take(vm, &text);
}

static value reversed(machine *vm, const value *v) {
    const list *items = ellm_vm_iterate(vm, v);
    list *made = items != NULL ? ellm_vm_list(vm, items->n) : NULL;
    for (size_t i = 0; made != NULL && i < made->n; i++) {
        made->items[i] = items->items[made->n - 1 - i];
    }
    return v->kind == STRING && made != NULL ? join(vm, &(value){.kind = LIST, .list = made}, NULL, NULL)
                                             : of_list(made);
}

/* Arguments from `first` on, for the filter or test that map and select were given. */
static arguments without(const arguments *args, unsigned first) {
    arguments rest = {0};
    for (unsigned i = first; i < args->n; i++) {
        rest.names[rest.n] = args->names[i];
        rest.values[rest.n++] = args->values[i];
    }
    return rest;
}

/* What map and select go through: jinja2's are generators that do not look at a value that is false. */
static const list *items_of(machine *vm, const value *v) {
    return ellm_vm_truth(v) ? ellm_vm_iterate(vm, v) : ellm_vm_list(vm, 0);
}

static value map(machine *vm, uint32_t id, const value *v, const arguments *args) {
    const list *items = items_of(vm, v);
    list *made = items != NULL ? ellm_vm_list(vm, items->n) : NULL;
    const value *attribute = argument(vm, args, 99, "attribute"), *fallback = argument(vm, args, 99, "default");
    arguments rest = without(args, 1);
    if ((id == FILTER_MAP && args->n == 0) || (id == FILTER_MAP_ATTRIBUTE && attribute == NULL)) {
        return wrong(vm, "map needs a filter or attribute");
    }
    for (size_t i = 0; made != NULL && i < made->n && vm->status == ELLM_OK; i++) {
        if (id == FILTER_MAP) {
            uint32_t inner = args->values[0].kind == INTEGER ? (uint32_t)args->values[0].i : N_FILTERS;
            if (inner >= N_FILTERS || inner == FILTER_MAP || vm->depth >= most_depth) {
                return wrong(vm, "map of map is not supported");
            }
            made->items[i] = ellm_vm_filter(vm, inner, &items->items[i], &rest);
        } else {
            made->items[i] = by_path(vm, &items->items[i], attribute);
            if (made->items[i].kind == UNDEFINED && fallback != NULL) {
                made->items[i] = *fallback;
            }
        }
    }
    return of_list(made);
}

static value pick(machine *vm, uint32_t id, const value *v, const arguments *args) {
    bool by_attribute = id == FILTER_SELECTATTR || id == FILTER_REJECTATTR;
    bool wanted = id == FILTER_SELECT || id == FILTER_SELECTATTR;
    const list *items = items_of(vm, v);
    list *made = items != NULL ? ellm_vm_list(vm, items->n) : NULL;
    arguments rest = without(args, by_attribute ? 2 : 1);
    const value *test = args->n > by_attribute ? &args->values[by_attribute] : NULL;
    size_t n = 0;
    if (by_attribute && args->n == 0) {
        return wrong(vm, "selectattr needs an attribute");
    }
    for (size_t i = 0; made != NULL && i < items->n && vm->status == ELLM_OK; i++) {
        value item = by_attribute ? by_path(vm, &items->items[i], &args->values[0]) : items->items[i];
        bool holds = test == NULL ? ellm_vm_truth(&item)
                                  : ellm_vm_test(vm, test->kind == INTEGER ? (uint32_t)test->i : N_TESTS, &item, &rest);
        if (holds == wanted) {
            made->items[n++] = items->items[i];
        }
    }
    if (made != NULL) {
        made->n = n;
    }
    return of_list(made);
}

static value to_number(machine *vm, uint32_t id, const value *v, const arguments *args) {
    const value *fallback = argument(vm, args, 0, "default");
    value made = id == FILTER_INT ? ellm_vm_integer(0) : (value){.kind = REAL, .d = 0};
    if (fallback != NULL) {
        made = *fallback;
    }
    double real = v->kind == REAL ? v->d : v->kind == INTEGER || v->kind == BOOLEAN ? (double)v->i : 0;
    if (v->kind == STRING) {
        value clean = ellm_vm_strip(vm, v, NULL, true, true);
        char text[64], *end = text;
        if (clean.bytes == 0 || clean.bytes >= sizeof text || clean.s[0] == 0
            || strchr("+-.0123456789", clean.s[0]) == NULL) {
            return made;
        }
        memcpy(text, clean.s, clean.bytes);
        text[clean.bytes] = 0;
        if (strpbrk(text, "xXpPnN") != NULL) {
            return made;
        }
        if (id == FILTER_INT) {
            long long whole = strtoll(text, &end, 10);
            if (*end == 0) {
                if (whole == INT64_MAX || whole == INT64_MIN) {
                    return wrong(vm, "a number does not fit 64 bits");
                }
                return ellm_vm_integer(whole);
            }
        }
        real = strtod(text, &end);
        if (*end != 0) {
            return made;
        }
    } else if (v->kind != REAL && v->kind != INTEGER && v->kind != BOOLEAN) {
        return v->kind == UNDEFINED ? wrong(vm, "an undefined value is no number") : made;
    }
    if (id == FILTER_FLOAT) {
        return (value){.kind = REAL, .d = real};
    }
    if (v->kind != REAL && v->kind != STRING) {
        return ellm_vm_integer(v->i);
    }
    return real > -9.2e18 && real < 9.2e18 ? ellm_vm_integer((int64_t)real) : made;
}

/* Where the line at `at` ends, and in *next where the one after it begins: Python's splitlines(). */
static size_t line_end(const value *v, size_t at, size_t *next) {
    while (at < v->bytes) {
        uint32_t point;
        size_t length = ellm_utf8_read((const uint8_t *)v->s + at, v->bytes - at, &point);
        if ((point >= 0x0A && point <= 0x0D) || (point >= 0x1C && point <= 0x1E) || point == 0x85 || point == 0x2028
            || point == 0x2029) {
            *next = at + length + (point == 0x0D && at + 1 < v->bytes && v->s[at + 1] == '\n');
            return at;
        }
        at += length;
    }
    *next = at;
    return at;
}

static value lines(machine *vm, const value *v) {
    size_t n = 0;
    for (int pass = 0;; pass++) {
        list *items = pass > 0 ? ellm_vm_list(vm, n) : NULL;
        if (pass > 0 && items == NULL) {
            return (value){.kind = UNDEFINED};
        }
        n = 0;
        for (size_t at = 0, next; at < v->bytes && ellm_vm_spend(vm, 1); at = next) {
            size_t end = line_end(v, at, &next);
            if (pass > 0) {
                items->items[n] = ellm_vm_borrow(v->s + at, end - at);
            }
            n++;
        }
        if (pass > 0) {
            return of_list(items);
        }
    }
}

static value indented(machine *vm, const value *v, const arguments *args) {
    const value *width = argument(vm, args, 0, "width");
    bool first = truth_or(argument(vm, args, 1, "first"), false),
         blank = truth_or(argument(vm, args, 2, "blank"), false);
    value four = ellm_vm_integer(4), space = ellm_vm_borrow(" ", 1), newline = ellm_vm_borrow("\n", 1);
    width = width != NULL ? width : &four;
    value margin = width->kind == STRING ? *width : ellm_vm_arithmetic(vm, OP_MULTIPLY, &space, width);
    value string = ellm_vm_str(vm, v);
    string = vm->status == ELLM_OK ? ellm_vm_arithmetic(vm, OP_ADD, &string, &newline) : string;
    value all = vm->status == ELLM_OK ? lines(vm, &string) : (value){.kind = UNDEFINED};
    text_buffer text = {0};
    for (size_t i = 0; all.kind == LIST && i < all.list->n && vm->status == ELLM_OK; i++) {
        const value *line = &all.list->items[i];
        if (i > 0) {
            ellm_vm_write(vm, &text, "\n", 1);
        }
        if (i > 0 ? blank || line->bytes > 0 : first) {
            ellm_vm_write(vm, &text, margin.s, margin.bytes);
        }
        ellm_vm_write(vm, &text, line->s, line->bytes);
    }
    return ellm_vm_take(vm, &text);
}

/* Stable merge sort of values or pairs by `path` (may be NULL); strings without regard to case unless asked. */
static value sort_key(machine *vm, const value *item, const value *path, bool case_sensitive) {
    value key = path != NULL ? by_path(vm, item, path) : *item;
    return key.kind == STRING && !case_sensitive ? ellm_vm_case(vm, FILTER_LOWER, &key) : key;
}

static value sorted(machine *vm, const value *v, const value *path, bool reverse, bool case_sensitive) {
    const list *items = ellm_vm_iterate(vm, v);
    size_t n = items != NULL ? items->n : 0;
    list *keys = ellm_vm_list(vm, 2 * n), *made = ellm_vm_list(vm, 2 * n);
    if (items == NULL || keys == NULL || made == NULL) {
        return (value){.kind = UNDEFINED};
    }
    for (size_t i = 0; i < n && vm->status == ELLM_OK; i++) {
        keys->items[i] = sort_key(vm, &items->items[i], path, case_sensitive);
        made->items[i] = items->items[i];
    }
    value *from = made->items, *from_keys = keys->items, *to = made->items + n, *to_keys = keys->items + n;
    for (size_t width = 1; width < n && vm->status == ELLM_OK; width *= 2) {
        for (size_t start = 0; start < n; start += 2 * width) {
            size_t middle = start + width < n ? start + width : n, end = start + 2 * width < n ? start + 2 * width : n;
            for (size_t a = start, b = middle, out = start; out < end && ellm_vm_spend(vm, 1); out++) {
                bool left = a < middle && b == end;
                if (a < middle && b < end) {
                    int sign = ellm_vm_compare(vm, &from_keys[a], &from_keys[b]);
                    left = reverse ? sign >= 0 : sign <= 0;
                }
                size_t source = left ? a++ : b++;
                to[out] = from[source];
                to_keys[out] = from_keys[source];
            }
        }
        value *swap = from;
        from = to;
        to = swap;
        swap = from_keys;
        from_keys = to_keys;
        to_keys = swap;
    }
    if (from != made->items) {
        memcpy(made->items, from, n * sizeof *from);
    }
    made->n = n;
    return of_list(made);
}

static value unique(machine *vm, const value *v) {
    const list *items = ellm_vm_iterate(vm, v);
    list *made = items != NULL ? ellm_vm_list(vm, items->n) : NULL;
    size_t n = 0;
    for (size_t i = 0; made != NULL && i < items->n && vm->status == ELLM_OK; i++) {
        value key = sort_key(vm, &items->items[i], NULL, false);
        bool seen = false;
        for (size_t j = 0; j < n && !seen && vm->status == ELLM_OK; j++) {
            value other = sort_key(vm, &made->items[j], NULL, false);
            seen = ellm_vm_equal(vm, &key, &other, 0);
        }
        if (!seen) {
            made->items[n++] = items->items[i];
        }
    }
    if (made != NULL) {
        made->n = n;
    }
    return of_list(made);
}

static value sum(machine *vm, const value *v, const arguments *args) {
    const value *attribute = argument(vm, args, 0, "attribute"), *start = argument(vm, args, 1, "start");
    const list *items = ellm_vm_iterate(vm, v);
    value total = start != NULL ? *start : ellm_vm_integer(0);
    for (size_t i = 0; items != NULL && i < items->n && vm->status == ELLM_OK; i++) {
        value item = attribute != NULL ? by_path(vm, &items->items[i], attribute) : items->items[i];
        total = ellm_vm_arithmetic(vm, OP_ADD, &total, &item);
    }
    return total;
}

/* The first of the least or greatest items; undefined if there are none. */
static value extreme(machine *vm, const value *v, const arguments *args, bool greatest) {
    bool case_sensitive = truth_or(argument(vm, args, 0, "case_sensitive"), false);
    const value *attribute = argument(vm, args, 1, "attribute");
    const list *items = ellm_vm_iterate(vm, v);
    value best = {.kind = UNDEFINED}, best_key = best;
    for (size_t i = 0; items != NULL && i < items->n && vm->status == ELLM_OK; i++) {
        value key = sort_key(vm, &items->items[i], attribute, case_sensitive);
        int sign = i == 0 ? 0 : ellm_vm_compare(vm, &key, &best_key);
        if (i == 0 || (greatest ? sign > 0 : sign < 0)) {
            best = items->items[i];
            best_key = key;
        }
    }
    return best;
}

static value end_of(machine *vm, const value *v, bool last) {
    const list *items = ellm_vm_iterate(vm, v);
    return items == NULL || items->n == 0 ? (value){.kind = UNDEFINED} : items->items[last ? items->n - 1 : 0];
}

static value to_json(machine *vm, const value *v, const arguments *args) {
    text_buffer text = {0};
    const value *separators = argument(vm, args, 2, "separators");
    if (separators != NULL && separators->kind != NONE) {
        return wrong(vm, "tojson with separators is not supported");
    }
    ellm_vm_tojson(vm, &text, v, integer_or(vm, argument(vm, args, 1, "indent"), -1),
                   truth_or(argument(vm, args, 0, "ensure_ascii"), false),
                   truth_or(argument(vm, args, 3, "sort_keys"), false));
    return ellm_vm_take(vm, &text);
}

static value replaced(machine *vm, const value *v, const arguments *args) {
    const value *old = argument(vm, args, 0, "old"), *new = argument(vm, args, 1, "new");
    if (old == NULL || new == NULL) {
        return wrong(vm, "replace needs two strings");
    }
    return ellm_vm_replace(vm, v, old, new, integer_or(vm, argument(vm, args, 2, "count"), -1));
}

value ellm_vm_filter(machine *vm, uint32_t id, const value *v, const arguments *args) {
    value string;
    const value *first;
    switch (id) {
    case FILTER_TRIM:
        string = ellm_vm_str(vm, v);
        first = argument(vm, args, 0, "chars");
        return ellm_vm_strip(vm, &string, first != NULL && first->kind == NONE ? NULL : first, true, true);
    case FILTER_TOJSON: return to_json(vm, v, args);
    case FILTER_LENGTH: return ellm_vm_integer((int64_t)ellm_vm_length(vm, v));
    case FILTER_UPPER:
    case FILTER_LOWER:
    case FILTER_TITLE:
    case FILTER_CAPITALIZE: return ellm_vm_case(vm, id, v);
    case FILTER_JOIN: return join(vm, v, argument(vm, args, 0, "d"), argument(vm, args, 1, "attribute"));
    case FILTER_DEFAULT:
        first = argument(vm, args, 0, "default_value");
        if (v->kind == UNDEFINED || (truth_or(argument(vm, args, 1, "boolean"), false) && !ellm_vm_truth(v))) {
            return first != NULL ? *first : ellm_vm_borrow("", 0);
        }
        return *v;
    case FILTER_FIRST:
    case FILTER_LAST: return end_of(vm, v, id == FILTER_LAST);
    case FILTER_LIST: return of_list(ellm_vm_iterate(vm, v));
    case FILTER_ITEMS: return pairs_of(vm, v, true, true);
    case FILTER_MAP_ATTRIBUTE:
    case FILTER_MAP: return map(vm, id, v, args);
    case FILTER_SELECT:
    case FILTER_REJECT:
    case FILTER_SELECTATTR:
    case FILTER_REJECTATTR: return pick(vm, id, v, args);
    case FILTER_STRING:
    case FILTER_SAFE: return ellm_vm_str(vm, v);
    case FILTER_INT:
    case FILTER_FLOAT: return to_number(vm, id, v, args);
    case FILTER_REPLACE: string = ellm_vm_str(vm, v); return replaced(vm, &string, args);
    case FILTER_REVERSE: return reversed(vm, v);
    case FILTER_ABS:
        if (v->kind == REAL) {
            return (value){.kind = REAL, .d = v->d < 0 ? -v->d : v->d};
        }
        return v->kind == INTEGER && v->i != INT64_MIN ? ellm_vm_integer(v->i < 0 ? -v->i : v->i) : wrong(vm, "abs");
    case FILTER_INDENT: return indented(vm, v, args);
    case FILTER_UNIQUE: return unique(vm, v);
    case FILTER_SORT:
        return sorted(vm, v, argument(vm, args, 2, "attribute"), truth_or(argument(vm, args, 0, "reverse"), false),
                      truth_or(argument(vm, args, 1, "case_sensitive"), false));
    case FILTER_DICTSORT: {
        value pairs = pairs_of(vm, v, true, true), zero = ellm_vm_integer(0);
        return pairs.kind == LIST ? sorted(vm, &pairs, &zero, false, false) : pairs;
    }
    case FILTER_MIN:
    case FILTER_MAX: return extreme(vm, v, args, id == FILTER_MAX);
    default: /* FILTER_SUM */ return sum(vm, v, args);
    }
}

bool ellm_vm_test(machine *vm, uint32_t id, const value *v, const arguments *args) {
    static const value none = {.kind = NONE};
    const value *other = args->n > 0 ? &args->values[0] : &none;
    if ((id == TEST_ODD || id == TEST_EVEN || id == TEST_DIVISIBLEBY) && v->kind != INTEGER) {
        wrong(vm, "an integer is needed here");
        return false;
    }
    switch (id) {
    case TEST_DEFINED: return v->kind != UNDEFINED;
    case TEST_UNDEFINED: return v->kind == UNDEFINED;
    case TEST_STRING: return v->kind == STRING;
    case TEST_MAPPING: return v->kind == DICT;
    case TEST_ITERABLE:
    case TEST_SEQUENCE:
        return v->kind == STRING || v->kind == LIST || v->kind == TUPLE || v->kind == DICT || v->kind == UNDEFINED;
    case TEST_NONE: return v->kind == NONE;
    case TEST_NUMBER: return v->kind == INTEGER || v->kind == REAL || v->kind == BOOLEAN;
    case TEST_INTEGER: return v->kind == INTEGER;
    case TEST_FLOAT: return v->kind == REAL;
    case TEST_BOOLEAN: return v->kind == BOOLEAN;
    case TEST_TRUE: return v->kind == BOOLEAN && v->i != 0;
    case TEST_FALSE: return v->kind == BOOLEAN && v->i == 0;
    case TEST_ODD: return v->i % 2 != 0;
    case TEST_EVEN: return v->i % 2 == 0;
    case TEST_DIVISIBLEBY:
        if (other->kind != INTEGER || other->i == 0) {
            wrong(vm, "divisibleby needs an integer");
            return false;
        }
        return other->i == -1 || v->i % other->i == 0;
    case TEST_EQ: return ellm_vm_equal(vm, v, other, 0);
    case TEST_NE: return !ellm_vm_equal(vm, v, other, 0);
    case TEST_LT: return ellm_vm_compare(vm, v, other) < 0;
    case TEST_LE: return ellm_vm_compare(vm, v, other) <= 0;
    case TEST_GT: return ellm_vm_compare(vm, v, other) > 0;
    case TEST_GE: return ellm_vm_compare(vm, v, other) >= 0;
    case TEST_IN: return ellm_vm_contains(vm, v, other);
    case TEST_CALLABLE: return v->kind == MACRO || v->kind == BUILTIN;
    default: wrong(vm, "unknown test"); return false;
    }
}

static bool has_affix(const value *v, const value *affix, bool at_end) {
    return affix->kind == STRING && affix->bytes <= v->bytes
           && memcmp(at_end ? v->s + (v->bytes - affix->bytes) : v->s, affix->s, affix->bytes) == 0;
}

static value affixed(machine *vm, uint32_t id, const value *v, const value *affix) {
    bool at_end = id == METHOD_ENDSWITH || id == METHOD_REMOVESUFFIX;
    bool found = false;
    if (affix == NULL || (affix->kind != STRING && affix->kind != TUPLE)) {
        return wrong(vm, "a string is needed here");
    }
    for (size_t i = 0; affix->kind == TUPLE && i < affix->list->n && !found; i++) {
        found = has_affix(v, &affix->list->items[i], at_end);
    }
    found = found || (affix->kind == STRING && has_affix(v, affix, at_end));
    if (id == METHOD_STARTSWITH || id == METHOD_ENDSWITH) {
        return ellm_vm_boolean(found);
    }
    if (affix->kind != STRING || !found) {
        return *v;
    }
    return ellm_vm_borrow(at_end ? v->s : v->s + affix->bytes, v->bytes - affix->bytes);
}

static value found_at(machine *vm, uint32_t id, const value *v, const value *part) {
    if (part == NULL || part->kind != STRING) {
        return wrong(vm, "a string is needed here");
    }
    if (id == METHOD_COUNT) {
        int64_t n = part->bytes == 0 ? (int64_t)ellm_vm_points(v) + 1 : 0;
        for (size_t at = ellm_vm_find(v, 0, part); part->bytes != 0 && at != SIZE_MAX;
             at = ellm_vm_find(v, at + part->bytes, part)) {
            n++;
        }
        return ellm_vm_integer(n);
    }
    size_t at = ellm_vm_find(v, 0, part);
    if (at == SIZE_MAX) {
        return id == METHOD_FIND ? ellm_vm_integer(-1) : wrong(vm, "substring not found");
    }
    value before = ellm_vm_borrow(v->s, at);
    return ellm_vm_integer((int64_t)ellm_vm_points(&before));
}

static value string_method(machine *vm, uint32_t id, const value *v, const arguments *args) {
    const value *first = argument(vm, args, 0, "sep");
    const value *characters = first != NULL && first->kind == NONE ? NULL : first;
    switch (id) {
    case METHOD_STRIP:
    case METHOD_LSTRIP:
    case METHOD_RSTRIP: return ellm_vm_strip(vm, v, characters, id != METHOD_RSTRIP, id != METHOD_LSTRIP);
    case METHOD_SPLIT:
    case METHOD_RSPLIT:
        return ellm_vm_split(vm, v, characters, integer_or(vm, argument(vm, args, 1, "maxsplit"), -1),
                             id == METHOD_RSPLIT);
    case METHOD_STARTSWITH:
    case METHOD_ENDSWITH:
    case METHOD_REMOVEPREFIX:
    case METHOD_REMOVESUFFIX: return affixed(vm, id, v, first);
    case METHOD_REPLACE: return replaced(vm, v, args);
    case METHOD_UPPER: return ellm_vm_case(vm, FILTER_UPPER, v);
    case METHOD_LOWER: return ellm_vm_case(vm, FILTER_LOWER, v);
    case METHOD_TITLE: return ellm_vm_case(vm, CASE_TITLE_METHOD, v);
    case METHOD_CAPITALIZE: return ellm_vm_case(vm, FILTER_CAPITALIZE, v);
    case METHOD_FIND:
    case METHOD_COUNT:
    case METHOD_INDEX: return found_at(vm, id, v, first);
    case METHOD_JOIN: {
        const list *items = first != NULL ? ellm_vm_iterate(vm, first) : NULL;
        for (size_t i = 0; items != NULL && i < items->n; i++) {
            if (items->items[i].kind != STRING) {
                return wrong(vm, "join() needs strings");
            }
        }
        return items != NULL ? join(vm, first, v, NULL) : wrong(vm, "join() needs a list");
    }
    case METHOD_SPLITLINES: return lines(vm, v);
    case METHOD_ISDIGIT: {
        bool digits = v->bytes > 0;
        for (size_t i = 0; i < v->bytes; i++) {
            digits = digits && v->s[i] >= '0' && v->s[i] <= '9';
        }
        return ellm_vm_boolean(digits);
    }
    default: return wrong(vm, "a string has no such method");
    }
}

value ellm_vm_method(machine *vm, uint32_t id, const value *v, const arguments *args) {
    const value *first = argument(vm, args, 0, "key"), *second = argument(vm, args, 1, "default");
    if (v->kind == STRING) {
        return string_method(vm, id, v, args);
    }
    if (v->kind == DICT && (id == METHOD_ITEMS || id == METHOD_KEYS || id == METHOD_VALUES)) {
        return pairs_of(vm, v, id != METHOD_VALUES, id != METHOD_KEYS);
    }
    if (v->kind == DICT && id == METHOD_COPY) {
        return *v;
    }
    if (v->kind == DICT && id == METHOD_GET && first != NULL) {
        const value *found = first->kind == LIST || first->kind == DICT ? NULL : ellm_vm_get(vm, v->dict, first);
        return found != NULL ? *found : second != NULL ? *second : (value){.kind = NONE};
    }
    if (v->kind == LOOP && id == METHOD_CYCLE && args->n > 0) {
        return args->values[v->loop->index % args->n];
    }
    if ((v->kind == LIST || v->kind == TUPLE) && (id == METHOD_INDEX || id == METHOD_COUNT) && first != NULL) {
        int64_t n = 0;
        for (size_t i = 0; i < v->list->n && vm->status == ELLM_OK; i++) {
            bool same = ellm_vm_equal(vm, &v->list->items[i], first, 0);
            if (same && id == METHOD_INDEX) {
                return ellm_vm_integer((int64_t)i);
            }
            n += same;
        }
        return id == METHOD_COUNT ? ellm_vm_integer(n) : wrong(vm, "the value is not in the list");
    }
    return wrong(vm, v->kind == UNDEFINED ? "a method of an undefined value" : "this value has no such method");
}

static value now(machine *vm, const value *format) {
    char pattern[128], text[256];
    time_t seconds = time(NULL);
    struct tm local;
    if (format == NULL || format->kind != STRING || format->bytes >= sizeof pattern) {
        return wrong(vm, "strftime_now needs a short format");
    }
    memcpy(pattern, format->s, format->bytes);
    pattern[format->bytes] = 0;
    if (localtime_r(&seconds, &local) == NULL) {
        return wrong(vm, "strftime_now: no local time");
    }
    /* The template author's format is data here on purpose; strftime only reads time fields. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#endif
    size_t n = strftime(text, sizeof text, pattern, &local);
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
    return ellm_vm_string(vm, text, n);
}

static value range(machine *vm, const arguments *args) {
    int64_t start = 0, stop = 0, stride = 1;
    if (args->n == 0 || args->n > 3) {
        return wrong(vm, "range needs one to three integers");
    }
    stop = integer_or(vm, &args->values[args->n > 1], 0);
    start = args->n > 1 ? integer_or(vm, &args->values[0], 0) : 0;
    stride = args->n > 2 ? integer_or(vm, &args->values[2], 1) : 1;
    int64_t limit = INT64_MAX / 4;
    if (stride == 0 || stride < -limit || stride > limit || start < -limit || start > limit || stop < -limit
        || stop > limit) {
        return wrong(vm, "range: numbers out of bounds");
    }
    int64_t span = stride > 0 ? stop - start : start - stop, size = stride > 0 ? stride : -stride;
    int64_t n = span <= 0 ? 0 : (span + size - 1) / size;
    if (n > 100000) {
        return wrong(vm, "range too big; the sandbox allows 100000");
    }
    list *items = ellm_vm_list(vm, (size_t)n);
    for (int64_t i = 0; items != NULL && i < n; i++) {
        items->items[i] = ellm_vm_integer(start + i * stride);
    }
    return of_list(items);
}

static value collected(machine *vm, const arguments *args, kind made) {
    dict *items = ellm_vm_dict(vm, args->n);
    for (unsigned i = 0; items != NULL && i < args->n; i++) {
        const value *source = &args->values[i];
        if (args->names[i] != NO_NODE) {
            const slice *name = &vm->t->strings[args->names[i]];
            ellm_vm_put(vm, items, ellm_vm_borrow(vm->t->text + name->offset, name->bytes), *source);
        } else if (source->kind == DICT) {
            for (size_t j = 0; j < source->dict->n && vm->status == ELLM_OK; j++) {
                ellm_vm_put(vm, items, source->dict->pairs[2 * j], source->dict->pairs[2 * j + 1]);
            }
        } else {
            return wrong(vm, "a dict is needed here");
        }
    }
    return items != NULL ? (value){.kind = made, .dict = items} : (value){.kind = UNDEFINED};
}

value ellm_vm_function(machine *vm, uint32_t id, const arguments *args) {
    const value *first = argument(vm, args, 0, id == CALL_STRFTIME_NOW ? "format" : "message");
    switch (id) {
    case CALL_RAISE_EXCEPTION: {
        value text = first != NULL ? ellm_vm_str(vm, first) : ellm_vm_borrow("", 0);
        return ellm_vm_fail(vm, "%.*s", (int)(text.bytes < 500 ? text.bytes : 500), text.s);
    }
    case CALL_STRFTIME_NOW: return now(vm, first);
    case CALL_RANGE: return range(vm, args);
    default: return collected(vm, args, id == CALL_NAMESPACE ? NAMESPACE : DICT);
    }
}
