/* Opening tokenizer.bin: every offset, index and string is checked once, so that the rest may trust them. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "tokenizer_parts.h"
#include "utf8.h"

enum {
    TEXT_ENDS,
    TEXT,
    FLAGS,
    MERGE_ROWS,
    MERGES,
    BYTES,
    CHARS,
    WORDS,
    ADDED,
    ADDED_NORMALIZED,
    STEPS,
    CODE,
    CLASSES,
    RANGES,
    MAPS,
    VALUES,
    MARKS,
    COMPOSE,
    STRINGS,
    POST,
    REPLACEMENTS,
    N_SECTIONS_1, /* of version 1 */
    PIECES = N_SECTIONS_1,
    CHARSMAP,
    GRAPHEMES,
    N_SECTIONS
};
enum { header_bytes = 64, most_tokens = 1 << 22, most_steps = 32, most_code = 1 << 16, most_image = 32 };

static const uint8_t record_bytes[N_SECTIONS] = {4,  1, 1,  4, 12, 4,  8, 4, 16, 16, 32, 4,
                                                 24, 8, 12, 4, 12, 12, 1, 4, 16, 24, 16, 12};

typedef struct reader {
    const uint8_t *data;
    const uint32_t *header; /* 16 words: magic, file bytes, then the fields */
    size_t count[N_SECTIONS];
    const void *section[N_SECTIONS];
    ellm_error *error;
} reader;

static ellm_status bad(const reader *r, const char *what) {
    return ellm_fail(r->error, ELLM_TOKENIZER_INVALID, "tokenizer.bin: %s; compile the bundle again", what);
}

static ellm_status read_sections(reader *r, size_t bytes) {
    if (((uintptr_t)r->data & 7) != 0) {
        return ellm_fail(r->error, ELLM_INTERNAL, "tokenizer.bin: not aligned to 8 bytes in memory");
    }
    if (bytes < header_bytes + 8 * N_SECTIONS_1 || memcmp(r->data, "ELLMTOK1", 8) != 0) {
        return bad(r, "no tokenizer");
    }
    if (r->header[2] != bytes || bytes > UINT32_C(0x7FFFFFFF)) {
        return bad(r, "wrong size");
    }
    if (r->header[3] < 1 || r->header[3] > 3) {
        return ellm_fail(r->error, ELLM_BUNDLE_VERSION, "tokenizer.bin: version %u, this runtime reads versions 1 to 3",
                         (unsigned)r->header[3]);
    }
    size_t n_sections = r->header[3] == 1 ? N_SECTIONS_1 : N_SECTIONS;
    if (bytes < header_bytes + 8 * n_sections) {
        return bad(r, "no tokenizer");
    }
    for (size_t i = 0; i < n_sections; i++) {
        uint32_t offset = r->header[16 + 2 * i], size = r->header[17 + 2 * i];
        if (offset % 8 != 0 || offset > bytes || size > bytes - offset || size % record_bytes[i] != 0) {
            return bad(r, "a section lies outside the file");
        }
        r->section[i] = r->data + offset;
        r->count[i] = size / record_bytes[i];
    }
    return ELLM_OK;
}

static bool string_ok(const reader *r, uint32_t offset, uint32_t n) {
    return offset <= r->count[STRINGS] && n <= r->count[STRINGS] - offset
           && ellm_utf8_valid((const uint8_t *)r->section[STRINGS] + offset, n);
}

static bool id_ok(const ellm_tokenizer *t, uint32_t id) {
    return id < t->n_tokens;
}

static ellm_status check_texts(const reader *r, const ellm_tokenizer *t) {
    if (t->n_tokens == 0 || t->n_tokens > most_tokens || r->count[TEXT_ENDS] != (size_t)t->n_tokens + 1
        || r->count[FLAGS] != t->n_tokens || t->text_ends[0] != 0 || t->text_ends[t->n_tokens] != r->count[TEXT]) {
        return bad(r, "the vocabulary has the wrong size");
    }
    for (uint32_t id = 0; id < t->n_tokens; id++) {
        uint32_t start = t->text_ends[id], end = t->text_ends[id + 1];
        if (end < start || end > r->count[TEXT]) {
            return bad(r, "token texts overlap");
        }
        if ((t->token_flags[id] & TOKEN_BYTE) != 0 ? end - start != 1
            : t->mode != DECODE_BYTES              ? !ellm_utf8_valid(t->text + start, end - start)
                                                   : false) {
            return bad(r, "a token's text is not UTF-8");
        }
    }
    return ELLM_OK;
}

static ellm_status check_merges(const reader *r, const ellm_tokenizer *t) {
    size_t n = r->count[MERGES];
    if (r->count[MERGE_ROWS] != (size_t)t->n_tokens + 1 || t->merge_rows[0] != 0 || t->merge_rows[t->n_tokens] != n) {
        return bad(r, "the merge table has the wrong size");
    }
    for (uint32_t id = 0; id < t->n_tokens; id++) {
        if (t->merge_rows[id + 1] < t->merge_rows[id] || t->merge_rows[id + 1] > n) {
            return bad(r, "merge rows overlap");
        }
        for (uint32_t i = t->merge_rows[id]; i < t->merge_rows[id + 1]; i++) {
            const merge *m = &t->merges[i];
            bool ascending = i == t->merge_rows[id] || m->right > m[-1].right;
            if (!ascending || !id_ok(t, m->right) || !id_ok(t, m->merged)) {
                return bad(r, "a merge refers to a token that does not exist");
            }
        }
    }
    return ELLM_OK;
}

static ellm_status check_alphabet(const reader *r, ellm_tokenizer *t) {
    if (r->count[BYTES] != 256) {
        return bad(r, "the byte table has the wrong size");
    }
    for (size_t i = 0; i < 256; i++) {
        if (t->byte_ids[i] != NO_ID && !id_ok(t, t->byte_ids[i])) {
            return bad(r, "a byte refers to a token that does not exist");
        }
    }
    for (size_t i = 0; i < t->n_chars; i++) {
        if (!id_ok(t, t->chars[2 * i + 1]) || (i > 0 && t->chars[2 * i] <= t->chars[2 * i - 2])) {
            return bad(r, "the character table is not in order");
        }
    }
    size_t empty = 0;
    for (size_t i = 0; i < t->n_words; i++) {
        empty += t->words[i] == NO_ID;
        if (t->words[i] != NO_ID && !id_ok(t, t->words[i])) {
            return bad(r, "the word table refers to a token that does not exist");
        }
    }
    if (t->n_words != 0 && ((t->n_words & (t->n_words - 1)) != 0 || empty == 0)) {
        return bad(r, "the word table has the wrong size");
    }
    if ((t->flags & UNIGRAM) != 0 && !ellm_unigram_check(t, r->count[STRINGS])) {
        return bad(r, "the pieces are malformed or not in order");
    }
    if (((t->flags & (IGNORE_MERGES | LONGEST)) != 0 && t->n_words == 0)
        || (t->unknown != NO_ID && !id_ok(t, t->unknown))) {
        return bad(r, "a table that the flags ask for is missing");
    }
    for (size_t i = 0; i < t->n_post; i++) {
        if (!id_ok(t, t->post[i])) {
            return bad(r, "the post-processor names a token that does not exist");
        }
    }
    return t->n_prefix > t->n_post ? bad(r, "the post-processor has the wrong size") : ELLM_OK;
}

static ellm_status check_added(const reader *r, const ellm_tokenizer *t, int section, added_list *list) {
    list->tokens = r->section[section];
    list->n = r->count[section];
    for (size_t i = 0; i < list->n; i++) {
        const added_token *token = &list->tokens[i];
        if (token->bytes == 0 || !string_ok(r, token->text, token->bytes) || !id_ok(t, token->id)) {
            return bad(r, "an added token is malformed");
        }
        if (i > 0) {
            const added_token *before = token - 1;
            uint32_t common = before->bytes < token->bytes ? before->bytes : token->bytes;
            int order = memcmp(t->strings + before->text, t->strings + token->text, common);
            if (order > 0 || (order == 0 && before->bytes >= token->bytes)) {
                return bad(r, "added tokens are not in order");
            }
        }
        uint8_t lead = t->strings[token->text];
        list->leads[lead / 32] |= 1u << (lead % 32);
    }
    return ELLM_OK;
}

static ellm_status check_classes(const reader *r, const ellm_tokenizer *t) {
    for (size_t i = 0; i < t->n_classes; i++) {
        const class_entry *entry = &t->classes[i];
        if (entry->first > r->count[RANGES] || entry->n > r->count[RANGES] - entry->first) {
            return bad(r, "a character class lies outside its table");
        }
        const uint32_t *range = t->ranges + 2 * (size_t)entry->first;
        for (uint32_t j = 0; j < entry->n; j++) {
            if (range[2 * j + 1] < range[2 * j] || (j > 0 && range[2 * j] <= range[2 * j - 1])) {
                return bad(r, "a character class is not in order");
            }
        }
    }
    return t->space_class < t->n_classes && t->word_class < t->n_classes ? ELLM_OK
                                                                         : bad(r, "a character class is missing");
}

static size_t instruction_words(uint32_t op) {
    static const uint8_t n[] = {0, 2, 2, 5, 3, 2, 3, 1};
    return op < sizeof n ? n[op] : 0;
}

static bool is_start(const uint8_t *starts, size_t n, uint32_t word) {
    return word < n && (starts[word / 8] >> (word % 8) & 1) != 0;
}

/* Marks where instructions start in `starts`, then checks every operand. */
static ellm_status check_code(const reader *r, const ellm_tokenizer *t, uint8_t starts[most_code / 8]) {
    uint32_t last = OP_MATCH;
    if (t->n_code > most_code) {
        return bad(r, "the patterns are too large");
    }
    for (size_t at = 0; at < t->n_code;) {
        size_t n = instruction_words(t->code[at]);
        if (n == 0 || n > t->n_code - at) {
            return bad(r, "a pattern has an unknown instruction");
        }
        starts[at / 8] |= (uint8_t)(1u << (at % 8));
        last = t->code[at];
        at += n;
    }
    if (last != OP_MATCH && last != OP_JUMP) {
        return bad(r, "a pattern has no end");
    }
    for (size_t at = 0; at < t->n_code; at += instruction_words(t->code[at])) {
        const uint32_t *code = t->code + at;
        bool ok = true;
        if (code[0] == OP_CLASS || code[0] == OP_SPAN) {
            ok = code[1] < t->n_classes;
        } else if (code[0] == OP_SPLIT) {
            ok = is_start(starts, t->n_code, code[1]) && is_start(starts, t->n_code, code[2]);
        } else if (code[0] == OP_JUMP) {
            ok = is_start(starts, t->n_code, code[1]);
        } else if (code[0] == OP_LOOK) {
            ok = is_start(starts, t->n_code, (uint32_t)at + 3) && is_start(starts, t->n_code, code[2]);
        }
        if (!ok) {
            return bad(r, "a pattern refers to something that does not exist");
        }
    }
    return ELLM_OK;
}

static ellm_status check_steps(const reader *r, const ellm_tokenizer *t, const uint8_t *starts) {
    if (t->n_steps > most_steps || t->n_normalizers > t->n_steps) {
        return bad(r, "too many steps");
    }
    for (size_t i = 0; i < t->n_steps; i++) {
        const step *s = &t->steps[i];
        bool ok = (s->kind < STEP_PIECES) == (i < t->n_normalizers);
        switch (s->kind) {
        case STEP_DECOMPOSE:
        case STEP_MAP:
            ok = ok && s->a[0] <= r->count[MAPS] && s->a[1] <= r->count[MAPS] - s->a[0];
            for (uint32_t j = 0; ok && j < s->a[1]; j++) {
                const map_entry *entry = &t->maps[s->a[0] + j];
                ok = (j == 0 || entry->point > entry[-1].point) && entry->n <= most_image
                     && entry->first <= r->count[VALUES] && entry->n <= r->count[VALUES] - entry->first;
            }
            break;
        case STEP_COMPOSE:
        case STEP_PREFIX_SPACE: break;
        case STEP_STAND_INS: ok = ok && (t->flags & BYTE_LEVEL) == 0 && t->mode == DECODE_BYTES; break;
        case STEP_REPLACE: ok = ok && is_start(starts, t->n_code, s->a[0]) && string_ok(r, s->a[1], s->a[2]); break;
        case STEP_PREPEND: ok = ok && string_ok(r, s->a[0], s->a[1]); break;
        case STEP_CHARSMAP:
            ok = ok && s->a[0] <= r->count[CHARSMAP] && s->a[1] <= r->count[CHARSMAP] - s->a[0];
            for (uint32_t j = 0; ok && j < s->a[1]; j++) {
                const image *now = &t->charsmap[s->a[0] + j], *before = now - 1;
                uint32_t common = j == 0 ? 0 : before->key_bytes < now->key_bytes ? before->key_bytes : now->key_bytes;
                ok = now->key_bytes > 0 && string_ok(r, now->key, now->key_bytes) && string_ok(r, now->text, now->bytes)
                     && (j == 0 || memcmp(t->strings + before->key, t->strings + now->key, common) < 0);
            }
            break;
        case STEP_STRIP: ok = ok && s->a[0] < t->n_classes; break;
        case STEP_PIECES: ok = ok && is_start(starts, t->n_code, s->a[0]) && s->a[1] <= MERGED_WITH_NEXT; break;
        case STEP_METASPACE: ok = ok && s->a[1] != 0 && string_ok(r, s->a[0], s->a[1]) && s->a[2] <= 2; break;
        default: ok = false;
        }
        if (!ok) {
            return bad(r, "a step is malformed");
        }
    }
    return ELLM_OK;
}

static ellm_status check_unicode(const reader *r, const ellm_tokenizer *t) {
    for (size_t i = 0; i < r->count[VALUES]; i++) {
        if (t->values[i] > 0x10FFFF || t->values[i] - 0xD800 < 0x800) {
            return bad(r, "a character image is no character");
        }
    }
    for (size_t i = 0; i < t->n_marks; i++) {
        const triple *mark = &t->marks[i];
        if (mark->b < mark->a || mark->c > 255 || (i > 0 && mark->a <= mark[-1].b)) {
            return bad(r, "the combining marks are not in order");
        }
    }
    for (size_t i = 0; i < t->n_graphemes; i++) {
        const triple *range = &t->graphemes[i];
        if (range->b < range->a || (i > 0 && range->a <= range[-1].b)) {
            return bad(r, "the grapheme table is not in order");
        }
    }
    for (size_t i = 0; i < t->n_compose; i++) {
        const triple *pair = &t->compose[i];
        bool ascending = i == 0 || pair->a > pair[-1].a || (pair->a == pair[-1].a && pair->b > pair[-1].b);
        if (!ascending || pair->c > 0x10FFFF || pair->c - 0xD800 < 0x800) {
            return bad(r, "the compositions are not in order");
        }
    }
    return ELLM_OK;
}

static ellm_status check_decoder(const reader *r, const ellm_tokenizer *t) {
    bool byte_level = (t->flags & BYTE_LEVEL) != 0;
    if (t->mode > DECODE_JOIN_SPACES || (byte_level && t->mode != DECODE_BYTES) || t->strip > 0x10FFFF
        || r->count[REPLACEMENTS] > 1) {
        return bad(r, "unknown decoder");
    }
    if (t->replacement != NULL
        && (t->replacement[1] == 0 || !string_ok(r, t->replacement[0], t->replacement[1])
            || !string_ok(r, t->replacement[2], t->replacement[3]))) {
        return bad(r, "the decoder's replacement is malformed");
    }
    return ELLM_OK;
}

static void bind(const reader *r, ellm_tokenizer *t) {
    const uint32_t *h = r->header;
    *t = (ellm_tokenizer){.n_tokens = h[4],
                          .flags = h[5],
                          .unknown = h[6],
                          .n_normalizers = h[7],
                          .n_prefix = h[8],
                          .mode = h[9],
                          .strip = h[10],
                          .start = h[11],
                          .space_class = h[12],
                          .word_class = h[13],
                          .text_ends = r->section[TEXT_ENDS],
                          .text = r->section[TEXT],
                          .token_flags = r->section[FLAGS],
                          .strings = r->section[STRINGS],
                          .merge_rows = r->section[MERGE_ROWS],
                          .merges = r->section[MERGES],
                          .byte_ids = r->section[BYTES],
                          .chars = r->section[CHARS],
                          .words = r->section[WORDS],
                          .code = r->section[CODE],
                          .ranges = r->section[RANGES],
                          .values = r->section[VALUES],
                          .post = r->section[POST],
                          .steps = r->section[STEPS],
                          .classes = r->section[CLASSES],
                          .maps = r->section[MAPS],
                          .marks = r->section[MARKS],
                          .compose = r->section[COMPOSE],
                          .n_chars = r->count[CHARS],
                          .n_words = r->count[WORDS],
                          .n_steps = r->count[STEPS],
                          .n_code = r->count[CODE],
                          .n_classes = r->count[CLASSES],
                          .n_marks = r->count[MARKS],
                          .n_compose = r->count[COMPOSE],
                          .n_post = r->count[POST]};
    t->replacement = r->count[REPLACEMENTS] != 0 ? r->section[REPLACEMENTS] : NULL;
    t->charsmap = r->section[CHARSMAP];
    t->graphemes = r->section[GRAPHEMES];
    t->n_graphemes = r->count[GRAPHEMES];
    t->pieces = r->section[PIECES];
    t->n_pieces = (uint32_t)r->count[PIECES];
    memcpy(&t->unknown_score, h + 14, sizeof t->unknown_score);
}

static ellm_status check(const reader *r, ellm_tokenizer *t, uint8_t *starts) {
    ellm_status status = check_decoder(r, t);
    status = status == ELLM_OK ? check_texts(r, t) : status;
    status = status == ELLM_OK ? check_merges(r, t) : status;
    status = status == ELLM_OK ? check_alphabet(r, t) : status;
    status = status == ELLM_OK ? check_added(r, t, ADDED, &t->raw) : status;
    status = status == ELLM_OK ? check_added(r, t, ADDED_NORMALIZED, &t->normalized) : status;
    status = status == ELLM_OK ? check_classes(r, t) : status;
    status = status == ELLM_OK ? check_code(r, t, starts) : status;
    status = status == ELLM_OK ? check_steps(r, t, starts) : status;
    return status == ELLM_OK ? check_unicode(r, t) : status;
}

ellm_status ellm_tokenizer_open(const uint8_t *data, size_t bytes, ellm_tokenizer **tokenizer, ellm_error *error) {
    reader r = {.data = data, .header = (const uint32_t *)(const void *)data, .error = error};
    *tokenizer = NULL;
    ellm_status status = read_sections(&r, bytes);
    if (status != ELLM_OK) {
        return status;
    }
    ellm_tokenizer *t = malloc(sizeof *t);
    uint8_t *starts = calloc(1, most_code / 8);
    if (t == NULL || starts == NULL) {
        free(t);
        free(starts);
        return ellm_fail(error, ELLM_NO_MEMORY, "tokenizer.bin: no memory");
    }
    bind(&r, t);
    status = check(&r, t, starts);
    free(starts);
    if (status != ELLM_OK) {
        free(t);
        return status;
    }
    *tokenizer = t;
    return ELLM_OK;
}

void ellm_tokenizer_close(ellm_tokenizer *tokenizer) {
    free(tokenizer);
}

uint32_t ellm_tokenizer_size(const ellm_tokenizer *tokenizer) {
    return tokenizer->n_tokens;
}
