#include "posix.h"

#include "encrypted.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "error.h"
#include "memory.h"
#include "monocypher.h"
#include "pool.h"
#include "sha256.h"

/* Offsets in the header. */
enum { size_at = 8, nonce_at = 16, nonce_bytes = 8, id_at = 24, id_digits = 16 };

/* Little-endian. */
static void store_u64(uint8_t *bytes, uint64_t value) {
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(value >> 8 * i);
    }
}

/* ---- the key ---- */

ellm_status ellm_secret_read(const char *path, ellm_secret *secret, ellm_error *error) {
    static const char label[] = "edgellm weights key 1\n";
    ellm_sha256 sha;
    size_t n;
    secret->id[0] = '\0';
    ellm_status status = ellm_key_file_read(path, S_IRWXO | S_IWGRP, secret->key, sizeof secret->key, &n, error);
    if (status != ELLM_OK || n != ELLM_SECRET_BYTES) {
        return status != ELLM_OK
                   ? status
                   : ellm_fail(error, ELLM_KEY_INVALID, "%.200s: not 32 bytes; deploy with --encrypt again", path);
    }
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, label, sizeof label - 1);
    ellm_sha256_update(&sha, secret->key, ELLM_SECRET_BYTES);
    ellm_sha256_hex(&sha, secret->id);
    crypto_wipe(&sha, sizeof sha);
    return ELLM_OK;
}

void ellm_secret_wipe(ellm_secret *secret) {
    crypto_wipe(secret, sizeof *secret);
}

/* ---- a file ---- */

static uint64_t chunks_of(uint64_t n_bytes) {
    return (n_bytes + ELLM_ENCRYPTED_CHUNK - 1) / ELLM_ENCRYPTED_CHUNK;
}

uint64_t ellm_encrypted_bytes(uint64_t n_bytes) {
    return n_bytes == 0 || n_bytes >> 48 != 0
               ? 0
               : ELLM_ENCRYPTED_HEADER + n_bytes + chunks_of(n_bytes) * ELLM_ENCRYPTED_TAG;
}

/* `what` says more than DECRYPTION_FAILED does. */
static ellm_status fail(ellm_status status, const char *what, const char *path, ellm_error *error) {
    return ellm_fail(error, status, "%s: %s; deploy it again with --encrypt", path,
                     status == ELLM_DECRYPTION_FAILED ? what : ellm_status_text(status));
}

ellm_status ellm_encrypted_check(const ellm_file *file, const char *path, uint64_t n_bytes, const ellm_secret *secret,
                                 ellm_error *error) {
    uint8_t start[nonce_at] = "ELLMENC1";
    ellm_status status = ELLM_OK;
    store_u64(start + size_at, n_bytes);
    if (file->bytes != ellm_encrypted_bytes(n_bytes) || memcmp(file->data, start, sizeof start) != 0) {
        status = ELLM_BUNDLE_CORRUPT;
    } else if (secret->id[0] == '\0') {
        status = ELLM_KEY_MISSING;
    } else if (memcmp(file->data + id_at, secret->id, id_digits) != 0) {
        status = ELLM_DECRYPTION_FAILED;
    }
    return status == ELLM_OK ? status : fail(status, "encrypted with another key", path, error);
}

ellm_status ellm_encrypted_changed(const char *path, ellm_error *error) {
    return fail(ELLM_DECRYPTION_FAILED, "its bytes were changed", path, error);
}

bool ellm_encrypted_read(const ellm_file *file, uint64_t n_bytes, const ellm_secret *secret, uint64_t index,
                         uint8_t *plain) {
    crypto_aead_ctx aead;
    uint8_t nonce[16];
    uint64_t left = n_bytes - index * ELLM_ENCRYPTED_CHUNK;
    size_t length = left < ELLM_ENCRYPTED_CHUNK ? (size_t)left : ELLM_ENCRYPTED_CHUNK;
    const uint8_t *chunk = file->data + ELLM_ENCRYPTED_HEADER + index * (ELLM_ENCRYPTED_CHUNK + ELLM_ENCRYPTED_TAG);
    memcpy(nonce, file->data + nonce_at, nonce_bytes);
    store_u64(nonce + nonce_bytes, index);
    crypto_aead_init_ietf(&aead, secret->key, nonce); /* the first 12 bytes */
    bool good = crypto_aead_read(&aead, plain, chunk + length, file->data, ELLM_ENCRYPTED_HEADER, chunk, length) == 0;
    crypto_wipe(&aead, sizeof aead);
    return good;
}

/* ---- all shards of a model ---- */

typedef struct job {
    ellm_file *shards;
    const ellm_manifest_file *const *entries;
    const ellm_secret *secret;
    uint8_t *memory; /* the decrypted shards one after the other, each from a multiple of a chunk on */
    _Atomic(const char *) changed;
} job;

/* Chunks of a shard; none if it is not encrypted: then its size is the manifest's. */
static int64_t chunks_in(const job *j, size_t shard) {
    uint64_t n_bytes = j->entries[shard]->bytes;
    return j->shards[shard].bytes == n_bytes ? 0 : (int64_t)chunks_of(n_bytes);
}

/* Decrypts the chunks [g0, g1) of all shards' chunks: a kernel of one pointer. */
static int32_t decrypt(void *argument, int64_t g0, int64_t g1) {
    job *j = argument;
    size_t s = 0;
    int64_t before = 0; /* chunks of the shards before s */
    for (int64_t g = g0; g < g1; g++) {
        while (g - before >= chunks_in(j, s)) {
            before += chunks_in(j, s++);
        }
        if (!ellm_encrypted_read(&j->shards[s], j->entries[s]->bytes, j->secret, (uint64_t)(g - before),
                                 j->memory + (size_t)g * ELLM_ENCRYPTED_CHUNK)) {
            j->changed = j->entries[s]->path;
            return 1;
        }
    }
    return 0;
}

/* Memory that no core file shows and, where that is allowed, no swap. */
static void *secret_memory(size_t bytes, uint64_t *locked_bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) {
        (void)madvise(memory, bytes, MADV_DONTDUMP);
        if (syscall(SYS_mlock2, memory, bytes, 1) == 0 || mlock(memory, bytes) == 0) { /* 1: MLOCK_ONFAULT */
            *locked_bytes = bytes;
        }
    }
    return memory;
}

static ellm_status run(job *j, int64_t n_chunks, ellm_error *error) {
    ellm_cores cores;
    ellm_pool *pool;
    void *pointer = j;
    const ellm_launch launch = {(void (*)(void))decrypt, &pointer, {0}, n_chunks, 1, 1, 0};
    ellm_cores_read(&cores);
    ellm_status status = ellm_pool_open(cores.n_useful, &cores, &pool, error);
    if (status == ELLM_OK) {
        status = ellm_pool_run(pool, &launch, 1, cores.n_useful);
        ellm_pool_close(pool);
    }
    return j->changed == NULL ? status : ellm_encrypted_changed(j->changed, error);
}

ellm_status ellm_encrypted_open(ellm_file *shards, const ellm_manifest_file *const *entries, size_t n_shards,
                                const ellm_secret *secret, uint64_t *decrypted_bytes, uint64_t *locked_bytes,
                                ellm_error *error) {
    job j = {.shards = shards, .entries = entries, .secret = secret, .memory = MAP_FAILED};
    int64_t n_chunks = 0;
    ellm_status status = ELLM_OK;
    for (size_t i = 0; i < n_shards && status == ELLM_OK; i++) {
        int64_t n = chunks_in(&j, i);
        n_chunks += n;
        status =
            n == 0 ? ELLM_OK : ellm_encrypted_check(&shards[i], entries[i]->path, entries[i]->bytes, secret, error);
    }
    uint64_t total = (uint64_t)n_chunks * ELLM_ENCRYPTED_CHUNK;
    if (n_chunks == 0 || status != ELLM_OK) {
        return status;
    }
    if (total < ellm_available_bytes() && total <= SIZE_MAX / 2) {
        j.memory = secret_memory((size_t)total, locked_bytes);
    }
    if (j.memory == MAP_FAILED) {
        return ellm_fail(error, ELLM_NO_MEMORY, "encrypted weights take %llu MB of memory; deploy without --encrypt",
                         (unsigned long long)total >> 20);
    }
    status = run(&j, n_chunks, error);
    if (status != ELLM_OK) {
        munmap(j.memory, (size_t)total);
        return status;
    }
    (void)mprotect(j.memory, (size_t)total, PROT_READ);
    *decrypted_bytes = total;
    for (size_t i = 0; i < n_shards; i++) {
        size_t bytes = (size_t)chunks_in(&j, i) * ELLM_ENCRYPTED_CHUNK;
        if (bytes != 0) { /* the page cache need not keep what nobody reads again */
            int descriptor = shards[i].descriptor;
            shards[i].descriptor = -1;
            ellm_file_close(&shards[i]);
            (void)posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
            close(descriptor);
            shards[i].data = j.memory;
            shards[i].bytes = (size_t)entries[i]->bytes;
            j.memory += bytes;
        }
    }
    return ELLM_OK;
}
