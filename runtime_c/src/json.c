#include "json.h"

#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

struct reader {
    const char *start, *at, *end;
    ellm_region *region;
    const char *wrong; /* reason of the failure, NULL while all is well */
    bool exhausted;    /* the failure is one of memory */
};

static bool wrong(struct reader *reader, const char *reason) {
    reader->wrong = reason;
    return false;
}

static bool exhausted(struct reader *reader) {
    reader->exhausted = true;
    return wrong(reader, "it needs too much memory");
}

static void skip_space(struct reader *reader) {
    while (reader->at < reader->end
           && (*reader->at == ' ' || *reader->at == '\n' || *reader->at == '\r' || *reader->at == '\t')) {
        reader->at++;
    }
}

static bool take(struct reader *reader, const char *word) {
    size_t bytes = strlen(word);
    if ((size_t)(reader->end - reader->at) < bytes || memcmp(reader->at, word, bytes) != 0) {
        return false;
    }
    reader->at += bytes;
    return true;
}

static bool take_char(struct reader *reader, char c) {
    if (reader->at == reader->end || *reader->at != c) {
        return false;
    }
    reader->at++;
    return true;
}

/* ---- strings ---- */

/* Length of the valid UTF-8 sequence at `at`, 0 if there is none. */
static size_t utf8_length(const unsigned char *at, const unsigned char *end) {
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = at[0] < 0x80 ? 1 : at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : at[0] < 0xf5 ? 4 : 0;
    if (n <= 1) {
        return n;
    }
    if ((size_t)(end - at) < n) {
        return 0;
    }
    uint32_t code = at[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0;
        }
        code = code << 6 | (at[i] & 0x3fu);
    }
    return code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : n;
}

static char *utf8_write(char *out, uint32_t code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        *out++ = (char)(0xe0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    } else {
        *out++ = (char)(0xf0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3f));
        *out++ = (char)(0x80 | (code >> 6 & 0x3f));
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    return out;
}

static bool read_hex4(struct reader *reader, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, reader->at++) {
        char c = reader->at < reader->end ? *reader->at : ' ';
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16) {
            return wrong(reader, "\\u needs four hexadecimal digits");
        }
        *code = *code << 4 | digit;
    }
    return true;
}

/* One escape sequence, `at` behind its backslash, to `out`. */
static bool read_escape(struct reader *reader, char **out) {
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    char c = reader->at < reader->end ? *reader->at++ : '\0';
    const char *found = c != '\0' ? strchr(names, c) : NULL;
    if (found != NULL) {
        *(*out)++ = values[found - names];
        return true;
    }
    uint32_t code;
    if (c != 'u') {
        return wrong(reader, "a string holds an unknown escape");
    }
    if (!read_hex4(reader, &code)) {
        return false;
    }
    if (code >= 0xd800 && code < 0xdc00) {
        const char *behind = reader->at;
        uint32_t low = 0;
        if (take(reader, "\\u") && !read_hex4(reader, &low)) {
            return false;
        }
        if (low >= 0xdc00 && low < 0xe000) {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else {
            reader->at = behind;
        }
    }
    *out = utf8_write(*out, code >= 0xd800 && code < 0xe000 ? 0xfffd : code);
    return true;
}

static bool read_string(struct reader *reader, const char **text, uint32_t *bytes) {
    if (reader->at == reader->end || *reader->at != '"') {
        return wrong(reader, "a string was expected");
    }
    const char *close = ++reader->at;
    bool plain = true; /* printable ASCII, no escapes */
    while (close < reader->end && *close != '"') {
        plain = plain && *close >= ' ' && *close <= '~' && *close != '\\';
        close += *close == '\\' && close + 1 < reader->end;
        close++;
    }
    if (close >= reader->end) {
        return wrong(reader, "a string does not end");
    }
    /* No escape is shorter than what it stands for: \uXXXX gives at most 3 bytes, a pair 4. */
    char *out = ellm_region_alloc(reader->region, (size_t)(close - reader->at) + 1, 1);
    if (out == NULL) {
        return exhausted(reader);
    }
    *text = out;
    if (plain) {
        *bytes = (uint32_t)(close - reader->at);
        memcpy(out, reader->at, *bytes);
        reader->at = close + 1;
        return true;
    }
    while (reader->at < close) {
        unsigned char c = (unsigned char)*reader->at;
        if (c == '\\') {
            reader->at++;
            if (!read_escape(reader, &out)) {
                return false;
            }
            continue;
        }
        size_t n = utf8_length((const unsigned char *)reader->at, (const unsigned char *)close);
        if (c < 0x20 || n == 0) {
            return wrong(reader, c < 0x20 ? "a string holds a control character" : "a string is not UTF-8");
        }
        memcpy(out, reader->at, n);
        out += n;
        reader->at += n;
    }
    *bytes = (uint32_t)(out - *text);
    reader->at = close + 1;
    return true;
}

/* ---- numbers ---- */

/* strtod with a point for a point, whatever the process's locale, and for as many digits as there are. */
static bool parse_real(struct reader *reader, const char *text, size_t bytes, double *result) {
    const char *point = localeconv()->decimal_point;
    size_t n = 0, n_point = strlen(point);
    char short_copy[64], *copy = short_copy;
    if (bytes + n_point >= sizeof short_copy) {
        copy = ellm_region_alloc(reader->region, bytes + n_point + 1, 1);
        if (copy == NULL) {
            return exhausted(reader);
        }
    }
    for (size_t i = 0; i < bytes; i++) { /* a number has one point at most */
        size_t piece_bytes = text[i] == '.' ? n_point : 1;
        memcpy(copy + n, text[i] == '.' ? point : &text[i], piece_bytes);
        n += piece_bytes;
    }
    copy[n] = '\0';
    *result = strtod(copy, NULL);
    return (*result <= 1.7976931348623157e308 && *result >= -1.7976931348623157e308)
           || wrong(reader, "a number is too large");
}

static const char *skip_digits(const char *at, const char *end) {
    while (at < end && *at >= '0' && *at <= '9') {
        at++;
    }
    return at;
}

static bool read_number(struct reader *reader, ellm_json *value) {
    const char *begin = reader->at, *at = begin, *end = reader->end;
    at += at < end && *at == '-';
    const char *digits = at;
    at = skip_digits(at, end);
    bool good = at > digits && (*digits != '0' || at == digits + 1), whole = true;
    if (good && at < end && *at == '.') {
        const char *fraction = ++at;
        at = skip_digits(at, end);
        good = at > fraction;
        whole = false;
    }
    if (good && at < end && (*at == 'e' || *at == 'E')) {
        at++;
        at += at < end && (*at == '+' || *at == '-');
        const char *exponent = at;
        at = skip_digits(at, end);
        good = at > exponent;
        whole = false;
    }
    if (!good) {
        return wrong(reader, "a value was expected");
    }
    reader->at = at;
    int64_t integer = 0;
    if (whole) {
        int64_t sign = *begin == '-' ? -1 : 1;
        for (; whole && digits < at; digits++) {
            whole = !__builtin_mul_overflow(integer, 10, &integer)
                    && !__builtin_add_overflow(integer, sign * (*digits - '0'), &integer);
        }
    }
    if (whole) {
        value->kind = ELLM_JSON_INT;
        value->integer = integer;
        return true;
    }
    value->kind = ELLM_JSON_REAL;
    return parse_real(reader, begin, (size_t)(at - begin), &value->real);
}

/* ---- the tree ---- */

/* A scalar, or an array or object that is opened and still empty. */
static bool read_value(struct reader *reader, ellm_json *value) {
    char c = reader->at < reader->end ? *reader->at : '\0';
    if (c == '{' || c == '[') {
        reader->at++;
        value->kind = c == '{' ? ELLM_JSON_OBJECT : ELLM_JSON_ARRAY;
        return true;
    }
    if (c == '"') {
        value->kind = ELLM_JSON_STRING;
        return read_string(reader, &value->text, &value->count);
    }
    if (c == '-' || (c >= '0' && c <= '9')) {
        return read_number(reader, value);
    }
    if (take(reader, "null")) {
        value->kind = ELLM_JSON_NULL;
        return true;
    }
    bool yes = take(reader, "true");
    if (yes || take(reader, "false")) {
        value->kind = ELLM_JSON_BOOL;
        value->integer = yes;
        return true;
    }
    return wrong(reader, "a value was expected");
}

/* Names are compared as they end: one that holds NULs has U+FFFD in their places, and is like no other. */
static bool replace_nuls(struct reader *reader, const char **key, size_t bytes) {
    char *copy = ellm_region_alloc(reader->region, 3 * bytes + 1, 1), *out = copy;
    if (copy == NULL) {
        return exhausted(reader);
    }
    for (size_t i = 0; i < bytes; i++) {
        out = (*key)[i] == '\0' ? utf8_write(out, 0xfffd) : (*out = (*key)[i], out + 1);
    }
    *out = '\0';
    *key = copy;
    return true;
}

/* The opening of a member or element of `parent`: its key, up to the value. */
static bool read_key(struct reader *reader, const ellm_json *parent, ellm_json *value) {
    if (parent->kind != ELLM_JSON_OBJECT) {
        return true;
    }
    uint32_t bytes;
    if (!read_string(reader, &value->key, &bytes)) {
        return false;
    }
    if (memchr(value->key, '\0', bytes) != NULL && !replace_nuls(reader, &value->key, bytes)) {
        return false;
    }
    skip_space(reader);
    if (!take_char(reader, ':')) {
        return wrong(reader, "':' was expected");
    }
    skip_space(reader);
    return true;
}

static bool read_tree(struct reader *reader, ellm_json **root) {
    ellm_json *open[ELLM_JSON_DEPTH];  /* arrays and objects still open */
    ellm_json **link[ELLM_JSON_DEPTH]; /* where the next element of each is hung */
    size_t depth = 0;
    *root = NULL;
    skip_space(reader);
    for (;;) {
        ellm_json *parent = depth > 0 ? open[depth - 1] : NULL;
        ellm_json *value = ellm_region_alloc(reader->region, 1, sizeof *value);
        if (value == NULL) {
            return exhausted(reader);
        }
        if ((parent != NULL && !read_key(reader, parent, value)) || !read_value(reader, value)) {
            return false;
        }
        if (parent == NULL) {
            *root = value;
        } else {
            *link[depth - 1] = value;
            link[depth - 1] = &value->next;
            parent->count++;
        }
        skip_space(reader);
        if (value->kind == ELLM_JSON_ARRAY || value->kind == ELLM_JSON_OBJECT) {
            if (!take_char(reader, value->kind == ELLM_JSON_ARRAY ? ']' : '}')) {
                if (depth == ELLM_JSON_DEPTH) {
                    return wrong(reader, "it is nested too deeply");
                }
                open[depth] = value;
                link[depth++] = &value->first;
                continue;
            }
            skip_space(reader);
        }
        for (;;) { /* close what ends here, or go on with the next element */
            if (depth == 0) {
                return reader->at == reader->end || wrong(reader, "something follows the value");
            }
            if (take_char(reader, ',')) {
                skip_space(reader);
                break;
            }
            if (!take_char(reader, open[depth - 1]->kind == ELLM_JSON_ARRAY ? ']' : '}')) {
                return wrong(reader, "',' or a closing bracket was expected");
            }
            depth--;
            skip_space(reader);
        }
    }
}

ellm_status ellm_json_read(const char *text, size_t n_bytes, ellm_region *region, ellm_status bad, const char *name,
                           ellm_json **value, ellm_error *error) {
    struct reader reader = {.start = text, .at = text, .end = text + n_bytes, .region = region};
    if (n_bytes > UINT32_MAX / 2) {
        return ellm_fail(error, bad, "%s: JSON of more than 2 GiB", name);
    }
    if (read_tree(&reader, value)) {
        return ELLM_OK;
    }
    *value = NULL;
    size_t line = 1;
    for (const char *at = text; at < reader.at && at < reader.end; at++) {
        line += *at == '\n';
    }
    return ellm_fail(error, reader.exhausted ? ELLM_NO_MEMORY : bad, "%s: not JSON at line %zu, byte %zu: %s", name,
                     line, (size_t)(reader.at - text), reader.wrong);
}

const ellm_json *ellm_json_get(const ellm_json *object, const char *key) {
    const ellm_json *found = NULL;
    if (object != NULL && object->kind == ELLM_JSON_OBJECT) {
        for (const ellm_json *member = object->first; member != NULL; member = member->next) {
            if (strcmp(member->key, key) == 0) {
                found = member;
            }
        }
    }
    return found;
}

bool ellm_json_int(const ellm_json *value, int64_t least, int64_t most, int64_t *result) {
    if (value == NULL || value->kind != ELLM_JSON_INT || value->integer < least || value->integer > most) {
        return false;
    }
    *result = value->integer;
    return true;
}

bool ellm_json_real(const ellm_json *value, double *result) {
    if (value == NULL || (value->kind != ELLM_JSON_INT && value->kind != ELLM_JSON_REAL)) {
        return false;
    }
    *result = value->kind == ELLM_JSON_INT ? (double)value->integer : value->real;
    return true;
}

const char *ellm_json_text(const ellm_json *value, size_t most_bytes) {
    if (value == NULL || value->kind != ELLM_JSON_STRING || value->count == 0 || value->count > most_bytes
        || memchr(value->text, '\0', value->count) != NULL) {
        return NULL;
    }
    return value->text;
}

bool ellm_json_equals(const ellm_json *value, const char *text) {
    return value != NULL && value->kind == ELLM_JSON_STRING && value->count == strlen(text)
           && memcmp(value->text, text, value->count) == 0;
}
