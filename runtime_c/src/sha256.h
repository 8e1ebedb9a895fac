/* sha256.h: SHA-256 (FIPS 180-4), with the CPU's SHA instructions where it has them. */
#ifndef ELLM_SHA256_H
#define ELLM_SHA256_H

#include <stddef.h>
#include <stdint.h>

typedef struct ellm_sha256 {
    uint32_t state[8];
    uint64_t n_bytes;
    uint8_t block[64]; /* the last n_bytes % 64 bytes */
    void (*compress)(uint32_t state[8], const uint8_t *data, size_t n_blocks);
} ellm_sha256;

void ellm_sha256_init(ellm_sha256 *sha);
void ellm_sha256_update(ellm_sha256 *sha, const void *data, size_t n_bytes);
/* Writes 64 lower-case hexadecimal digits and a NUL. */
void ellm_sha256_hex(ellm_sha256 *sha, char hex[65]);

/* As init, never using special instructions (for tests). */
void ellm_sha256_init_portable(ellm_sha256 *sha);

#endif
