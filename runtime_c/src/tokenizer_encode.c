/* Text to token ids, step by step as Hugging Face `tokenizers` does it: added tokens that match raw text, normalizers,
 * added tokens that match normalized text, pre-tokenizers, byte-pair merging, post-processor. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer_parts.h"
#include "utf8.h"

typedef struct symbol {
    uint32_t id;
    int32_t previous, next; /* -1: none */
    uint32_t bytes;         /* 0: merged into its left neighbour */
} symbol;

typedef struct candidate {
    uint64_t order; /* rank << 32 | position: lowest first */
    uint32_t merged;
} candidate;

typedef struct encoder {
    const ellm_tokenizer *t;
    matcher matcher;
    symbol *symbols;
    candidate *heap;
    size_t cap_symbols, n_symbols, n_heap;
    int32_t *out;
    size_t cap, n;
    bool parse_special;
} encoder;

typedef ellm_status (*segment_function)(encoder *e, const uint8_t *text, size_t n, bool first);

static void put_id(encoder *e, uint32_t id) {
    if (e->n < e->cap) {
        e->out[e->n] = (int32_t)id;
    }
    e->n++;
}

/* ---- byte-pair merging ---------------------------------------------------------------------------------- */

static const merge *merge_find(const ellm_tokenizer *t, uint32_t left, uint32_t right) {
    uint32_t low = t->merge_rows[left], end = t->merge_rows[left + 1], high = end;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (right > t->merges[middle].right) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < end && t->merges[low].right == right ? &t->merges[low] : NULL;
}

static void heap_push(encoder *e, candidate item) {
    size_t at = e->n_heap++;
    while (at > 0 && e->heap[(at - 1) / 2].order > item.order) {
        e->heap[at] = e->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    e->heap[at] = item;
}

static candidate heap_pop(encoder *e) {
    candidate top = e->heap[0], item = e->heap[--e->n_heap];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= e->n_heap) {
            break;
        }
        child += child + 1 < e->n_heap && e->heap[child + 1].order < e->heap[child].order;
        if (e->heap[child].order >= item.order) {
            break;
        }
        e->heap[at] = e->heap[child];
        at = child;
    }
    e->heap[at] = item;
    return top;
}

static void consider(encoder *e, int32_t left) {
    const symbol *s = &e->symbols[left];
    const merge *m = merge_find(e->t, s->id, e->symbols[s->next].id);
    if (m != NULL) {
        heap_push(e, (candidate){(uint64_t)m->rank << 32 | (uint32_t)left, m->merged});
    }
}

static void merge_symbols(encoder *e) {
    e->n_heap = 0;
    for (size_t i = 0; i + 1 < e->n_symbols; i++) {
        consider(e, (int32_t)i);
    }
    while (e->n_heap > 0) {
        candidate top = heap_pop(e);
        int32_t at = (int32_t)(uint32_t)top.order;
        symbol *left = &e->symbols[at];
        if (left->bytes == 0 || left->next < 0) {
            continue;
        }
        symbol *right = &e->symbols[left->next];
        const merge *m = merge_find(e->t, left->id, right->id);
        if (m == NULL || m->merged != top.merged) {
            continue; /* the pair changed since it was queued */
        }
        left->id = top.merged;
        left->bytes += right->bytes;
        left->next = right->next;
        right->bytes = 0;
        if (left->next >= 0) {
            e->symbols[left->next].previous = at;
            consider(e, at);
        }
        if (left->previous >= 0) {
            consider(e, left->previous);
        }
    }
}

static void add_symbol(encoder *e, uint32_t id, size_t bytes) {
    int32_t at = (int32_t)e->n_symbols++;
    e->symbols[at] = (symbol){id, at - 1, -1, (uint32_t)bytes};
    if (at > 0) {
        e->symbols[at - 1].next = at;
    }
}

static bool reserve(encoder *e, size_t n) {
    if (n > e->cap_symbols) {
        size_t cap = n + n / 2 + 64;
        free(e->symbols);
        free(e->heap);
        e->symbols = cap > SIZE_MAX / 64 ? NULL : malloc(cap * sizeof *e->symbols);
        e->heap = cap > SIZE_MAX / 64 ? NULL : malloc(2 * cap * sizeof *e->heap);
        e->cap_symbols = e->symbols != NULL && e->heap != NULL ? cap : 0;
    }
    return n <= e->cap_symbols;
}

static uint32_t char_id(const ellm_tokenizer *t, uint32_t point) {
    size_t low = 0, high = t->n_chars;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > t->chars[2 * middle]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < t->n_chars && t->chars[2 * low] == point ? t->chars[2 * low + 1] : NO_ID;
}

static bool add_fallback(encoder *e, const uint8_t *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (e->t->byte_ids[text[i]] == NO_ID) {
            return false;
        }
    }
    for (size_t i = 0; i < n; i++) {
        add_symbol(e, e->t->byte_ids[text[i]], 1);
    }
    return true;
}

/* The unknown token stands for a character without id; a run of them is one token if fuse_unk. It is added when a
 * known character follows, even after bytes that came in between: `tokenizers` does so too. */
static void add_symbols(encoder *e, const uint8_t *text, size_t n) {
    const ellm_tokenizer *t = e->t;
    size_t pending = 0;
    e->n_symbols = 0;
    for (size_t at = 0; at < n;) {
        size_t length = 1;
        uint32_t id;
        if ((t->flags & BYTE_LEVEL) != 0) {
            id = t->byte_ids[text[at]];
        } else {
            uint32_t point;
            length = ellm_utf8_read(text + at, n - at, &point);
            id = char_id(t, point);
        }
        if (id != NO_ID) {
            if (pending != 0) {
                add_symbol(e, t->unknown, pending);
                pending = 0;
            }
            add_symbol(e, id, length);
        } else if ((t->flags & BYTE_FALLBACK) == 0 || !add_fallback(e, text + at, length)) {
            if (t->unknown != NO_ID) {
                if (pending != 0 && (t->flags & FUSE_UNKNOWN) == 0) {
                    add_symbol(e, t->unknown, pending);
                    pending = 0;
                }
                pending += length;
            }
        }
        at += length;
    }
    if (pending != 0) {
        add_symbol(e, t->unknown, pending);
    }
}

static const uint32_t hash_start = 0x811C9DC5;

static uint32_t hash_next(uint32_t hash, uint8_t byte) {
    return (hash ^ byte) * 0x01000193u;
}

static uint32_t word_id(const ellm_tokenizer *t, uint32_t hash, const uint8_t *text, size_t n) {
    for (size_t slot = hash & (t->n_words - 1); t->words[slot] != NO_ID; slot = (slot + 1) & (t->n_words - 1)) {
        uint32_t id = t->words[slot], start = t->text_ends[id];
        if (t->text_ends[id + 1] - start == n && memcmp(t->text + start, text, n) == 0) {
            return id;
        }
    }
    return NO_ID;
}

/* From left to right, each time the longest token. A byte that begins none has no id. */
static void encode_longest(encoder *e, const uint8_t *text, size_t n) {
    enum { most = 128 }; /* bytes of a token */
    for (size_t at = 0, taken; at < n; at += taken) {
        uint32_t hash = hash_start, found = NO_ID;
        taken = 1;
        for (size_t i = 0; i < most && at + i < n; i++) {
            hash = hash_next(hash, text[at + i]);
            uint32_t id = word_id(e->t, hash, text + at, i + 1);
            if (id != NO_ID) {
                found = id;
                taken = i + 1;
            }
        }
        if (found != NO_ID) {
            put_id(e, found);
        }
    }
}

static ellm_status encode_unigram(encoder *e, const uint8_t *text, size_t n) {
    buffer ids = {0};
    ellm_status status = ellm_unigram(e->t, text, n, &ids);
    for (size_t i = 0; i < ids.n && status == ELLM_OK; i += sizeof(uint32_t)) {
        uint32_t id;
        memcpy(&id, ids.data + i, sizeof id);
        put_id(e, id);
    }
    ellm_buffer_free(&ids);
    return status;
}

static ellm_status encode_word(encoder *e, const uint8_t *text, size_t n) {
    if ((e->t->flags & UNIGRAM) != 0) {
        return encode_unigram(e, text, n);
    }
    if ((e->t->flags & LONGEST) != 0) {
        encode_longest(e, text, n);
        return ELLM_OK;
    }
    if ((e->t->flags & IGNORE_MERGES) != 0) {
        uint32_t hash = hash_start;
        for (size_t i = 0; i < n; i++) {
            hash = hash_next(hash, text[i]);
        }
        uint32_t id = word_id(e->t, hash, text, n);
        if (id != NO_ID) {
            put_id(e, id);
            return ELLM_OK;
        }
    }
    if (n > INT32_MAX / 2 || !reserve(e, n)) {
        return ELLM_NO_MEMORY;
    }
    add_symbols(e, text, n);
    merge_symbols(e);
    for (size_t i = 0; i < e->n_symbols; i++) {
        if (e->symbols[i].bytes != 0) {
            put_id(e, e->symbols[i].id);
        }
    }
    return ELLM_OK;
}

/* ---- pre-tokenizer steps --------------------------------------------------------------------------------- */

static ellm_status pre_tokenize(encoder *e, size_t index, const uint8_t *text, size_t n, bool first);

typedef struct splitter {
    encoder *e;
    size_t index; /* step that gets the pieces */
    const uint8_t *text;
    bool first;
    uint32_t behavior;
    bool matched; /* the last part was a match */
    bool open;    /* [start, end) may still grow */
    size_t start, end;
} splitter;

static ellm_status close_piece(splitter *s) {
    if (!s->open || s->end == s->start) {
        return ELLM_OK;
    }
    s->open = false;
    return pre_tokenize(s->e, s->index, s->text + s->start, s->end - s->start, s->first && s->start == 0);
}

/* Takes the next part of the text in order; joins it to the open piece or starts a new one. */
static ellm_status add_part(splitter *s, size_t start, size_t end, bool match) {
    if (start == end) {
        return ELLM_OK;
    }
    bool join = false;
    if (s->behavior == CONTIGUOUS) {
        join = s->open && match == s->matched;
    } else if (s->behavior == MERGED_WITH_PREVIOUS) {
        join = s->open && match && !s->matched;
    } else if (s->behavior == MERGED_WITH_NEXT) {
        join = s->open && !match && s->matched;
    }
    ellm_status status = ELLM_OK;
    if (join) {
        s->end = end;
    } else {
        status = close_piece(s);
        s->open = s->behavior != REMOVED || !match;
        s->start = start;
        s->end = end;
    }
    s->matched = match;
    return status;
}

static ellm_status split(encoder *e, size_t index, const uint8_t *text, size_t n, bool first) {
    const step *rule = &e->t->steps[index];
    bool invert = rule->a[2] != 0;
    splitter s = {.e = e, .index = index + 1, .text = text, .first = first, .behavior = rule->a[1]};
    size_t at = 0, start, end;
    ellm_status status = ELLM_OK;
    while (status == ELLM_OK && ellm_match_find(&e->matcher, rule->a[0], text, n, at, &start, &end)) {
        status = add_part(&s, at, start, invert);
        status = status == ELLM_OK ? add_part(&s, start, end, !invert) : status;
        at = end;
    }
    status = status == ELLM_OK ? e->matcher.status : status;
    status = status == ELLM_OK ? add_part(&s, at, n, invert) : status;
    return status == ELLM_OK ? close_piece(&s) : status;
}

static bool put_metaspace(const ellm_tokenizer *t, const step *s, const uint8_t *text, size_t n, bool first,
                          buffer *out) {
    const uint8_t *mark = t->strings + s->a[0];
    size_t n_mark = s->a[1];
    bool marked = n > 0 && (text[0] == ' ' || (n >= n_mark && memcmp(text, mark, n_mark) == 0));
    if (!marked && (s->a[2] == 1 || (s->a[2] == 2 && first)) && !ellm_buffer_add(out, mark, n_mark)) {
        return false;
    }
    for (size_t at = 0; at < n;) {
        size_t end = at;
        while (end < n && text[end] != ' ') {
            end++;
        }
        if (!ellm_buffer_add(out, text + at, end - at) || (end < n && !ellm_buffer_add(out, mark, n_mark))) {
            return false;
        }
        at = end + 1;
    }
    return true;
}

/* Each byte as the character that stands for it in the vocabulary (GPT-2's table). */
static bool put_stand_ins(const uint8_t *text, size_t n, buffer *out) {
    for (size_t i = 0; i < n; i++) {
        uint32_t byte = text[i], point = byte;
        if (byte <= 0x20) {
            point = 0x100 + byte;
        } else if (byte >= 0x7F && byte <= 0xA0) {
            point = 0x121 + byte - 0x7F;
        } else if (byte == 0xAD) {
            point = 0x143;
        }
        if (!ellm_buffer_add_point(out, point)) {
            return false;
        }
    }
    return true;
}

/* Sends a piece through the steps from `index` on. Recursion is as deep as there are steps, at most 32. */
static ellm_status pre_tokenize(encoder *e, size_t index, const uint8_t *text, size_t n, bool first) {
    if (index == e->t->n_steps) {
        return encode_word(e, text, n);
    }
    const step *s = &e->t->steps[index];
    if (s->kind == STEP_PIECES) {
        return split(e, index, text, n, first);
    }
    if (s->kind == STEP_PREFIX_SPACE && n > 0 && text[0] == ' ') {
        return pre_tokenize(e, index + 1, text, n, first);
    }
    buffer changed = {0};
    bool ok = s->kind == STEP_PREFIX_SPACE ? ellm_buffer_add(&changed, " ", 1) && ellm_buffer_add(&changed, text, n)
              : s->kind == STEP_STAND_INS  ? put_stand_ins(text, n, &changed)
                                           : put_metaspace(e->t, s, text, n, first, &changed);
    ellm_status status = ok ? pre_tokenize(e, index + 1, changed.data, changed.n, first) : ELLM_NO_MEMORY;
    ellm_buffer_free(&changed);
    return status;
}

/* ---- added tokens ------------------------------------------------------------------------------------------ */

/* The longest added token at text[0], NULL if none. Narrows the sorted list byte by byte. */
static const added_token *added_at(const ellm_tokenizer *t, const added_list *list, const uint8_t *text, size_t n) {
    size_t low = 0, high = list->n;
    const added_token *found = NULL;
    for (size_t depth = 0; depth < n && low < high; depth++) {
        for (int upper = 0; upper < 2; upper++) {
            size_t a = low, b = high;
            while (a < b) {
                size_t middle = (a + b) / 2;
                const added_token *token = &list->tokens[middle];
                int byte = depth < token->bytes ? t->strings[token->text + depth] : -1;
                if (byte < text[depth] + upper) {
                    a = middle + 1;
                } else {
                    b = middle;
                }
            }
            *(upper == 0 ? &low : &high) = a;
        }
        if (low < high && list->tokens[low].bytes == depth + 1) {
            found = &list->tokens[low];
        }
    }
    return found;
}

static size_t char_before(const uint8_t *text, size_t at) {
    do {
        at--;
    } while (at > 0 && (text[at] & 0xC0) == 0x80);
    return at;
}

static bool has_class(const ellm_tokenizer *t, uint32_t class, const uint8_t *text, size_t n) {
    uint32_t point;
    ellm_utf8_read(text, n, &point);
    return ellm_class_has(t, class, point);
}

/* Cuts text at added tokens of `list`: their ids go out, the rest to `segment`. */
static ellm_status split_added(encoder *e, const added_list *list, const uint8_t *text, size_t n, bool first,
                               segment_function segment) {
    const ellm_tokenizer *t = e->t;
    size_t done = 0, at = 0;
    ellm_status status = ELLM_OK;
    while (at < n && status == ELLM_OK) {
        bool likely = (list->leads[text[at] / 32] >> (text[at] % 32) & 1) != 0;
        const added_token *token = likely ? added_at(t, list, text + at, n - at) : NULL;
        if (token == NULL) {
            at++;
            continue;
        }
        size_t start = at, end = at + token->bytes;
        at = end;
        if (!e->parse_special && (token->flags & ADDED_SPECIAL) != 0) {
            continue;
        }
        if ((token->flags & ADDED_SINGLE_WORD) != 0) {
            size_t before = start > 0 ? char_before(text, start) : 0;
            if ((start > 0 && has_class(t, t->word_class, text + before, start - before))
                || (end < n && has_class(t, t->word_class, text + end, n - end))) {
                continue;
            }
        }
        while ((token->flags & ADDED_LSTRIP) != 0 && start > done) {
            size_t before = char_before(text, start);
            if (!has_class(t, t->space_class, text + before, start - before)) {
                break;
            }
            start = before;
        }
        while ((token->flags & ADDED_RSTRIP) != 0 && end < n) {
            uint32_t point;
            size_t length = ellm_utf8_read(text + end, n - end, &point);
            if (!ellm_class_has(t, t->space_class, point)) {
                break;
            }
            end += length;
        }
        if (done < start) {
            status = segment(e, text + done, start - done, first && done == 0);
        }
        put_id(e, token->id);
        done = end;
    }
    if (status == ELLM_OK && done < n) {
        status = segment(e, text + done, n - done, first && done == 0);
    }
    return status;
}

static ellm_status encode_normalized(encoder *e, const uint8_t *text, size_t n, bool first) {
    return pre_tokenize(e, e->t->n_normalizers, text, n, first);
}

static ellm_status encode_raw(encoder *e, const uint8_t *text, size_t n, bool first) {
    if (e->t->n_normalizers == 0) {
        return split_added(e, &e->t->normalized, text, n, first, encode_normalized);
    }
    buffer normal = {0};
    if (!ellm_buffer_add(&normal, text, n)) {
        return ELLM_NO_MEMORY;
    }
    ellm_status status = ellm_normalize(&e->matcher, &normal);
    if (status == ELLM_OK) {
        status = split_added(e, &e->t->normalized, normal.data, normal.n, first, encode_normalized);
    }
    ellm_buffer_free(&normal);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------------------- */

ellm_status ellm_tokenizer_encode(const ellm_tokenizer *t, const char *text, size_t n_bytes, bool add_special,
                                  bool parse_special, int32_t *tokens, size_t cap, size_t *n_tokens) {
    encoder e = {.t = t, .out = tokens, .cap = cap, .parse_special = parse_special};
    const uint8_t *bytes = (const uint8_t *)text;
    ellm_status status = ELLM_OK;
    *n_tokens = 0;
    e.matcher.tokenizer = t;
    e.matcher.budget = 1000 * ((uint64_t)n_bytes + 1000);
    if (!ellm_utf8_valid(bytes, n_bytes)) {
        return ELLM_TEXT_INVALID;
    }
    for (size_t i = 0; add_special && i < t->n_prefix; i++) {
        put_id(&e, t->post[i]);
    }
    if (n_bytes != 0) {
        status = split_added(&e, &t->raw, bytes, n_bytes, true, encode_raw);
    }
    for (size_t i = t->n_prefix; add_special && i < t->n_post; i++) {
        put_id(&e, t->post[i]);
    }
    free(e.matcher.frames);
    free(e.symbols);
    free(e.heap);
    if (status == ELLM_OK) {
        *n_tokens = e.n;
        status = e.n > cap ? ELLM_BUFFER_SMALL : ELLM_OK;
    }
    return status;
}
