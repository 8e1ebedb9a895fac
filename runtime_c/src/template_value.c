/* Values of the template language, with Python's rules for truth, equality, order, indexing and arithmetic. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "template_parts.h"
#include "utf8.h"

value ellm_vm_fail(machine *vm, const char *format, ...) {
    if (vm->status == ELLM_OK) {
        vm->status = ELLM_TEMPLATE_FAILED;
        if (vm->error != NULL) {
            va_list rest;
            va_start(rest, format);
            vsnprintf(vm->error->text, sizeof vm->error->text, format, rest);
            va_end(rest);
        }
    }
    return (value){.kind = UNDEFINED};
}

value ellm_vm_limit(machine *vm) {
    if (vm->status == ELLM_OK) {
        vm->status = ellm_fail(vm->error, ELLM_TEMPLATE_LIMIT,
                               "chat template, line %u: too much time, memory or depth; shorten the "
                               "conversation or simplify the template",
                               (unsigned)vm->line);
    }
    return (value){.kind = UNDEFINED};
}

bool ellm_vm_spend(machine *vm, size_t steps) {
    if (vm->steps < steps) {
        vm->steps = 0;
        ellm_vm_limit(vm);
    } else {
        vm->steps -= steps;
    }
    return vm->status == ELLM_OK;
}

void *ellm_vm_alloc(machine *vm, size_t n, size_t bytes) {
    void *memory = ellm_vm_spend(vm, 1 + n / 64) ? ellm_region_alloc(&vm->region, n, bytes) : NULL;
    if (memory == NULL) {
        ellm_vm_limit(vm);
    }
    return memory;
}

value ellm_vm_borrow(const char *text, size_t n) {
    return (value){.kind = STRING, .bytes = (uint32_t)n, .s = text};
}

value ellm_vm_string(machine *vm, const char *text, size_t n) {
    char *copy = ellm_vm_alloc(vm, n + 1, 1);
    if (copy == NULL) {
        return ellm_vm_borrow("", 0);
    }
    if (n != 0) {
        memcpy(copy, text, n);
    }
    return ellm_vm_borrow(copy, n);
}

value ellm_vm_boolean(bool truth) {
    return (value){.kind = BOOLEAN, .i = truth};
}

value ellm_vm_integer(int64_t number) {
    return (value){.kind = INTEGER, .i = number};
}

list *ellm_vm_list(machine *vm, size_t n) {
    list *made = n > SIZE_MAX / 64 ? NULL : ellm_vm_alloc(vm, 1, sizeof *made + n * sizeof made->items[0]);
    if (made != NULL && !ellm_vm_spend(vm, n)) {
        made = NULL;
    }
    if (made != NULL) {
        made->n = n;
    } else {
        ellm_vm_limit(vm);
    }
    return made;
}

dict *ellm_vm_dict(machine *vm, size_t cap) {
    dict *made = ellm_vm_alloc(vm, 1, sizeof *made);
    value *pairs = cap > SIZE_MAX / 64 ? NULL : ellm_vm_alloc(vm, 2 * cap, sizeof *pairs);
    if (made == NULL || pairs == NULL) {
        return NULL;
    }
    *made = (dict){0, cap, pairs};
    return made;
}

value ellm_vm_from_json(machine *vm, const ellm_json *json) {
    value made = {.kind = NONE};
    switch (json->kind) {
    case ELLM_JSON_NULL: break;
    case ELLM_JSON_BOOL: return ellm_vm_boolean(json->integer != 0);
    case ELLM_JSON_INT: return ellm_vm_integer(json->integer);
    case ELLM_JSON_REAL: return (value){.kind = REAL, .d = json->real};
    case ELLM_JSON_STRING: return ellm_vm_borrow(json->text, json->count);
    case ELLM_JSON_ARRAY: {
        list *items = ellm_vm_list(vm, json->count);
        size_t i = 0;
        for (const ellm_json *item = json->first; items != NULL && item != NULL; item = item->next) {
            items->items[i++] = ellm_vm_from_json(vm, item); /* as deep as ELLM_JSON_DEPTH */
        }
        made = (value){.kind = items != NULL ? LIST : NONE, .list = items};
        break;
    }
    case ELLM_JSON_OBJECT: {
        dict *items = ellm_vm_dict(vm, json->count);
        for (const ellm_json *item = json->first; items != NULL && item != NULL; item = item->next) {
            ellm_vm_put(vm, items, ellm_vm_borrow(item->key, strlen(item->key)), ellm_vm_from_json(vm, item));
        }
        made = (value){.kind = items != NULL ? DICT : NONE, .dict = items};
        break;
    }
    }
    return made;
}

bool ellm_vm_truth(const value *v) {
    switch (v->kind) {
    case UNDEFINED:
    case NONE: return false;
    case BOOLEAN:
    case INTEGER: return v->i != 0;
    case REAL: return v->d != 0;
    case STRING: return v->bytes != 0;
    case LIST:
    case TUPLE: return v->list->n != 0;
    case DICT: return v->dict->n != 0;
    default: return true;
    }
}

static bool is_number(const value *v) {
    return v->kind == BOOLEAN || v->kind == INTEGER || v->kind == REAL;
}

static double as_real(const value *v) {
    return v->kind == REAL ? v->d : (double)v->i;
}

bool ellm_vm_is(const value *v, const char *text) {
    return v->kind == STRING && v->bytes == strlen(text) && memcmp(v->s, text, v->bytes) == 0;
}

static bool lists_equal(machine *vm, const list *a, const list *b, unsigned depth) {
    if (a->n != b->n) {
        return false;
    }
    for (size_t i = 0; i < a->n; i++) {
        if (!ellm_vm_equal(vm, &a->items[i], &b->items[i], depth + 1)) {
            return false;
        }
    }
    return true;
}

static bool dicts_equal(machine *vm, const dict *a, const dict *b, unsigned depth) {
    if (a->n != b->n) {
        return false;
    }
    for (size_t i = 0; i < a->n; i++) {
        const value *other = ellm_vm_get(vm, b, &a->pairs[2 * i]);
        if (other == NULL || !ellm_vm_equal(vm, &a->pairs[2 * i + 1], other, depth + 1)) {
            return false;
        }
    }
    return true;
}

bool ellm_vm_equal(machine *vm, const value *a, const value *b, unsigned depth) {
    if (depth > most_value_depth || !ellm_vm_spend(vm, 1)) {
        ellm_vm_limit(vm);
        return false;
    }
    if (is_number(a) && is_number(b)) {
        return a->kind == REAL || b->kind == REAL ? as_real(a) == as_real(b) : a->i == b->i;
    }
    if (a->kind != b->kind) {
        return false;
    }
    switch (a->kind) {
    case STRING: return a->bytes == b->bytes && (a->bytes == 0 || memcmp(a->s, b->s, a->bytes) == 0);
    case LIST:
    case TUPLE: return lists_equal(vm, a->list, b->list, depth);
    case DICT: return dicts_equal(vm, a->dict, b->dict, depth);
    case UNDEFINED:
    case NONE: return true;
    case BUILTIN: return false;
    default: return a->dict == b->dict;
    }
}

static int order(bool less, bool more) {
    return less ? -1 : more;
}

int ellm_vm_compare(machine *vm, const value *a, const value *b) {
    if (is_number(a) && is_number(b)) {
        if (a->kind == REAL || b->kind == REAL) {
            return order(as_real(a) < as_real(b), as_real(a) > as_real(b));
        }
        return order(a->i<b->i, a->i> b->i);
    }
    if (a->kind == STRING && b->kind == STRING) {
        int sign = memcmp(a->s, b->s, a->bytes < b->bytes ? a->bytes : b->bytes);
        return sign != 0 ? order(sign < 0, true) : order(a->bytes<b->bytes, a->bytes> b->bytes);
    }
    if ((a->kind == LIST || a->kind == TUPLE) && a->kind == b->kind && vm->depth < most_depth) {
        vm->depth++;
        int sign = 0;
        size_t n = a->list->n < b->list->n ? a->list->n : b->list->n;
        for (size_t i = 0; i < n && sign == 0 && ellm_vm_spend(vm, 1); i++) {
            if (!ellm_vm_equal(vm, &a->list->items[i], &b->list->items[i], 0)) {
                sign = ellm_vm_compare(vm, &a->list->items[i], &b->list->items[i]);
                break;
            }
        }
        vm->depth--;
        return sign != 0 ? sign : order(a->list->n<b->list->n, a->list->n> b->list->n);
    }
    ellm_vm_fail(vm, "chat template, line %u: these values have no order", (unsigned)vm->line);
    return 0;
}

const value *ellm_vm_get(machine *vm, const dict *d, const value *key) {
    if (!ellm_vm_spend(vm, 1 + d->n / 8)) {
        return NULL;
    }
    for (size_t i = 0; i < d->n; i++) {
        const value *own = &d->pairs[2 * i];
        bool same = own->kind == STRING && key->kind == STRING
                        ? own->bytes == key->bytes && (own->bytes == 0 || memcmp(own->s, key->s, own->bytes) == 0)
                        : ellm_vm_equal(vm, own, key, 0);
        if (same) {
            return &d->pairs[2 * i + 1];
        }
    }
    return NULL;
}

void ellm_vm_put(machine *vm, dict *d, value key, value item) {
    if (key.kind == LIST || key.kind == DICT || key.kind == UNDEFINED) {
        ellm_vm_fail(vm, "chat template, line %u: this value cannot be a dict key", (unsigned)vm->line);
        return;
    }
    value *old = (value *)(uintptr_t)ellm_vm_get(vm, d, &key);
    if (old != NULL) {
        *old = item;
        return;
    }
    if (d->n == d->cap) {
        size_t cap = 2 * d->cap + 4;
        value *pairs = ellm_vm_alloc(vm, 2 * cap, sizeof *pairs);
        if (pairs == NULL) {
            return;
        }
        if (d->n != 0) {
            memcpy(pairs, d->pairs, 2 * d->n * sizeof *pairs);
        }
        d->pairs = pairs;
        d->cap = cap;
    }
    d->pairs[2 * d->n] = key;
    d->pairs[2 * d->n + 1] = item;
    d->n++;
}

bool ellm_vm_contains(machine *vm, const value *item, const value *container) {
    if (container->kind == STRING && item->kind == STRING) {
        return ellm_vm_spend(vm, container->bytes / 16) && ellm_vm_find(container, 0, item) != SIZE_MAX;
    }
    if (container->kind == DICT) {
        if (item->kind == LIST || item->kind == DICT) {
            ellm_vm_fail(vm, "chat template, line %u: this value cannot be a dict key", (unsigned)vm->line);
            return false;
        }
        return ellm_vm_get(vm, container->dict, item) != NULL;
    }
    if (container->kind == LIST || container->kind == TUPLE) {
        for (size_t i = 0; i < container->list->n && vm->status == ELLM_OK; i++) {
            if (ellm_vm_equal(vm, &container->list->items[i], item, 0)) {
                return true;
            }
        }
        return false;
    }
    if (container->kind != UNDEFINED) {
        ellm_vm_fail(vm, "chat template, line %u: `in` needs a string, list or dict", (unsigned)vm->line);
    }
    return false;
}

size_t ellm_vm_points(const value *string) {
    size_t n = 0;
    for (size_t i = 0; i < string->bytes; i++) {
        n += ((unsigned char)string->s[i] & 0xC0) != 0x80;
    }
    return n;
}

/* Byte offset of the character with this index, which is at most the number of characters. */
static size_t offset_of(const value *string, size_t index) {
    size_t at = 0;
    while (index > 0 && at < string->bytes) {
        at++;
        while (at < string->bytes && ((unsigned char)string->s[at] & 0xC0) == 0x80) {
            at++;
        }
        index--;
    }
    return at;
}

const list *ellm_vm_iterate(machine *vm, const value *v) {
    list *items = NULL;
    switch (v->kind) {
    case UNDEFINED: return ellm_vm_list(vm, 0);
    case LIST:
    case TUPLE: return v->list;
    case DICT:
        items = ellm_vm_list(vm, v->dict->n);
        for (size_t i = 0; items != NULL && i < v->dict->n; i++) {
            items->items[i] = v->dict->pairs[2 * i];
        }
        return items;
    case STRING: {
        items = ellm_vm_list(vm, ellm_vm_points(v));
        size_t at = 0;
        for (size_t i = 0; items != NULL && i < items->n; i++) {
            value rest = ellm_vm_borrow(v->s + at, v->bytes - at);
            size_t length = offset_of(&rest, 1);
            items->items[i] = ellm_vm_borrow(v->s + at, length);
            at += length;
        }
        return items;
    }
    default: ellm_vm_fail(vm, "chat template, line %u: this value cannot be iterated", (unsigned)vm->line); return NULL;
    }
}

size_t ellm_vm_length(machine *vm, const value *v) {
    switch (v->kind) {
    case UNDEFINED: return 0;
    case STRING: return ellm_vm_points(v);
    case LIST:
    case TUPLE: return v->list->n;
    case DICT: return v->dict->n;
    default: ellm_vm_fail(vm, "chat template, line %u: this value has no length", (unsigned)vm->line); return 0;
    }
}

static bool has_method(const value *v, const value *name) {
    static const char *const of_dict[] = {"items", "keys",  "values",     "get",     "pop",      "update",
                                          "copy",  "clear", "setdefault", "popitem", "fromkeys", NULL};
    static const char *const of_list[] = {"append", "extend", "insert",  "pop",  "remove", "index",
                                          "count",  "sort",   "reverse", "copy", "clear",  NULL};
    static const char *const of_text[] = {"strip", "lstrip", "rstrip",  "split",      "upper",    "lower",
                                          "title", "format", "replace", "startswith", "endswith", "join",
                                          "find",  "count",  "index",   "encode",     NULL};
    const char *const *names = v->kind == DICT     ? of_dict
                               : v->kind == LIST   ? of_list
                               : v->kind == STRING ? of_text
                                                   : NULL;
    for (; names != NULL && *names != NULL; names++) {
        if (ellm_vm_is(name, *names)) {
            return true;
        }
    }
    return false;
}

static value undefined_use(machine *vm, const value *v) {
    return ellm_vm_fail(vm, "chat template, line %u: '%.*s' is undefined", (unsigned)vm->line,
                        v->s != NULL ? (int)v->bytes : 10, v->s != NULL ? v->s : "this value");
}

static value missing(const value *name) {
    return name->kind == STRING ? (value){.kind = UNDEFINED, .bytes = name->bytes, .s = name->s}
                                : (value){.kind = UNDEFINED};
}

static value loop_attribute(const loop *l, const value *name) {
    size_t n = l->items->n, i = l->index;
    if (ellm_vm_is(name, "index") || ellm_vm_is(name, "index0")) {
        return ellm_vm_integer((int64_t)(i + (name->bytes == 5)));
    }
    if (ellm_vm_is(name, "revindex") || ellm_vm_is(name, "revindex0")) {
        return ellm_vm_integer((int64_t)(n - i - (name->bytes == 9)));
    }
    if (ellm_vm_is(name, "first") || ellm_vm_is(name, "last")) {
        return ellm_vm_boolean(name->bytes == 5 ? i == 0 : i + 1 == n);
    }
    if (ellm_vm_is(name, "length")) {
        return ellm_vm_integer((int64_t)n);
    }
    if (ellm_vm_is(name, "depth") || ellm_vm_is(name, "depth0")) {
        return ellm_vm_integer(name->bytes == 5);
    }
    if (ellm_vm_is(name, "previtem") && i > 0) {
        return l->items->items[i - 1];
    }
    if (ellm_vm_is(name, "nextitem") && i + 1 < n) {
        return l->items->items[i + 1];
    }
    return missing(name);
}

value ellm_vm_attribute(machine *vm, const value *v, const value *name) {
    if (v->kind == UNDEFINED) {
        return undefined_use(vm, v);
    }
    if (v->kind == LOOP) {
        return loop_attribute(v->loop, name);
    }
    if (has_method(v, name)) {
        return (value){.kind = BUILTIN};
    }
    const value *found = v->kind == DICT || v->kind == NAMESPACE ? ellm_vm_get(vm, v->dict, name) : NULL;
    return found != NULL ? *found : missing(name);
}

value ellm_vm_item(machine *vm, const value *v, const value *key) {
    if (v->kind == UNDEFINED) {
        return undefined_use(vm, v);
    }
    bool whole = key->kind == INTEGER || key->kind == BOOLEAN;
    if ((v->kind == LIST || v->kind == TUPLE || v->kind == STRING) && whole) {
        int64_t n = (int64_t)ellm_vm_length(vm, v), index = key->i < 0 ? key->i + n : key->i;
        if (index < 0 || index >= n) {
            return missing(key);
        }
        if (v->kind != STRING) {
            return v->list->items[index];
        }
        size_t start = offset_of(v, (size_t)index);
        value rest = ellm_vm_borrow(v->s + start, v->bytes - start);
        return ellm_vm_borrow(rest.s, offset_of(&rest, 1));
    }
    if ((v->kind == DICT || v->kind == NAMESPACE) && key->kind != LIST && key->kind != DICT) {
        const value *found = ellm_vm_get(vm, v->dict, key);
        if (found != NULL) {
            return *found;
        }
    }
    if (key->kind == STRING && has_method(v, key)) {
        return (value){.kind = BUILTIN};
    }
    return v->kind == LOOP && key->kind == STRING ? loop_attribute(v->loop, key) : missing(key);
}

static bool bound_of(machine *vm, const value *bound, int64_t n, int64_t least, int64_t most, int64_t *result) {
    if (bound->kind == NONE) {
        return true;
    }
    if (bound->kind != INTEGER && bound->kind != BOOLEAN) {
        ellm_vm_fail(vm, "chat template, line %u: a slice needs integers", (unsigned)vm->line);
        return false;
    }
    int64_t at = bound->i < 0 ? (bound->i < -n ? least : bound->i + n) : bound->i;
    *result = at < least ? least : at > most ? most : at;
    return true;
}

value ellm_vm_slice(machine *vm, const value *v, const value bounds[3]) {
    if (v->kind == UNDEFINED) {
        return undefined_use(vm, v);
    }
    if (v->kind != STRING && v->kind != LIST && v->kind != TUPLE) {
        return (value){.kind = UNDEFINED};
    }
    int64_t n = (int64_t)ellm_vm_length(vm, v), stride = 1;
    if (bounds[2].kind != INTEGER && bounds[2].kind != NONE) {
        return ellm_vm_fail(vm, "chat template, line %u: a slice needs integers", (unsigned)vm->line);
    }
    if (bounds[2].kind == INTEGER) {
        stride = bounds[2].i < -n - 1 ? -n - 1 : bounds[2].i > n + 1 ? n + 1 : bounds[2].i;
    }
    if (stride == 0) {
        return ellm_vm_fail(vm, "chat template, line %u: slice step cannot be zero", (unsigned)vm->line);
    }
    bool back = stride < 0;
    int64_t start = back ? n - 1 : 0, stop = back ? -1 : n, least = back ? -1 : 0, most = back ? n - 1 : n;
    if (!bound_of(vm, &bounds[0], n, least, most, &start) || !bound_of(vm, &bounds[1], n, least, most, &stop)) {
        return (value){.kind = UNDEFINED};
    }
    int64_t span = back ? start - stop : stop - start, step = back ? -stride : stride;
    size_t count = span <= 0 ? 0 : (size_t)((span + step - 1) / step);
    if (v->kind == STRING && stride == 1) {
        size_t from = offset_of(v, (size_t)start);
        value rest = ellm_vm_borrow(v->s + from, v->bytes - from);
        return ellm_vm_borrow(rest.s, offset_of(&rest, count));
    }
    const list *from = ellm_vm_iterate(vm, v);
    list *items = from != NULL ? ellm_vm_list(vm, count) : NULL;
    for (size_t i = 0; items != NULL && i < count; i++) {
        size_t at = (size_t)(start + (int64_t)i * stride);
        items->items[i] = at < from->n ? from->items[at] : (value){.kind = NONE};
    }
    if (items == NULL) {
        return (value){.kind = UNDEFINED};
    }
    if (v->kind == STRING) {
        text_buffer text = {0};
        for (size_t i = 0; i < count; i++) {
            ellm_vm_write(vm, &text, items->items[i].s, items->items[i].bytes);
        }
        return ellm_vm_take(vm, &text);
    }
    return (value){.kind = v->kind, .list = items};
}

/* ---- arithmetic ---- */

static value repeat(machine *vm, const value *v, int64_t times) {
    size_t n = times < 0 ? 0 : (size_t)times, each = v->kind == STRING ? v->bytes : v->list->n;
    if (each != 0 && n > (size_t)UINT32_MAX / 64 / each) {
        return ellm_vm_limit(vm);
    }
    if (v->kind == STRING) {
        char *text = ellm_vm_alloc(vm, n * each + 1, 1);
        for (size_t i = 0; text != NULL && i < n && each != 0; i++) {
            memcpy(text + i * each, v->s, each);
        }
        return text != NULL ? ellm_vm_borrow(text, n * each) : ellm_vm_borrow("", 0);
    }
    list *items = ellm_vm_list(vm, n * each);
    for (size_t i = 0; items != NULL && i < n * each; i++) {
        items->items[i] = v->list->items[i % each];
    }
    return items != NULL ? (value){.kind = v->kind, .list = items} : (value){.kind = UNDEFINED};
}

static value join_two(machine *vm, const value *a, const value *b) {
    if (a->kind == STRING) {
        size_t n = (size_t)a->bytes + b->bytes;
        char *text = n > INT32_MAX ? NULL : ellm_vm_alloc(vm, n + 1, 1);
        if (text == NULL) {
            return ellm_vm_limit(vm);
        }
        memcpy(text, a->s, a->bytes);
        memcpy(text + a->bytes, b->s, b->bytes);
        return ellm_vm_borrow(text, n);
    }
    list *items = ellm_vm_list(vm, a->list->n + b->list->n);
    if (items == NULL) {
        return (value){.kind = UNDEFINED};
    }
    for (size_t i = 0; i < items->n; i++) {
        items->items[i] = i < a->list->n ? a->list->items[i] : b->list->items[i - a->list->n];
    }
    return (value){.kind = a->kind, .list = items};
}

static value overflow(machine *vm) {
    return ellm_vm_fail(vm, "chat template, line %u: a number does not fit 64 bits", (unsigned)vm->line);
}

static value integer_power(machine *vm, int64_t base, int64_t exponent) {
    int64_t result = 1;
    if (exponent < 0) {
        value inverse = exponent >= -64 && base != 0 ? integer_power(vm, base, -exponent) : overflow(vm);
        return vm->status == ELLM_OK ? (value){.kind = REAL, .d = 1 / (double)inverse.i} : inverse;
    }
    if (base == 0 || base == 1 || base == -1) {
        return ellm_vm_integer(exponent == 0 ? 1 : base < 0 && exponent % 2 == 0 ? 1 : base);
    }
    for (int64_t i = 0; i < exponent; i++) {
        if (__builtin_mul_overflow(result, base, &result)) {
            return overflow(vm);
        }
    }
    return ellm_vm_integer(result);
}

static value integers(machine *vm, uint32_t op, int64_t a, int64_t b) {
    int64_t result = 0;
    bool too_big = false;
    if ((op == OP_DIVIDE || op == OP_FLOOR_DIVIDE || op == OP_MODULO) && b == 0) {
        return ellm_vm_fail(vm, "chat template, line %u: division by zero", (unsigned)vm->line);
    }
    switch (op) {
    case OP_ADD: too_big = __builtin_add_overflow(a, b, &result); break;
    case OP_SUBTRACT: too_big = __builtin_sub_overflow(a, b, &result); break;
    case OP_MULTIPLY: too_big = __builtin_mul_overflow(a, b, &result); break;
    case OP_DIVIDE: return (value){.kind = REAL, .d = (double)a / (double)b};
    case OP_POWER: return integer_power(vm, a, b);
    default:
        if (b == -1) {
            too_big = op == OP_FLOOR_DIVIDE && __builtin_sub_overflow((int64_t)0, a, &result);
            break;
        }
        result = op == OP_MODULO ? a % b : a / b;
        if (a % b != 0 && (a < 0) != (b < 0)) {
            result += op == OP_MODULO ? b : -1;
        }
    }
    return too_big ? overflow(vm) : ellm_vm_integer(result);
}

/* floor() and fmod() without libm. */
static double floor_of(double x) {
    if (!(x > -4503599627370496.0 && x < 4503599627370496.0)) {
        return x; /* already whole */
    }
    double whole = (double)(int64_t)x;
    return whole > x ? whole - 1 : whole;
}

/* x % y for 0 <= x < infinity, 0 < y: exact, since only doubled y are subtracted. */
static double remainder_of(double x, double y) {
    while (x >= y) {
        double part = y;
        while (part <= x / 2) {
            part *= 2;
        }
        x -= part;
    }
    return x;
}

static value reals(machine *vm, uint32_t op, double a, double b) {
    double result = 0;
    if ((op == OP_DIVIDE || op == OP_FLOOR_DIVIDE || op == OP_MODULO) && b == 0) {
        return ellm_vm_fail(vm, "chat template, line %u: division by zero", (unsigned)vm->line);
    }
    switch (op) {
    case OP_ADD: result = a + b; break;
    case OP_SUBTRACT: result = a - b; break;
    case OP_MULTIPLY: result = a * b; break;
    case OP_DIVIDE: result = a / b; break;
    case OP_FLOOR_DIVIDE: result = floor_of(a / b); break;
    case OP_MODULO:
        if (isnan(a) || isinf(a) || isnan(b)) {
            return overflow(vm); /* infinities and NaN */
        }
        result = remainder_of(a < 0 ? -a : a, b < 0 ? -b : b);
        result = a < 0 ? -result : result;
        result += result != 0 && (result < 0) != (b < 0) ? b : 0;
        break;
    default: /* OP_POWER */
        return ellm_vm_fail(vm, "chat template, line %u: ** is for whole numbers", (unsigned)vm->line);
    }
    return (value){.kind = REAL, .d = result};
}

value ellm_vm_arithmetic(machine *vm, uint32_t op, const value *a, const value *b) {
    if (is_number(a) && is_number(b)) {
        return a->kind == REAL || b->kind == REAL ? reals(vm, op, as_real(a), as_real(b))
                                                  : integers(vm, op, a->i, b->i);
    }
    bool sequence = a->kind == STRING || a->kind == LIST || a->kind == TUPLE;
    if (op == OP_ADD && sequence && a->kind == b->kind) {
        return join_two(vm, a, b);
    }
    if (op == OP_MULTIPLY && sequence && (b->kind == INTEGER || b->kind == BOOLEAN)) {
        return repeat(vm, a, b->i);
    }
    if (op == OP_MULTIPLY && (b->kind == STRING || b->kind == LIST || b->kind == TUPLE)
        && (a->kind == INTEGER || a->kind == BOOLEAN)) {
        return repeat(vm, b, a->i);
    }
    if (a->kind == UNDEFINED || b->kind == UNDEFINED) {
        return undefined_use(vm, a->kind == UNDEFINED ? a : b);
    }
    return ellm_vm_fail(vm, "chat template, line %u: these values cannot be combined", (unsigned)vm->line);
}
