/* Unigram: the cut of a text into pieces whose scores sum to the most (Kudo, arXiv:1804.10959), as `tokenizers` finds it:
 * of equal sums the one found first, sums in the order of the text. */
#include <math.h>
#include <stdlib.h>

#include "tokenizer_parts.h"
#include "utf8.h"

/* The best way to a place in the text. */
typedef struct node {
    double score;
    uint32_t start, id; /* of the piece that ends here; start NO_ID: nothing does */
    uint32_t next;      /* where the piece that begins here ends, on the best way through the whole */
} node;

/* Pieces that go on like a text: sorted, all alike in their first `depth` bytes. */
typedef struct range {
    uint32_t low, high, depth;
} range;

static int byte_at(const ellm_tokenizer *t, uint32_t number, uint32_t depth) {
    const piece *p = &t->pieces[number];
    return depth < p->bytes ? t->strings[p->text + depth] : -1;
}

static void narrow(const ellm_tokenizer *t, range *r, uint8_t byte) {
    for (int upper = 0; upper < 2; upper++) {
        uint32_t a = r->low, b = r->high;
        while (a < b) {
            uint32_t middle = a + (b - a) / 2;
            if (byte_at(t, middle, r->depth) < byte + upper) {
                a = middle + 1;
            } else {
                b = middle;
            }
        }
        *(upper == 0 ? &r->low : &r->high) = a;
    }
    r->depth++;
}

/* The pieces that are longer than the text so far and begin with it; the one that equals it comes first. */
static const piece *whole(const ellm_tokenizer *t, const range *r) {
    return r->low < r->high && t->pieces[r->low].bytes == r->depth ? &t->pieces[r->low] : NULL;
}

static void offer(node *to, double score, size_t start, uint32_t id) {
    if (to->start == NO_ID || score > to->score) {
        *to = (node){.score = score, .start = (uint32_t)start, .id = id};
    }
}

static void find_best(const ellm_tokenizer *t, const uint8_t *text, size_t n, node *nodes) {
    size_t width;
    for (size_t at = 0; at < n; at += width) {
        uint32_t point;
        bool has_single = false;
        range r = {.low = t->piece_leads[text[at]], .high = t->piece_leads[text[at] + 1], .depth = 1};
        width = ellm_utf8_read(text + at, n - at, &point);
        for (;;) {
            const piece *found = whole(t, &r);
            if (found != NULL) {
                offer(&nodes[at + r.depth], found->score + nodes[at].score, at, found->id);
                has_single = has_single || r.depth == width;
            }
            if (r.low >= r.high || at + r.depth >= n) {
                break;
            }
            narrow(t, &r, text[at + r.depth]);
        }
        if (!has_single) {
            offer(&nodes[at + width], t->unknown_score + nodes[at].score, at, t->unknown);
        }
    }
}

static bool put(buffer *ids, uint32_t id) {
    return ellm_buffer_add(ids, &id, sizeof id);
}

/* The tokens of a run of unknown characters: a piece that happens to be just that, bytes, or the unknown token. */
static bool put_unknown(const ellm_tokenizer *t, const uint8_t *text, size_t n, buffer *ids) {
    range r = {.low = t->piece_leads[text[0]], .high = t->piece_leads[text[0] + 1], .depth = 1};
    while (r.depth < n && r.low < r.high) {
        narrow(t, &r, text[r.depth]);
    }
    const piece *found = r.depth == n ? whole(t, &r) : NULL;
    if (found != NULL) {
        return put(ids, found->id);
    }
    bool by_bytes = (t->flags & BYTE_FALLBACK) != 0;
    for (size_t i = 0; i < n && by_bytes; i++) {
        by_bytes = t->byte_ids[text[i]] != NO_ID;
    }
    for (size_t i = 0; i < n && by_bytes; i++) {
        if (!put(ids, t->byte_ids[text[i]])) {
            return false;
        }
    }
    return by_bytes || put(ids, t->unknown);
}

ellm_status ellm_unigram(const ellm_tokenizer *t, const uint8_t *text, size_t n, buffer *ids) {
    node *nodes = n > INT32_MAX / sizeof *nodes ? NULL : malloc((n + 1) * sizeof *nodes);
    if (nodes == NULL) {
        return ELLM_NO_MEMORY;
    }
    for (size_t i = 0; i <= n; i++) {
        nodes[i] = (node){.start = NO_ID};
    }
    find_best(t, text, n, nodes);
    for (size_t end = n, start; end > 0; end = start) {
        start = nodes[end].start;
        if (start >= end) { /* find_best leaves no place out */
            free(nodes);
            return ELLM_INTERNAL;
        }
        nodes[start].next = (uint32_t)end;
    }
    bool ok = true;
    for (size_t at = 0; at < n && ok;) {
        size_t end = nodes[at].next;
        if (nodes[end].id != t->unknown) {
            ok = put(ids, nodes[end].id);
        } else {
            while (end < n && nodes[nodes[end].next].id == t->unknown) {
                end = nodes[end].next;
            }
            ok = put_unknown(t, text + at, end - at, ids);
        }
        at = end;
    }
    free(nodes);
    return ok ? ELLM_OK : ELLM_NO_MEMORY;
}

bool ellm_unigram_check(ellm_tokenizer *t, size_t n_strings) {
    bool ok = t->unknown != NO_ID && t->unknown < t->n_tokens && isfinite(t->unknown_score);
    uint32_t lead = 0;
    for (uint32_t i = 0; i < t->n_pieces && ok; i++) {
        const piece *p = &t->pieces[i];
        ok = p->bytes != 0 && p->text <= n_strings && p->bytes <= n_strings - p->text && p->id < t->n_tokens
             && isfinite(p->score) && ellm_utf8_valid(t->strings + p->text, p->bytes);
        for (uint32_t depth = 0; i > 0 && ok; depth++) {
            int before = byte_at(t, i - 1, depth), now = byte_at(t, i, depth);
            ok = before <= now && (before != now || now >= 0);
            if (before != now) {
                break;
            }
        }
        for (; ok && lead <= t->strings[p->text]; lead++) {
            t->piece_leads[lead] = i;
        }
    }
    for (; lead <= 256; lead++) {
        t->piece_leads[lead] = t->n_pieces;
    }
    return ok;
}
