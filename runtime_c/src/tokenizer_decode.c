/* Token ids to text, at once or one by one.
 *
 * Stream state: window holds up to 256 bytes that are not certain yet (the start of a character; with byte fallback, a
 * run of byte tokens, which `tokenizers` replaces as a whole by U+FFFD if any of it is ill-formed); n_window counts
 * them; n_printed holds the flags below and the number of leading characters stripped so far. */
#include <string.h>

#include "tokenizer_parts.h"
#include "utf8.h"

#define STRIP_DONE 0x80000000u
#define RUN_BAD    0x40000000u
#define COUNT_MASK 0x3FFFFFFFu

typedef struct sink {
    const ellm_tokenizer *t;
    ellm_stream *stream;
    char *text;
    size_t cap, n;
} sink;

static const uint8_t replacement_character[3] = {0xEF, 0xBF, 0xBD};

static void put(sink *to, const uint8_t *text, size_t n) {
    uint32_t *state = &to->stream->n_printed;
    while (n > 0 && (*state & STRIP_DONE) == 0) {
        uint32_t point;
        size_t length = ellm_utf8_read(text, n, &point);
        if ((*state & COUNT_MASK) >= to->t->start || point != to->t->strip) {
            *state |= STRIP_DONE;
            break;
        }
        ++*state;
        text += length;
        n -= length;
    }
    if (n > 0 && to->n < to->cap) {
        memcpy(to->text + to->n, text, n < to->cap - to->n ? n : to->cap - to->n);
    }
    to->n += n;
}

static void put_bad(sink *to, size_t times) {
    for (size_t i = 0; i < times; i++) {
        put(to, replacement_character, sizeof replacement_character);
    }
}

static bool is_shown(const ellm_tokenizer *t, int32_t token, bool skip_special) {
    return (uint32_t)token < t->n_tokens && (t->token_flags[token] & TOKEN_EXISTS) != 0
           && !(skip_special && (t->token_flags[token] & TOKEN_SPECIAL) != 0);
}

/* Byte-level: all bytes form one text, each ill-formed part becomes one U+FFFD. */
static void add_lossy(sink *to, const uint8_t *text, size_t n) {
    uint8_t *held = (uint8_t *)to->stream->window;
    uint32_t *n_held = &to->stream->n_window;
    for (size_t i = 0; i < n; i++) {
        held[(*n_held)++] = text[i];
        while (*n_held > 0) {
            uint32_t point;
            size_t length = ellm_utf8_read(held, *n_held, &point);
            if (point == ELLM_UTF8_CUT) {
                break;
            }
            if (point == ELLM_UTF8_BAD) {
                put_bad(to, 1);
            } else {
                put(to, held, length);
            }
            *n_held -= (uint32_t)length;
            memmove(held, held + length, *n_held);
        }
    }
}

/* Bytes of complete characters at the start of text[0, n); *bad if an ill-formed sequence follows them. */
static size_t whole_characters(const uint8_t *text, size_t n, bool *bad) {
    size_t at = 0;
    *bad = false;
    while (at < n) {
        uint32_t point;
        size_t length = ellm_utf8_read(text + at, n - at, &point);
        if (point > 0x10FFFF) {
            *bad = point == ELLM_UTF8_BAD;
            break;
        }
        at += length;
    }
    return at;
}

static void end_run(sink *to) {
    uint8_t *held = (uint8_t *)to->stream->window;
    uint32_t n = to->stream->n_window;
    bool bad;
    if (whole_characters(held, n, &bad) == n) {
        put(to, held, n);
    } else {
        put_bad(to, n);
    }
    to->stream->n_window = 0;
    to->stream->n_printed &= ~RUN_BAD;
}

/* One more byte token of a run. A run that outgrows the window is believed to be well-formed as far as it got. */
static void add_run(sink *to, uint8_t byte) {
    uint8_t *held = (uint8_t *)to->stream->window;
    uint32_t *n = &to->stream->n_window;
    bool bad;
    if ((to->stream->n_printed & RUN_BAD) != 0) {
        put_bad(to, 1);
        return;
    }
    held[(*n)++] = byte;
    size_t whole = whole_characters(held, *n, &bad);
    if (bad) {
        put_bad(to, *n);
        *n = 0;
        to->stream->n_printed |= RUN_BAD;
    } else if (*n == sizeof to->stream->window) {
        put(to, held, whole);
        *n -= (uint32_t)whole;
        memmove(held, held + whole, *n);
    }
}

static void add_text(sink *to, const uint8_t *text, size_t n, bool first) {
    const ellm_tokenizer *t = to->t;
    if (t->replacement == NULL) {
        put(to, text, n);
        return;
    }
    const uint8_t *old = t->strings + t->replacement[0], *new = t->strings + t->replacement[2];
    size_t n_old = t->replacement[1], n_new = first && (t->flags & DROP_FIRST) != 0 ? 0 : t->replacement[3];
    size_t done = 0;
    for (size_t at = 0; at + n_old <= n;) {
        if (memcmp(text + at, old, n_old) != 0) {
            at++;
            continue;
        }
        put(to, text + done, at - done);
        put(to, new, n_new);
        at += n_old;
        done = at;
    }
    put(to, text + done, n - done);
}

static void add_token(sink *to, uint32_t id) {
    const ellm_tokenizer *t = to->t;
    const uint8_t *text = t->text + t->text_ends[id];
    size_t n = t->text_ends[id + 1] - t->text_ends[id];
    bool first = !to->stream->started;
    to->stream->started = true;
    if (t->mode == DECODE_BYTES) {
        add_lossy(to, text, n);
    } else if (t->mode == DECODE_FALLBACK && (t->token_flags[id] & TOKEN_BYTE) != 0) {
        add_run(to, text[0]);
    } else {
        if (t->mode == DECODE_FALLBACK) {
            end_run(to);
        } else if (t->mode == DECODE_JOIN_SPACES && !first) {
            put(to, (const uint8_t *)" ", 1);
        }
        add_text(to, text, n, first);
    }
}

static void finish(sink *to) {
    if (to->t->mode == DECODE_BYTES) {
        put_bad(to, to->stream->n_window > 0);
        to->stream->n_window = 0;
    } else {
        end_run(to);
    }
}

static bool stream_ok(const ellm_stream *stream) {
    return stream->n_window < sizeof stream->window;
}

/* A run of byte tokens from tokens[from] on, of any length; returns where it ends. */
static size_t add_whole_run(sink *to, const int32_t *tokens, size_t from, size_t n) {
    const ellm_tokenizer *t = to->t;
    uint8_t held[4];
    size_t n_held = 0, end = from, n_bytes = 0;
    bool bad = false;
    for (; end < n; end++) {
        if (!is_shown(t, tokens[end], to->stream->skip_special)) {
            continue;
        }
        if ((t->token_flags[tokens[end]] & TOKEN_BYTE) == 0) {
            break;
        }
        n_bytes++;
        if (!bad) {
            held[n_held++] = t->text[t->text_ends[tokens[end]]];
            n_held = whole_characters(held, n_held, &bad) == n_held ? 0 : n_held;
        }
    }
    to->stream->started = to->stream->started || n_bytes > 0;
    if (bad || n_held != 0) {
        put_bad(to, n_bytes);
        return end;
    }
    for (size_t i = from; i < end; i++) {
        if (!is_shown(t, tokens[i], to->stream->skip_special)) {
            continue;
        }
        held[n_held++] = t->text[t->text_ends[tokens[i]]];
        if (whole_characters(held, n_held, &bad) == n_held) {
            put(to, held, n_held);
            n_held = 0;
        }
    }
    return end;
}

ellm_status ellm_tokenizer_decode(const ellm_tokenizer *t, const int32_t *tokens, size_t n_tokens, bool skip_special,
                                  char *text, size_t cap, size_t *n_bytes) {
    ellm_stream stream = {.skip_special = skip_special};
    sink to = {.t = t, .stream = &stream, .text = text, .cap = cap};
    *n_bytes = 0;
    for (size_t i = 0; i < n_tokens;) {
        if (tokens[i] < 0) {
            return ELLM_TOKEN_RANGE;
        }
        if (!is_shown(t, tokens[i], skip_special)) {
            i++;
        } else if (t->mode == DECODE_FALLBACK && (t->token_flags[tokens[i]] & TOKEN_BYTE) != 0) {
            i = add_whole_run(&to, tokens, i, n_tokens);
        } else {
            add_token(&to, (uint32_t)tokens[i++]);
        }
    }
    finish(&to);
    *n_bytes = to.n;
    return to.n > cap ? ELLM_BUFFER_SMALL : ELLM_OK;
}

static ellm_status deliver(const sink *to, const ellm_stream *changed, ellm_stream *stream, size_t *n_bytes) {
    *n_bytes = to->n;
    if (to->n > to->cap) {
        return ELLM_BUFFER_SMALL; /* the stream is as before: call again with more room */
    }
    *stream = *changed;
    return ELLM_OK;
}

ellm_status ellm_tokenizer_push(const ellm_tokenizer *t, ellm_stream *stream, int32_t token, char *text, size_t cap,
                                size_t *n_bytes) {
    ellm_stream changed = *stream;
    sink to = {.t = t, .stream = &changed, .text = text, .cap = cap};
    *n_bytes = 0;
    if (token < 0 || !stream_ok(stream)) {
        return ELLM_TOKEN_RANGE;
    }
    if (is_shown(t, token, stream->skip_special)) {
        add_token(&to, (uint32_t)token);
    }
    return deliver(&to, &changed, stream, n_bytes);
}

ellm_status ellm_tokenizer_flush(const ellm_tokenizer *t, ellm_stream *stream, char *text, size_t cap,
                                 size_t *n_bytes) {
    ellm_stream changed = *stream;
    sink to = {.t = t, .stream = &changed, .text = text, .cap = cap};
    if (!stream_ok(stream)) {
        *n_bytes = 0;
        return ELLM_TOKEN_RANGE;
    }
    finish(&to);
    return deliver(&to, &changed, stream, n_bytes);
}

size_t ellm_tokenizer_bytes(const ellm_tokenizer *t, uint32_t token, uint8_t *text, size_t cap) {
    ellm_stream stream = {.skip_special = true};
    sink to = {.t = t, .stream = &stream, .text = (char *)text, .cap = cap};
    ellm_stream_exact(&stream);
    if (token > INT32_MAX || !is_shown(t, (int32_t)token, true)) {
        return 0;
    }
    bool is_bytes =
        t->mode == DECODE_BYTES || (t->mode == DECODE_FALLBACK && (t->token_flags[token] & TOKEN_BYTE) != 0);
    if (is_bytes) { /* that may be a part of a character */
        size_t n = t->mode == DECODE_BYTES ? t->text_ends[token + 1] - t->text_ends[token] : 1;
        if (n > 0 && n <= cap) {
            memcpy(text, t->text + t->text_ends[token], n);
        }
        return n <= cap ? n : 0;
    }
    add_token(&to, token);
    return to.n <= cap ? to.n : 0;
}

void ellm_stream_exact(ellm_stream *stream) {
    stream->started = true;
    stream->n_printed |= STRIP_DONE;
}
