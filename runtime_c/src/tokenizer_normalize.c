/* Normalizer steps: Unicode forms, character maps, replacement, prepending, stripping. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_parts.h"
#include "utf8.h"

enum { hangul_s = 0xAC00, hangul_l = 0x1100, hangul_v = 0x1161, hangul_t = 0x11A7 };
enum { n_l = 19, n_v = 21, n_t = 28, n_s = n_l * n_v * n_t };

bool ellm_buffer_add(buffer *to, const void *data, size_t n) {
    if (n > to->cap - to->n) {
        size_t cap = 2 * to->cap + n + 64;
        uint8_t *grown = cap > SIZE_MAX / 4 ? NULL : realloc(to->data, cap);
        if (grown == NULL) {
            return false;
        }
        to->data = grown;
        to->cap = cap;
    }
    if (n != 0) {
        memcpy(to->data + to->n, data, n);
        to->n += n;
    }
    return true;
}

bool ellm_buffer_add_point(buffer *to, uint32_t point) {
    uint8_t bytes[4];
    return ellm_buffer_add(to, bytes, ellm_utf8_write(point, bytes));
}

void ellm_buffer_free(buffer *from) {
    free(from->data);
    *from = (buffer){0};
}

static void replace_by(buffer *text, buffer *other) {
    ellm_buffer_free(text);
    *text = *other;
    *other = (buffer){0};
}

static uint32_t combining_class(const ellm_tokenizer *t, uint32_t point) {
    size_t low = 0, high = t->n_marks;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > t->marks[middle].b) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->n_marks && point >= t->marks[low].a ? t->marks[low].c : 0;
}

static const map_entry *map_find(const ellm_tokenizer *t, const step *s, uint32_t point) {
    const map_entry *map = t->maps + s->a[0];
    size_t low = 0, high = s->a[1];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > map[middle].point) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < s->a[1] && map[low].point == point ? &map[low] : NULL;
}

static bool add_mapped(const ellm_tokenizer *t, const step *s, uint32_t point, buffer *out) {
    const map_entry *entry = map_find(t, s, point);
    if (entry == NULL) {
        uint32_t index = point - hangul_s;
        if (s->kind != STEP_DECOMPOSE || point < hangul_s || index >= n_s) {
            return ellm_buffer_add_point(out, point);
        }
        return ellm_buffer_add_point(out, hangul_l + index / (n_v * n_t))
               && ellm_buffer_add_point(out, hangul_v + index / n_t % n_v)
               && (index % n_t == 0 || ellm_buffer_add_point(out, hangul_t + index % n_t));
    }
    for (uint32_t i = 0; i < entry->n; i++) {
        if (!ellm_buffer_add_point(out, t->values[entry->first + i])) {
            return false;
        }
    }
    return true;
}

/* Sorts the n marks at `marks` (text, bytes) stably by combining class: one pass per class that occurs. */
static bool sort_marks(const ellm_tokenizer *t, uint8_t *marks, size_t n, buffer *scratch) {
    scratch->n = 0;
    for (uint32_t least = 0;;) {
        uint32_t next = 256;
        for (size_t at = 0; at < n;) {
            uint32_t point;
            size_t length = ellm_utf8_read(marks + at, n - at, &point);
            uint32_t class = combining_class(t, point);
            if (class == least && !ellm_buffer_add(scratch, marks + at, length)) {
                return false;
            }
            next = class > least && class < next ? class : next;
            at += length;
        }
        if (next == 256) {
            break;
        }
        least = next;
    }
    memcpy(marks, scratch->data, n);
    return true;
}

static bool order_marks(const ellm_tokenizer *t, buffer *text) {
    buffer scratch = {0};
    bool ok = true;
    size_t start = 0, n_marks = 0;
    uint32_t last = 0;
    bool sorted = true;
    for (size_t at = 0; ok && at <= text->n;) {
        uint32_t point = 0, class = 0;
        size_t length = 1;
        if (at < text->n) {
            length = ellm_utf8_read(text->data + at, text->n - at, &point);
            class = point < 0x300 ? 0 : combining_class(t, point);
        }
        if (class == 0) {
            if (!sorted) {
                ok = sort_marks(t, text->data + start, at - start, &scratch);
            }
            start = at + length;
            n_marks = 0;
            sorted = true;
        } else {
            sorted = sorted && (n_marks == 0 || class >= last);
            n_marks++;
        }
        last = class;
        at += length;
    }
    ellm_buffer_free(&scratch);
    return ok;
}

static uint32_t composite(const ellm_tokenizer *t, uint32_t a, uint32_t b) {
    if (a - hangul_l < n_l && b - hangul_v < n_v) {
        return hangul_s + ((a - hangul_l) * n_v + (b - hangul_v)) * n_t;
    }
    if (a - hangul_s < n_s && (a - hangul_s) % n_t == 0 && b - hangul_t - 1 < n_t - 1) {
        return a + (b - hangul_t);
    }
    size_t low = 0, high = t->n_compose;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const triple *entry = &t->compose[middle];
        if (a > entry->a || (a == entry->a && b > entry->b)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->n_compose && t->compose[low].a == a && t->compose[low].b == b ? t->compose[low].c : 0;
}

/* Canonical composition. The text since the last starter waits in `tail`, so that the starter may still change. */
static bool compose(const ellm_tokenizer *t, const buffer *text, buffer *out) {
    buffer tail = {0};
    uint32_t starter = NO_ID, last = 0;
    bool adjacent = true, ok = true;
    for (size_t at = 0; ok && at < text->n;) {
        uint32_t point;
        at += ellm_utf8_read(text->data + at, text->n - at, &point);
        uint32_t class = combining_class(t, point);
        uint32_t merged = starter != NO_ID && (adjacent || last < class) ? composite(t, starter, point) : 0;
        if (merged != 0) {
            starter = merged;
        } else if (class == 0) {
            ok = (starter == NO_ID || ellm_buffer_add_point(out, starter)) && ellm_buffer_add(out, tail.data, tail.n);
            tail.n = 0;
            starter = point;
            adjacent = true;
        } else {
            ok = ellm_buffer_add_point(&tail, point);
            last = class;
            adjacent = false;
        }
    }
    ok = ok && (starter == NO_ID || ellm_buffer_add_point(out, starter)) && ellm_buffer_add(out, tail.data, tail.n);
    ellm_buffer_free(&tail);
    return ok;
}

static bool replace_matches(matcher *m, const step *s, const buffer *text, buffer *out) {
    const ellm_tokenizer *t = m->tokenizer;
    size_t at = 0, start, end;
    while (ellm_match_find(m, s->a[0], text->data, text->n, at, &start, &end)) {
        if (!ellm_buffer_add(out, text->data + at, start - at)
            || !ellm_buffer_add(out, t->strings + s->a[1], s->a[2])) {
            return false;
        }
        at = end;
    }
    return ellm_buffer_add(out, text->data + at, text->n - at);
}

static void strip(const ellm_tokenizer *t, const step *s, buffer *text) {
    size_t start = 0, end = text->n;
    while (s->a[1] != 0 && start < end) {
        uint32_t point;
        size_t length = ellm_utf8_read(text->data + start, end - start, &point);
        if (!ellm_class_has(t, s->a[0], point)) {
            break;
        }
        start += length;
    }
    while (s->a[2] != 0 && end > start) {
        size_t before = end - 1;
        while (before > start && (text->data[before] & 0xC0) == 0x80) {
            before--;
        }
        uint32_t point;
        ellm_utf8_read(text->data + before, end - before, &point);
        if (!ellm_class_has(t, s->a[0], point)) {
            break;
        }
        end = before;
    }
    memmove(text->data, text->data + start, end - start);
    text->n = end - start;
}

static bool run_step(matcher *m, const step *s, buffer *text, buffer *out) {
    const ellm_tokenizer *t = m->tokenizer;
    switch (s->kind) {
    case STEP_DECOMPOSE:
    case STEP_MAP:
        for (size_t at = 0; at < text->n;) {
            uint32_t point;
            at += ellm_utf8_read(text->data + at, text->n - at, &point);
            if (!add_mapped(t, s, point, out)) {
                return false;
            }
        }
        return s->kind == STEP_MAP || order_marks(t, out);
    case STEP_COMPOSE: return compose(t, text, out);
    case STEP_REPLACE: return replace_matches(m, s, text, out);
    case STEP_CHARSMAP: return ellm_charsmap(t, s, text, out);
    default: /* STEP_PREPEND */
        return ellm_buffer_add(out, t->strings + s->a[0], s->a[1]) && ellm_buffer_add(out, text->data, text->n);
    }
}

ellm_status ellm_normalize(matcher *m, buffer *text) {
    const ellm_tokenizer *t = m->tokenizer;
    for (uint32_t i = 0; i < t->n_normalizers && text->n != 0; i++) {
        const step *s = &t->steps[i];
        if (s->kind == STEP_STRIP) {
            strip(t, s, text);
            continue;
        }
        buffer out = {0};
        if (!run_step(m, s, text, &out)) {
            ellm_buffer_free(&out);
            return ELLM_NO_MEMORY;
        }
        if (m->status != ELLM_OK) {
            ellm_buffer_free(&out);
            return m->status;
        }
        replace_by(text, &out);
    }
    return ELLM_OK;
}
