/* SentencePiece's map of characters as `tokenizers` applies it: a grapheme cluster of at most five bytes is replaced as a
 * whole by the image of the shortest key that it begins with; characters of all others one by one. */
#include <string.h>

#include "tokenizer_parts.h"
#include "utf8.h"

enum { longest_whole = 5 };
enum kind {
    OTHER,
    CR,
    LF,
    CONTROL,
    EXTEND,
    JOINER,
    REGIONAL,
    PREPEND,
    SPACING,
    L,
    V,
    T,
    LV,
    LVT,
    PICTOGRAPHIC,
    CONSONANT,
    LINKER,
    LOOSE
};

static enum kind kind_of(const ellm_tokenizer *t, uint32_t point) {
    size_t low = 0, high = t->n_graphemes;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > t->graphemes[middle].b) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool in = low < t->n_graphemes && point >= t->graphemes[low].a && t->graphemes[low].c <= LOOSE;
    return in ? (enum kind)t->graphemes[low].c : OTHER;
}

/* What the characters since the cluster began say about the next (UAX #29). */
typedef struct cluster {
    enum kind last;
    bool odd_regional;         /* an odd number of regional indicators comes last */
    bool pictographic, joined; /* a pictograph and what extends it; and a joiner behind that */
    bool consonant, linked;    /* a consonant and what extends it; and a linker in that */
} cluster;

static bool extends(enum kind kind) {
    return kind == EXTEND || kind == LINKER || kind == LOOSE || kind == JOINER;
}

static bool goes_on(const cluster *c, enum kind next) {
    enum kind last = c->last;
    if (last == CR || last == LF || last == CONTROL || next == CR || next == LF || next == CONTROL) {
        return last == CR && next == LF;
    }
    return extends(next) || next == SPACING || last == PREPEND
           || (last == L && (next == L || next == V || next == LV || next == LVT))
           || ((last == LV || last == V) && (next == V || next == T)) || ((last == LVT || last == T) && next == T)
           || (c->linked && next == CONSONANT) || (c->joined && next == PICTOGRAPHIC)
           || (c->odd_regional && next == REGIONAL);
}

static void take(cluster *c, enum kind next) {
    bool within = extends(next);
    c->joined = c->pictographic && next == JOINER;
    c->pictographic = next == PICTOGRAPHIC || (c->pictographic && within && next != JOINER);
    c->linked = next != LOOSE && within && c->consonant && (c->linked || next == LINKER);
    c->consonant = next == CONSONANT || (c->consonant && within && next != LOOSE);
    c->odd_regional = next == REGIONAL && !c->odd_regional;
    c->last = next;
}

static size_t cluster_bytes(const ellm_tokenizer *t, const uint8_t *text, size_t n) {
    uint32_t point;
    cluster c = {0};
    size_t at = ellm_utf8_read(text, n, &point);
    take(&c, kind_of(t, point));
    while (at < n) {
        size_t length = ellm_utf8_read(text + at, n - at, &point);
        enum kind next = kind_of(t, point);
        if (!goes_on(&c, next)) {
            break;
        }
        take(&c, next);
        at += length;
    }
    return at;
}

/* The entry whose key the text begins with; NULL if there is none. */
static const image *find(const ellm_tokenizer *t, const step *s, const uint8_t *text, size_t n) {
    const image *entries = t->charsmap + s->a[0];
    size_t low = 0, high = s->a[1]; /* the last key that is not behind the text */
    while (low < high) {
        size_t middle = (low + high) / 2, key_bytes = entries[middle].key_bytes;
        int order = memcmp(t->strings + entries[middle].key, text, key_bytes < n ? key_bytes : n);
        if (order < 0 || (order == 0 && key_bytes <= n)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const image *found = low > 0 ? &entries[low - 1] : NULL;
    bool begins =
        found != NULL && found->key_bytes <= n && memcmp(t->strings + found->key, text, found->key_bytes) == 0;
    return begins ? found : NULL;
}

bool ellm_charsmap(const ellm_tokenizer *t, const step *s, const buffer *text, buffer *out) {
    for (size_t at = 0, end; at < text->n; at = end) {
        end = at + cluster_bytes(t, text->data + at, text->n - at);
        const image *found = end - at <= longest_whole ? find(t, s, text->data + at, end - at) : NULL;
        if (found != NULL) {
            if (!ellm_buffer_add(out, t->strings + found->text, found->bytes)) {
                return false;
            }
            continue;
        }
        for (size_t length; at < end; at += length) {
            uint32_t point;
            length = ellm_utf8_read(text->data + at, end - at, &point);
            found = find(t, s, text->data + at, length);
            if (!(found != NULL ? ellm_buffer_add(out, t->strings + found->text, found->bytes)
                                : ellm_buffer_add(out, text->data + at, length))) {
                return false;
            }
        }
    }
    return true;
}
