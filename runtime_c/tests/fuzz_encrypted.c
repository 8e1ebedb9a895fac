/* Fuzzes the header and the chunks of an encrypted file that should hold as many bytes as its size allows. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "encrypted.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static uint8_t plain[ELLM_ENCRYPTED_CHUNK];
    const ellm_file file = {data, n_bytes, -1};
    ellm_secret secret = {.id = "0123456789abcdef"};
    for (size_t overhead = ELLM_ENCRYPTED_HEADER + ELLM_ENCRYPTED_TAG; overhead < n_bytes && overhead < 100;
         overhead += ELLM_ENCRYPTED_TAG) {
        uint64_t n = n_bytes - overhead;
        if (ellm_encrypted_check(&file, "fuzz", n, &secret, NULL) == ELLM_OK) {
            for (uint64_t i = 0; i * ELLM_ENCRYPTED_CHUNK < n; i++) {
                (void)ellm_encrypted_read(&file, n, &secret, i, plain);
            }
        }
    }
    return 0;
}
