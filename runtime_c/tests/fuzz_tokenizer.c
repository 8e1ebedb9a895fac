/* A hostile tokenizer.bin: opening, encoding, decoding and streaming must neither crash nor hang.
 * Input: one byte n, n bytes of text, then the file. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const ellm_tokenizer *tokenizer, const char *text, size_t n) {
    int32_t tokens[512];
    char out[2048];
    size_t n_tokens, n_bytes;
    ellm_status status = ellm_tokenizer_encode(tokenizer, text, n, true, n % 2 == 0, tokens, 512, &n_tokens);
    if (status != ELLM_OK) {
        n_tokens = 0;
    }
    for (size_t i = 0; i < n && n_tokens < 512; i++) {
        tokens[n_tokens++] = (int32_t)((uint8_t)text[i] % ellm_tokenizer_size(tokenizer));
    }
    (void)ellm_tokenizer_decode(tokenizer, tokens, n_tokens, n % 3 == 0, out, sizeof out, &n_bytes);
    ellm_stream stream = {.skip_special = n % 3 == 0};
    for (size_t i = 0; i < n_tokens; i++) {
        (void)ellm_tokenizer_push(tokenizer, &stream, tokens[i], out, sizeof out, &n_bytes);
    }
    (void)ellm_tokenizer_flush(tokenizer, &stream, out, sizeof out, &n_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t n_text = size > 0 ? data[0] : 0;
    if (size < 1 + n_text) {
        return 0;
    }
    size_t bytes = size - 1 - n_text;
    uint8_t *file = malloc(bytes + 1);
    ellm_tokenizer *tokenizer = NULL;
    ellm_error error;
    if (file == NULL) {
        return 0;
    }
    memcpy(file, data + 1 + n_text, bytes);
    if (bytes >= 12) {
        uint32_t declared = (uint32_t)bytes; /* the size field is no obstacle to the fuzzer */
        memcpy(file + 8, &declared, sizeof declared);
    }
    if (ellm_tokenizer_open(file, bytes, &tokenizer, &error) == ELLM_OK) {
        use(tokenizer, (const char *)data + 1, n_text);
    }
    ellm_tokenizer_close(tokenizer);
    free(file);
    return 0;
}
