/* Text of the template language: str(), repr(), JSON, and Python's string methods. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "template_parts.h"
#include "utf8.h"

enum { most_output = 64 << 20 };

void ellm_vm_write(machine *vm, text_buffer *to, const char *text, size_t n) {
    if (vm->status != ELLM_OK || n == 0) {
        return;
    }
    if (n > most_output - to->n) {
        ellm_vm_limit(vm);
        return;
    }
    if (to->data == NULL || n > to->cap - to->n) {
        size_t cap = 2 * to->cap + n + 256;
        char *grown = realloc(to->data, cap);
        if (grown == NULL) {
            vm->status = ellm_fail(vm->error, ELLM_NO_MEMORY, "chat template: no memory for its text");
            return;
        }
        to->data = grown;
        to->cap = cap;
    }
    memcpy(to->data + to->n, text, n);
    to->n += n;
}

value ellm_vm_take(machine *vm, text_buffer *from) {
    value made = ellm_vm_string(vm, from->data != NULL ? from->data : "", from->n);
    free(from->data);
    *from = (text_buffer){0};
    return made;
}

static void write_point(machine *vm, text_buffer *to, uint32_t point) {
    uint8_t bytes[4];
    size_t n = ellm_utf8_write(point, bytes);
    ellm_vm_write(vm, to, (const char *)bytes, n);
}

static uint32_t next_point(const value *v, size_t *at) {
    uint32_t point;
    *at += ellm_utf8_read((const uint8_t *)v->s + *at, v->bytes - *at, &point);
    return point > 0x10FFFF ? 0xFFFD : point;
}

/* ---- str(), repr() ---- */

/* The shortest digits that read back as the same number, laid out as Python's repr does. */
static void write_real(machine *vm, text_buffer *to, double number) {
    char digits[40], out[64];
    if (isnan(number) || isinf(number)) {
        const char *name = isnan(number) ? "nan" : number < 0 ? "-inf" : "inf";
        ellm_vm_write(vm, to, name, strlen(name));
        return;
    }
    int precision = 0;
    do {
        snprintf(digits, sizeof digits, "%.*e", precision, fabs(number));
    } while (precision++ < 17 && strtod(digits, NULL) != fabs(number));
    const char *e = strchr(digits, 'e');
    int exponent = (int)strtol(e + 1, NULL, 10), n_digits = 0;
    for (const char *c = digits; c < e; c++) {
        if (*c >= '0' && *c <= '9') {
            digits[n_digits++] = *c; /* drops the decimal point, whatever the locale calls it */
        }
    }
    size_t n = 0;
    if (signbit(number)) {
        out[n++] = '-';
    }
    int point = exponent >= -4 && exponent < 16 ? exponent + 1 : 1;
    if (point <= 0) {
        out[n++] = '0';
        out[n++] = '.';
        for (int i = point; i < 0; i++) {
            out[n++] = '0';
        }
    }
    for (int i = 0; i < n_digits || i < point; i++) {
        if (i == point && i > 0) {
            out[n++] = '.';
        }
        out[n++] = i < n_digits ? digits[i] : '0';
    }
    if (point != exponent + 1) {
        n += (size_t)snprintf(out + n, sizeof out - n, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (n_digits <= point) {
        out[n++] = '.';
        out[n++] = '0';
    }
    ellm_vm_write(vm, to, out, n);
}

/* What repr() escapes. Unassigned code points, which Python escapes too, are printed as they are. */
static bool is_printable(uint32_t point) {
    static const uint32_t hidden[][2] = {{0, 0x1F},        {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},
                                         {0x61C, 0x61C},   {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x1680, 0x1680},
                                         {0x180E, 0x180E}, {0x2000, 0x200F},   {0x2028, 0x202F},   {0x205F, 0x206F},
                                         {0x3000, 0x3000}, {0xE000, 0xF8FF},   {0xFEFF, 0xFEFF},   {0xFFF0, 0xFFFB},
                                         {0xFFFE, 0xFFFF}, {0xE0000, 0xE00FF}, {0xE01F0, 0x10FFFF}};
    for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++) {
        if (point >= hidden[i][0] && point <= hidden[i][1]) {
            return false;
        }
    }
    return true;
}

static void write_repr(machine *vm, text_buffer *to, const value *v) {
    char quote = memchr(v->s, '\'', v->bytes) != NULL && memchr(v->s, '"', v->bytes) == NULL ? '"' : '\'';
    ellm_vm_write(vm, to, &quote, 1);
    for (size_t at = 0; at < v->bytes;) {
        size_t start = at;
        uint32_t point = next_point(v, &at);
        char escaped[16];
        const char *known = point == '\n' ? "\\n" : point == '\r' ? "\\r" : point == '\t' ? "\\t" : NULL;
        if (known != NULL) {
            ellm_vm_write(vm, to, known, 2);
        } else if (point == '\\' || point == (unsigned char)quote) {
            escaped[0] = '\\';
            escaped[1] = (char)point;
            ellm_vm_write(vm, to, escaped, 2);
        } else if (!is_printable(point)) {
            int n = point < 0x100     ? snprintf(escaped, sizeof escaped, "\\x%02x", (unsigned)point)
                    : point < 0x10000 ? snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)point)
                                      : snprintf(escaped, sizeof escaped, "\\U%08x", (unsigned)point);
            ellm_vm_write(vm, to, escaped, (size_t)n);
        } else {
            ellm_vm_write(vm, to, v->s + start, at - start);
        }
    }
    ellm_vm_write(vm, to, &quote, 1);
}

static void print_value(machine *vm, text_buffer *to, const value *v, unsigned depth);

static void print_items(machine *vm, text_buffer *to, const value *v, unsigned depth) {
    bool is_dict = v->kind == DICT;
    size_t n = is_dict ? v->dict->n : v->list->n;
    ellm_vm_write(vm, to, is_dict ? "{" : v->kind == LIST ? "[" : "(", 1);
    for (size_t i = 0; i < n && vm->status == ELLM_OK; i++) {
        if (i > 0) {
            ellm_vm_write(vm, to, ", ", 2);
        }
        if (is_dict) {
            print_value(vm, to, &v->dict->pairs[2 * i], depth + 1);
            ellm_vm_write(vm, to, ": ", 2);
        }
        print_value(vm, to, is_dict ? &v->dict->pairs[2 * i + 1] : &v->list->items[i], depth + 1);
    }
    if (v->kind == TUPLE && n == 1) {
        ellm_vm_write(vm, to, ",", 1);
    }
    ellm_vm_write(vm, to, is_dict ? "}" : v->kind == LIST ? "]" : ")", 1);
}

/* str() at depth 0, repr() below. */
static void print_value(machine *vm, text_buffer *to, const value *v, unsigned depth) {
    char number[32];
    if (depth > most_value_depth || !ellm_vm_spend(vm, 1)) {
        ellm_vm_limit(vm);
        return;
    }
    switch (v->kind) {
    case UNDEFINED:
        if (depth > 0) {
            ellm_vm_write(vm, to, "Undefined", 9);
        }
        break;
    case NONE: ellm_vm_write(vm, to, "None", 4); break;
    case BOOLEAN: ellm_vm_write(vm, to, v->i != 0 ? "True" : "False", v->i != 0 ? 4 : 5); break;
    case INTEGER:
        ellm_vm_write(vm, to, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)v->i));
        break;
    case REAL: write_real(vm, to, v->d); break;
    case STRING:
        if (depth == 0) {
            ellm_vm_write(vm, to, v->s, v->bytes);
        } else {
            write_repr(vm, to, v);
        }
        break;
    case LIST:
    case TUPLE:
    case DICT: print_items(vm, to, v, depth); break;
    default:
        ellm_vm_fail(vm, "chat template, line %u: a namespace, macro, loop or method cannot be printed",
                     (unsigned)vm->line);
    }
}

void ellm_vm_print(machine *vm, text_buffer *to, const value *v) {
    print_value(vm, to, v, 0);
}

value ellm_vm_str(machine *vm, const value *v) {
    if (v->kind == STRING) {
        return *v;
    }
    text_buffer text = {0};
    print_value(vm, &text, v, 0);
    return ellm_vm_take(vm, &text);
}

/* ---- JSON ---- */

typedef struct json_writer {
    machine *vm;
    text_buffer *to;
    int64_t indent; /* below 0: all on one line */
    bool ensure_ascii, sort_keys;
} json_writer;

static void json_string(const json_writer *w, const value *v) {
    ellm_vm_write(w->vm, w->to, "\"", 1);
    for (size_t at = 0; at < v->bytes;) {
        size_t start = at;
        uint32_t point = next_point(v, &at);
        static const char short_forms[] = "\"\"\\\\\nn\rr\tt\bb\ff";
        const char *form = NULL;
        for (const char *c = short_forms; *c != 0 && form == NULL; c += 2) {
            form = (unsigned char)*c == point ? c + 1 : NULL;
        }
        char escaped[16];
        if (form != NULL && point != 0) {
            escaped[0] = '\\';
            escaped[1] = *form;
            ellm_vm_write(w->vm, w->to, escaped, 2);
        } else if (point < 0x20 || (w->ensure_ascii && point > 0x7E && point < 0x10000 && point != 0x7F)) {
            int n = snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)point);
            ellm_vm_write(w->vm, w->to, escaped, (size_t)n);
        } else if (w->ensure_ascii && point >= 0x10000) {
            int n = snprintf(escaped, sizeof escaped, "\\u%04x\\u%04x", (unsigned)(0xD7C0 + (point >> 10)),
                             (unsigned)(0xDC00 + (point & 0x3FF)));
            ellm_vm_write(w->vm, w->to, escaped, (size_t)n);
        } else {
            ellm_vm_write(w->vm, w->to, v->s + start, at - start);
        }
    }
    ellm_vm_write(w->vm, w->to, "\"", 1);
}

static void json_break(const json_writer *w, unsigned depth) {
    if (w->indent < 0) {
        return;
    }
    ellm_vm_write(w->vm, w->to, "\n", 1);
    for (int64_t i = 0; i < w->indent * depth && w->vm->status == ELLM_OK; i++) {
        ellm_vm_write(w->vm, w->to, " ", 1);
    }
}

static void json_key(const json_writer *w, const value *key) {
    text_buffer text = {0};
    if (key->kind == NONE || key->kind == BOOLEAN) {
        const char *name = key->kind == NONE ? "null" : key->i != 0 ? "true" : "false";
        ellm_vm_write(w->vm, &text, name, strlen(name));
    } else if (key->kind == STRING || key->kind == INTEGER || key->kind == REAL) {
        ellm_vm_print(w->vm, &text, key);
    } else {
        ellm_vm_fail(w->vm, "chat template, line %u: tojson: a key must be a string or number", (unsigned)w->vm->line);
    }
    value copy = ellm_vm_take(w->vm, &text);
    json_string(w, &copy);
}

/* Index of the pair that comes after `previous` (SIZE_MAX: at the start) in the order of keys. */
static size_t next_key(machine *vm, const dict *d, size_t previous) {
    size_t best = SIZE_MAX;
    ellm_vm_spend(vm, d->n);
    for (size_t i = 0; i < d->n && vm->status == ELLM_OK; i++) {
        bool later = previous == SIZE_MAX || ellm_vm_compare(vm, &d->pairs[2 * i], &d->pairs[2 * previous]) > 0;
        if (later && (best == SIZE_MAX || ellm_vm_compare(vm, &d->pairs[2 * i], &d->pairs[2 * best]) < 0)) {
            best = i;
        }
    }
    return best;
}

static void json_value(const json_writer *w, const value *v, unsigned depth);

static void json_items(const json_writer *w, const value *v, unsigned depth) {
    bool is_dict = v->kind == DICT;
    size_t n = is_dict ? v->dict->n : v->list->n, pair = SIZE_MAX;
    ellm_vm_write(w->vm, w->to, is_dict ? "{" : "[", 1);
    for (size_t i = 0; i < n && w->vm->status == ELLM_OK; i++) {
        if (i > 0) {
            ellm_vm_write(w->vm, w->to, w->indent < 0 ? ", " : ",", w->indent < 0 ? 2 : 1);
        }
        json_break(w, depth + 1);
        if (is_dict) {
            pair = w->sort_keys ? next_key(w->vm, v->dict, pair) : i;
            if (pair == SIZE_MAX) {
                break;
            }
            json_key(w, &v->dict->pairs[2 * pair]);
            ellm_vm_write(w->vm, w->to, ": ", 2);
        }
        json_value(w, is_dict ? &v->dict->pairs[2 * pair + 1] : &v->list->items[i], depth + 1);
    }
    if (n > 0) {
        json_break(w, depth);
    }
    ellm_vm_write(w->vm, w->to, is_dict ? "}" : "]", 1);
}

static void json_value(const json_writer *w, const value *v, unsigned depth) {
    if (depth > most_value_depth || !ellm_vm_spend(w->vm, 1)) {
        ellm_vm_limit(w->vm);
        return;
    }
    switch (v->kind) {
    case NONE: ellm_vm_write(w->vm, w->to, "null", 4); break;
    case BOOLEAN: ellm_vm_write(w->vm, w->to, v->i != 0 ? "true" : "false", v->i != 0 ? 4 : 5); break;
    case REAL:
        if (isnan(v->d) || isinf(v->d)) {
            const char *name = isnan(v->d) ? "NaN" : v->d < 0 ? "-Infinity" : "Infinity";
            ellm_vm_write(w->vm, w->to, name, strlen(name));
            break;
        }
        ellm_vm_print(w->vm, w->to, v);
        break;
    case INTEGER: ellm_vm_print(w->vm, w->to, v); break;
    case STRING: json_string(w, v); break;
    case LIST:
    case TUPLE:
    case DICT: json_items(w, v, depth); break;
    default: ellm_vm_fail(w->vm, "chat template, line %u: tojson: this value is not JSON", (unsigned)w->vm->line);
    }
}

void ellm_vm_tojson(machine *vm, text_buffer *to, const value *v, int64_t indent, bool ensure_ascii, bool sort_keys) {
    json_writer w = {vm, to, indent > 64 ? 64 : indent, ensure_ascii, sort_keys};
    json_value(&w, v, 0);
}

/* ---- string methods ---- */

bool ellm_vm_is_space(uint32_t point) {
    return (point >= 9 && point <= 13) || (point >= 0x1C && point <= 0x20) || point == 0x85 || point == 0xA0
           || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029
           || point == 0x202F || point == 0x205F || point == 0x3000;
}

static bool is_stripped(uint32_t point, const value *characters) {
    if (characters == NULL) {
        return ellm_vm_is_space(point);
    }
    for (size_t at = 0; at < characters->bytes;) {
        if (next_point(characters, &at) == point) {
            return true;
        }
    }
    return false;
}

value ellm_vm_strip(machine *vm, const value *v, const value *characters, bool left, bool right) {
    if (v->kind != STRING || (characters != NULL && characters->kind != STRING)) {
        return ellm_vm_fail(vm, "chat template, line %u: strip needs a string", (unsigned)vm->line);
    }
    size_t start = 0, end = v->bytes;
    while (left && start < end) {
        size_t at = start;
        if (!is_stripped(next_point(v, &at), characters)) {
            break;
        }
        start = at;
    }
    while (right && end > start) {
        size_t before = end - 1;
        while (before > start && ((unsigned char)v->s[before] & 0xC0) == 0x80) {
            before--;
        }
        size_t at = before;
        if (!is_stripped(next_point(v, &at), characters)) {
            break;
        }
        end = before;
    }
    return ellm_vm_borrow(v->s + start, end - start);
}

static void write_case(machine *vm, text_buffer *to, uint32_t point, bool up) {
    if (point < 0x80) {
        char c = (char)point;
        c = up && c >= 'a' && c <= 'z' ? (char)(c - 32) : !up && c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
        ellm_vm_write(vm, to, &c, 1);
        return;
    }
    const uint32_t *map = up ? vm->t->upper : vm->t->lower;
    size_t low = 0, n = (up ? vm->t->n_upper : vm->t->n_lower), high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > map[4 * middle]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == n || map[4 * low] != point) {
        write_point(vm, to, point);
        return;
    }
    for (size_t i = 1; i < 4 && map[4 * low + i] != 0; i++) {
        write_point(vm, to, map[4 * low + i]);
    }
}

static bool has_case(const machine *vm, uint32_t point) {
    if (point < 0x80) {
        return (point | 32) >= 'a' && (point | 32) <= 'z';
    }
    for (int up = 0; up < 2; up++) {
        const uint32_t *map = up ? vm->t->upper : vm->t->lower;
        size_t low = 0, n = up ? vm->t->n_upper : vm->t->n_lower, high = n;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (point > map[4 * middle]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low < n && map[4 * low] == point) {
            return true;
        }
    }
    return false;
}

value ellm_vm_case(machine *vm, uint32_t filter, const value *v) {
    value string = ellm_vm_str(vm, v);
    text_buffer text = {0};
    bool inside = false;
    for (size_t at = 0; at < string.bytes && vm->status == ELLM_OK;) {
        bool first = at == 0;
        uint32_t point = next_point(&string, &at);
        bool starts = filter == FILTER_CAPITALIZE ? first : !inside;
        bool up = filter == FILTER_UPPER || (filter != FILTER_LOWER && starts);
        bool separates = ellm_vm_is_space(point) || (point < 0x80 && point != 0 && strchr("-({[<", (int)point) != NULL);
        inside = filter == CASE_TITLE_METHOD ? has_case(vm, point) : !separates;
        write_case(vm, &text, point, up);
    }
    return ellm_vm_take(vm, &text);
}

size_t ellm_vm_find(const value *text, size_t from, const value *part) {
    for (size_t at = from; at + part->bytes <= text->bytes; at++) {
        if (part->bytes == 0) {
            return at;
        }
        const char *found = memchr(text->s + at, part->s[0], text->bytes - part->bytes + 1 - at);
        if (found == NULL) {
            break;
        }
        at = (size_t)(found - text->s);
        if (memcmp(found, part->s, part->bytes) == 0) {
            return at;
        }
    }
    return SIZE_MAX;
}

value ellm_vm_replace(machine *vm, const value *v, const value *old, const value *new, int64_t count) {
    if (v->kind != STRING || old->kind != STRING || new->kind != STRING) {
        return ellm_vm_fail(vm, "chat template, line %u: replace needs strings", (unsigned)vm->line);
    }
    text_buffer text = {0};
    size_t done = 0;
    while (count != 0 && vm->status == ELLM_OK) {
        size_t at = ellm_vm_find(v, done, old);
        if (at == SIZE_MAX) {
            break;
        }
        ellm_vm_write(vm, &text, v->s + done, at - done);
        ellm_vm_write(vm, &text, new->s, new->bytes);
        done = at + old->bytes;
        if (old->bytes == 0) { /* between all characters */
            size_t next = at;
            if (at == v->bytes) {
                break;
            }
            next_point(v, &next);
            ellm_vm_write(vm, &text, v->s + at, next - at);
            done = next;
        }
        count -= count > 0;
    }
    if (done < v->bytes) {
        ellm_vm_write(vm, &text, v->s + done, v->bytes - done);
    }
    return ellm_vm_take(vm, &text);
}

/* One piece that a split yields: text[*start, *end), then the rest begins at *next; false when all is done. */
static bool next_piece(const value *v, const value *separator, bool last, size_t *start, size_t *end, size_t *next) {
    if (separator != NULL) {
        size_t at = last ? SIZE_MAX : ellm_vm_find(v, *start, separator);
        *end = at == SIZE_MAX ? v->bytes : at;
        *next = at == SIZE_MAX ? SIZE_MAX : at + separator->bytes;
        return true;
    }
    for (size_t at = *start; at < v->bytes; *start = at) {
        if (!ellm_vm_is_space(next_point(v, &at))) {
            break;
        }
    }
    *end = *start;
    if (*start >= v->bytes) {
        return false;
    }
    if (last) {
        *end = v->bytes;
        *next = SIZE_MAX;
        return true;
    }
    while (*end < v->bytes) {
        size_t at = *end;
        if (ellm_vm_is_space(next_point(v, &at))) {
            break;
        }
        *end = at;
    }
    *next = *end;
    return true;
}

value ellm_vm_split(machine *vm, const value *v, const value *separator, int64_t most, bool from_right) {
    if (v->kind != STRING || (separator != NULL && (separator->kind != STRING || separator->bytes == 0))
        || (from_right && most >= 0 && separator == NULL)) {
        return ellm_vm_fail(vm, "chat template, line %u: split needs a string and a separator", (unsigned)vm->line);
    }
    size_t n_all = 0;
    for (int pass = 0;; pass++) {
        /* First pass counts. From the right only the last `most` separators count, so the first piece is joined. */
        size_t n = 0, start = 0, end = 0, next = 0, first_pieces = 0;
        if (from_right && most >= 0 && pass > 0 && n_all > (size_t)most + 1) {
            first_pieces = n_all - (size_t)most - 1;
        }
        size_t n_out = n_all - first_pieces;
        if (pass > 0 && !from_right && most >= 0 && n_out > (size_t)most + 1) {
            n_out = (size_t)most + 1;
        }
        list *items = pass > 0 ? ellm_vm_list(vm, n_out) : NULL;
        if (pass > 0 && items == NULL) {
            return (value){.kind = UNDEFINED};
        }
        while (start != SIZE_MAX && ellm_vm_spend(vm, 1)) {
            bool last = pass > 0 && !from_right && most >= 0 && n == (size_t)most;
            size_t from = start;
            if (!next_piece(v, separator, last, &from, &end, &next)) {
                break;
            }
            if (pass > 0 && n >= first_pieces && n - first_pieces < n_out) {
                size_t begin = n == first_pieces && first_pieces > 0 ? 0 : from;
                items->items[n - first_pieces] = ellm_vm_borrow(v->s + begin, end - begin);
            }
            n++;
            start = next;
        }
        if (pass > 0) {
            return (value){.kind = LIST, .list = items};
        }
        n_all = n;
    }
}
