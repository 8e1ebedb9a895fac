/* The tokens' bytes in order, so that a walk reads what neighbours share once. */
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "utf8.h"
#include "vocabulary.h"

/* Characters of a token that a JSON string may hold anywhere, without escapes; 0 if it has others or parts of one. */
static uint8_t plain_characters(const uint8_t *text, size_t n) {
    uint8_t count = 0;
    for (size_t i = 0; i < n; count++) {
        uint32_t point;
        i += ellm_utf8_read(text + i, n - i, &point);
        if (point < ' ' || point == '"' || point == '\\' || point > 0x10FFFF) {
            return 0;
        }
    }
    return count;
}

static int compare_words(const void *x, const void *y) {
    const ellm_word *a = x, *b = y;
    size_t n = a->n < b->n ? a->n : b->n;
    int order = memcmp(a->text, b->text, n);
    order = order != 0 ? order : (int)a->n - (int)b->n;
    return order != 0 ? order : (a->token > b->token) - (a->token < b->token);
}

static void note_shared(ellm_words *w) {
    for (uint32_t i = 0; i < w->n; i++) {
        uint8_t same = 0;
        ellm_word *word = &w->words[i], *before = i > 0 ? word - 1 : NULL;
        while (before != NULL && same < word->n && same < before->n && word->text[same] == before->text[same]) {
            same++;
        }
        word->shared = same;
    }
    uint32_t at = 0;
    for (unsigned c = 0; c <= 256; c++) {
        while (at < w->n && w->words[at].text[0] < c) {
            at++;
        }
        w->first[c] = at;
    }
}

ellm_status ellm_vocabulary_make(const ellm_tokenizer *tokenizer, int32_t n_tokens, ellm_is_stop *is_stop,
                                 const void *user, ellm_vocabulary **vocabulary) {
    size_t n = n_tokens > 0 ? (size_t)n_tokens : 0, n_text = 0;
    ellm_vocabulary *v = *vocabulary = calloc(1, sizeof *v);
    if (v == NULL) {
        return ELLM_NO_MEMORY;
    }
    uint8_t text[ELLM_GRAMMAR_FAR];
    for (size_t i = 0; i < n; i++) {
        n_text += ellm_tokenizer_bytes(tokenizer, (uint32_t)i, text, sizeof text);
    }
    v->n_tokens = n_tokens;
    v->all.words = calloc(n + 1, sizeof *v->all.words);
    v->rough.words = calloc(n + 1, sizeof *v->rough.words);
    v->plain = calloc(n + 1, 1);
    v->n_bytes = calloc(n + 1, 1);
    v->places = calloc(n + 1, sizeof *v->places);
    v->text = malloc(n_text + 1);
    if (v->all.words == NULL || v->rough.words == NULL || v->plain == NULL || v->n_bytes == NULL || v->places == NULL
        || v->text == NULL) {
        ellm_vocabulary_close(v);
        *vocabulary = NULL;
        return ELLM_NO_MEMORY;
    }
    uint8_t *at = v->text;
    for (size_t i = 0; i < n; i++) {
        if (is_stop(user, (int32_t)i)) {
            v->plain[i] = ELLM_WORD_STOPS;
            continue;
        }
        size_t bytes = ellm_tokenizer_bytes(tokenizer, (uint32_t)i, at, sizeof text);
        if (bytes > 0) {
            v->n_bytes[i] = (uint8_t)bytes;
            v->places[i] = (uint32_t)(at - v->text);
            v->plain[i] = plain_characters(at, bytes);
            v->all.words[v->all.n++] = (ellm_word){.text = at, .token = (uint32_t)i, .n = (uint8_t)bytes};
            at += bytes;
        }
    }
    qsort(v->all.words, v->all.n, sizeof *v->all.words, compare_words);
    for (uint32_t i = 0; i < v->all.n; i++) {
        if (v->plain[v->all.words[i].token] == 0) {
            v->rough.words[v->rough.n++] = v->all.words[i];
        }
    }
    note_shared(&v->all);
    note_shared(&v->rough);
    ellm_word *fewer = realloc(v->rough.words, (v->rough.n + 1) * sizeof *fewer);
    v->rough.words = fewer != NULL ? fewer : v->rough.words;
    return ELLM_OK;
}

static bool ends_answer(const void *user, int32_t token) {
    return ellm_token_is_stop(user, token);
}

ellm_status ellm_vocabulary_open(const ellm_model *model, ellm_vocabulary **vocabulary) {
    ellm_model_info info;
    ellm_model_get_info(model, &info);
    return ellm_vocabulary_make(ellm_model_tokenizer(model), info.vocab_size, ends_answer, model, vocabulary);
}

void ellm_vocabulary_close(ellm_vocabulary *v) {
    if (v != NULL) {
        free(v->all.words);
        free(v->rough.words);
        free(v->plain);
        free(v->n_bytes);
        free(v->places);
        free(v->text);
        free(v);
    }
}
