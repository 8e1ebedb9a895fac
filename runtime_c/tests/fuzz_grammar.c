/* Fuzzes schemas, grammars and the masks that they make: the first byte chooses, then comes the text, and behind a NUL what
 * is drawn. Whatever the masks allow must be accepted, and an answer that ends where it may must be what its schema says:
 * JSON. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "matcher.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static ellm_vocabulary *vocabulary;

static bool is_last(const void *user, int32_t token) {
    return token == *(const int32_t *)user;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    static uint8_t file[1 << 16] __attribute__((aligned(8)));
    FILE *from = fopen("tests/toy_tokenizer.bin", "rb");
    size_t n = from == NULL ? 0 : fread(file, 1, sizeof file, from);
    static ellm_tokenizer *tokenizer; /* stays */
    ellm_error error;
    if (from == NULL || fclose(from) != 0 || ellm_tokenizer_open(file, n, &tokenizer, &error) != ELLM_OK) {
        return 99;
    }
    int32_t last = (int32_t)ellm_tokenizer_size(tokenizer) - 1;
    return ellm_vocabulary_make(tokenizer, last + 1, is_last, &last, &vocabulary) == ELLM_OK ? 0 : 99;
}

static void must(bool good) {
    if (!good) {
        abort();
    }
}

/* Draws an answer byte by byte. A text that has begun can always go on or end, unless it is given up. */
static void draw(ellm_grammar *grammar, bool is_json, const uint8_t *data, size_t n_bytes) {
    ellm_matcher *m = NULL;
    uint8_t text[256];
    size_t n = 0;
    if (ellm_matcher_open(grammar, vocabulary, &m) != ELLM_OK) {
        return;
    }
    for (size_t i = 0; i < n_bytes && n < sizeof text && !ellm_matcher_is_done(m); i++) {
        const uint64_t *mask;
        uint32_t n_allowed;
        ellm_status status = ellm_matcher_mask(m, &mask, &n_allowed);
        int tries = 0;
        bool given_up = status == ELLM_GRAMMAR_LIMIT;
        uint8_t byte = data[i];
        while (tries < 256 && !ellm_matcher_feed(m, &byte, 1)) {
            given_up = given_up || ellm_matcher_is_given_up(m);
            byte++; /* the next that may follow */
            tries++;
        }
        if (tries == 256) {
            must(given_up);
            ellm_matcher_close(m);
            return;
        }
        text[n++] = byte;
    }
    if (is_json && ellm_matcher_may_end(m)) {
        ellm_region region;
        ellm_json *value;
        ellm_region_init(&region, 1 << 20);
        must(ellm_json_read((const char *)text, n, &region, ELLM_USAGE, "answer", &value, NULL) == ELLM_OK);
        ellm_region_free(&region);
    }
    ellm_matcher_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes == 0) {
        return 0;
    }
    bool is_json = data[0] % 2 == 0;
    const char *text = (const char *)data + 1;
    const uint8_t *end = memchr(text, '\0', n_bytes - 1);
    size_t n = end != NULL ? (size_t)(end - data) - 1 : n_bytes - 1;
    ellm_grammar *grammar = NULL;
    ellm_error error = {{0}};
    ellm_status status = is_json ? ellm_grammar_open_schema(text, n, &grammar, &error)
                                 : ellm_grammar_open_text(text, n, &grammar, &error);
    must((status == ELLM_OK) == (grammar != NULL) && (status == ELLM_OK || error.text[0] != '\0'));
    if (grammar != NULL) {
        draw(grammar, is_json, end != NULL ? end + 1 : data, end != NULL ? n_bytes - n - 2 : n_bytes);
        ellm_grammar_close(grammar);
    }
    return 0;
}
