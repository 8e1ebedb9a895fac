/* encrypted.h: weight shards that are encrypted at rest with a board's own key (FORMAT.md).
 *
 * Chunks of 64 KB, each ChaCha20-Poly1305 (RFC 8439) with the file's nonce and its own number, so that chunks decrypt in
 * parallel and none can be changed, moved, left out or taken from another file. */
#ifndef ELLM_ENCRYPTED_H
#define ELLM_ENCRYPTED_H

#include "edgellm.h"
#include "file.h"
#include "manifest.h"

enum { ELLM_SECRET_BYTES = 32, ELLM_ENCRYPTED_HEADER = 40, ELLM_ENCRYPTED_CHUNK = 65536, ELLM_ENCRYPTED_TAG = 16 };

/* A board's key to its weights. */
typedef struct ellm_secret {
    uint8_t key[ELLM_SECRET_BYTES + 1]; /* one byte more, to see that a file is too long */
    char id[65]; /* hexadecimal digits that tell keys apart and tell nothing about them; "" without a key */
} ellm_secret;

/* Reads a key file. KEY_INVALID unless it is 32 bytes that others can neither read nor write. */
ellm_status ellm_secret_read(const char *path, ellm_secret *secret, ellm_error *error);
void ellm_secret_wipe(ellm_secret *secret);

/* Size of the encrypted form of n_bytes bytes; never n_bytes itself. 0 if there is none: of nothing, or of too much. */
uint64_t ellm_encrypted_bytes(uint64_t n_bytes);

/* Checks the header of a file of that size. KEY_MISSING without a key, DECRYPTION_FAILED if it wants another one,
 * BUNDLE_CORRUPT if it is no such file. */
ellm_status ellm_encrypted_check(const ellm_file *file, const char *path, uint64_t n_bytes, const ellm_secret *secret,
                                 ellm_error *error);
/* Decrypts chunk `index` of a checked file to `plain`, ELLM_ENCRYPTED_CHUNK bytes or what is left of n_bytes. False if
 * it was changed. */
bool ellm_encrypted_read(const ellm_file *file, uint64_t n_bytes, const ellm_secret *secret, uint64_t index,
                         uint8_t *plain);
ellm_status ellm_encrypted_changed(const char *path, ellm_error *error);

/* Replaces those of a model's shards that are encrypted by decrypted, read-only memory, with all cores. `entries`: of the
 * manifest, one per shard. `decrypted_bytes` of memory, of which `locked_bytes` are kept from swap. KEY_MISSING,
 * DECRYPTION_FAILED or NO_MEMORY; shards can be closed in any case. */
ellm_status ellm_encrypted_open(ellm_file *shards, const ellm_manifest_file *const *entries, size_t n_shards,
                                const ellm_secret *secret, uint64_t *decrypted_bytes, uint64_t *locked_bytes,
                                ellm_error *error);

#endif
