/* Fuzzes the parsers of manifest.sig and of pinned keys. The input is both, cut where its first byte says. */
#include <stddef.h>
#include <stdint.h>

#include "signature.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes != 0) {
        size_t n = n_bytes - 1, cut = n * data[0] / 255;
        const char *text = (const char *)data + 1;
        ellm_signature_check(text, cut, text + cut, n - cut, text, n, NULL);
    }
    return 0;
}
