/* The pattern matcher: Oniguruma's leftmost-first backtracking over a few instructions (FORMAT.md, "Patterns").
 *
 * A repeated single character is one instruction with one backtracking frame, so the usual pre-tokenizer patterns
 * need a handful of frames whatever the text. */
#include <stdlib.h>

#include "tokenizer_parts.h"
#include "utf8.h"

enum { look_depth = 8, most_frames = 1 << 22 };

typedef struct frame {
    uint32_t pc;
    size_t at, least; /* resume at `at`; a span may give back characters down to `least` */
} frame;

bool ellm_class_has(const ellm_tokenizer *tokenizer, uint32_t class_index, uint32_t point) {
    const class_entry *entry = &tokenizer->classes[class_index];
    if (point < 128) {
        return entry->ascii[point / 32] >> (point % 32) & 1;
    }
    const uint32_t *ranges = tokenizer->ranges + 2 * (size_t)entry->first;
    size_t low = 0, high = entry->n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > ranges[2 * middle + 1]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < entry->n && point >= ranges[2 * low];
}

static bool push(matcher *m, uint32_t pc, size_t at, size_t least) {
    if (m->n_frames == m->cap_frames) {
        size_t cap = m->cap_frames == 0 ? 64 : 2 * m->cap_frames;
        frame *frames = cap > most_frames ? NULL : realloc(m->frames, cap * sizeof *frames);
        if (frames == NULL) {
            m->status = ELLM_NO_MEMORY;
            return false;
        }
        m->frames = frames;
        m->cap_frames = cap;
    }
    m->frames[m->n_frames++] = (frame){pc, at, least};
    return true;
}

/* Takes the newest alternative above `base`. */
static bool backtrack(matcher *m, const uint8_t *text, size_t base, uint32_t *pc, size_t *at) {
    if (m->n_frames == base) {
        return false;
    }
    frame *top = &m->frames[m->n_frames - 1];
    *pc = top->pc;
    *at = top->at;
    if (top->at > top->least) {
        do {
            top->at--;
        } while (top->at > top->least && (text[top->at] & 0xC0) == 0x80);
    } else {
        m->n_frames--;
    }
    return true;
}

static size_t span(const ellm_tokenizer *t, const uint32_t *code, const uint8_t *text, size_t n, size_t *at,
                   size_t *least) {
    size_t count = 0;
    while (count < code[3] && *at < n) {
        uint32_t point;
        size_t length = ellm_utf8_read(text + *at, n - *at, &point);
        if (!ellm_class_has(t, code[1], point)) {
            break;
        }
        *at += length;
        if (++count == code[2]) {
            *least = *at;
        }
    }
    return count;
}

static bool run(matcher *m, uint32_t pc, const uint8_t *text, size_t n, size_t at, size_t *end, unsigned depth) {
    const ellm_tokenizer *t = m->tokenizer;
    size_t base = m->n_frames;
    if (depth > look_depth) {
        m->status = ELLM_TOKENIZER_INVALID;
        return false;
    }
    for (;;) {
        const uint32_t *code = t->code + pc;
        bool ok = true;
        if (m->budget == 0) {
            m->status = ELLM_TOKENIZER_INVALID;
        }
        if (m->status != ELLM_OK) {
            m->n_frames = base;
            return false;
        }
        m->budget--;
        switch (code[0]) {
        case OP_CHAR:
        case OP_CLASS: {
            uint32_t point = ELLM_UTF8_BAD;
            size_t length = at < n ? ellm_utf8_read(text + at, n - at, &point) : 0;
            ok = length != 0 && (code[0] == OP_CHAR ? point == code[1] : ellm_class_has(t, code[1], point));
            at += length;
            pc += 2;
            break;
        }
        case OP_SPAN: {
            size_t least = at;
            size_t count = span(t, code, text, n, &at, &least);
            m->budget -= count / 4 < m->budget ? count / 4 : m->budget;
            ok = count >= code[2];
            pc += 5;
            if (ok && code[4] == 0 && at > least) {
                size_t previous = at;
                do {
                    previous--;
                } while (previous > least && (text[previous] & 0xC0) == 0x80);
                ok = push(m, pc, previous, least);
            }
            break;
        }
        case OP_SPLIT:
            ok = push(m, code[2], at, at);
            pc = code[1];
            break;
        case OP_JUMP: pc = code[1]; break;
        case OP_LOOK: {
            size_t unused;
            bool found = run(m, pc + 3, text, n, at, &unused, depth + 1);
            ok = found != (code[1] != 0);
            pc = code[2];
            break;
        }
        default: /* OP_MATCH */
            m->n_frames = base;
            *end = at;
            return true;
        }
        if (!ok && (m->status != ELLM_OK || !backtrack(m, text, base, &pc, &at))) {
            m->n_frames = base;
            return false;
        }
    }
}

bool ellm_match_find(matcher *m, uint32_t pc, const uint8_t *text, size_t n, size_t from, size_t *start, size_t *end) {
    for (size_t at = from; at < n && m->status == ELLM_OK;) {
        if (run(m, pc, text, n, at, end, 0) && *end > at) {
            *start = at;
            return true;
        }
        uint32_t point;
        at += ellm_utf8_read(text + at, n - at, &point);
    }
    return false;
}
