#include "posix.h"

#include "bundle.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cpu.h"
#include "error.h"
#include "sha256.h"
#include "signature.h"

enum { manifest_limit = 16 << 20, region_limit = 512 << 20, piece_bytes = 4 << 20, keys_limit = 4096 };
static const char stamp_path[] = ".verified", stamp_new_path[] = ".verified.new";

/* ---- manifest ---- */

ellm_status ellm_bundle_check_signature(int directory, const char *path, const char *pinned_path, const void *manifest,
                                        size_t manifest_bytes, ellm_error *error) {
    char pinned[keys_limit];
    size_t n_pinned;
    ellm_file file = {0};
    ellm_status status = ellm_key_file_read(pinned_path, S_IWGRP | S_IWOTH, pinned, sizeof pinned, &n_pinned, error);
    if (status == ELLM_OK) {
        status = ellm_file_map(directory, path, &file, error);
        if (status == ELLM_OK || status == ELLM_BUNDLE_MISSING) {
            status = ellm_signature_check((const char *)file.data, file.bytes, pinned, n_pinned, manifest,
                                          manifest_bytes, error);
        }
    }
    ellm_file_close(&file);
    return status;
}

static ellm_status read_manifest(ellm_bundle *bundle, const ellm_trust *trust, const ellm_file *manifest,
                                 const ellm_file *digest, ellm_error *error) {
    static const char tail[] = "  manifest.json\n";
    if (manifest->bytes == 0 || manifest->bytes > manifest_limit) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "manifest.json: %zu bytes; 1 to %d are allowed", manifest->bytes,
                         manifest_limit);
    }
    if (digest->bytes != 64 + sizeof tail - 1 || memcmp(digest->data + 64, tail, sizeof tail - 1) != 0) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT,
                         "manifest.sha256: not \"<64 hexadecimal digits>  manifest.json\"; deploy the bundle again");
    }
    bundle->text = ellm_region_text(&bundle->region, (const char *)manifest->data, manifest->bytes);
    bundle->text_bytes = manifest->bytes;
    if (bundle->text == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "manifest.json: no memory to read it");
    }
    ellm_sha256 sha;
    ellm_sha256_init(&sha);
    ellm_sha256_update(&sha, bundle->text, bundle->text_bytes);
    ellm_sha256_hex(&sha, bundle->sha256);
    if (memcmp(bundle->sha256, digest->data, 64) != 0) {
        return ellm_fail(error, ELLM_BUNDLE_CORRUPT,
                         "manifest.json: does not match manifest.sha256; deploy the bundle again");
    }
    ellm_status status = trust->pinned == NULL
                             ? ELLM_OK
                             : ellm_bundle_check_signature(bundle->directory, "manifest.sig", trust->pinned,
                                                           bundle->text, bundle->text_bytes, error);
    if (status == ELLM_OK && trust->secret != NULL) {
        status = ellm_secret_read(trust->secret, &bundle->secret, error);
    }
    return status != ELLM_OK
               ? status
               : ellm_manifest_read(bundle->text, bundle->text_bytes, &bundle->region, &bundle->manifest, error);
}

ellm_status ellm_bundle_open(const char *path, ellm_bundle *bundle, ellm_error *error) {
    return ellm_bundle_open_trusted(path, &(ellm_trust){.pinned = NULL}, bundle, error);
}

ellm_status ellm_bundle_open_trusted(const char *path, const ellm_trust *trust, ellm_bundle *bundle,
                                     ellm_error *error) {
    *bundle = (ellm_bundle){.directory = -1};
    ellm_region_init(&bundle->region, region_limit);
    ellm_file manifest = {0}, digest = {0};
    ellm_status status = ellm_directory_open(path, &bundle->directory, error);
    if (status == ELLM_OK) {
        status = ellm_file_map(bundle->directory, "manifest.json", &manifest, error);
    }
    if (status == ELLM_OK) {
        status = ellm_file_map(bundle->directory, "manifest.sha256", &digest, error);
    }
    if (status == ELLM_OK) {
        status = read_manifest(bundle, trust, &manifest, &digest, error);
    }
    ellm_file_close(&manifest);
    ellm_file_close(&digest);
    if (status != ELLM_OK) {
        ellm_bundle_close(bundle);
    }
    return status;
}

void ellm_bundle_close(ellm_bundle *bundle) {
    if (bundle->directory >= 0) {
        close(bundle->directory);
        bundle->directory = -1;
    }
    ellm_secret_wipe(&bundle->secret);
    ellm_region_free(&bundle->region);
}

ellm_status ellm_bundle_check_cpu(const ellm_bundle *bundle, ellm_error *error) {
    const ellm_manifest *manifest = &bundle->manifest;
    if (strcmp(manifest->arch, ellm_cpu_arch()) != 0) {
        return ellm_fail(error, ELLM_CPU_UNSUPPORTED,
                         "the bundle was compiled for %.40s (%.40s), this is %s; compile it for this board",
                         manifest->arch, manifest->tier, ellm_cpu_arch());
    }
    for (size_t i = 0; i < manifest->n_features; i++) {
        if (!ellm_cpu_has(manifest->features[i])) {
            return ellm_fail(error, ELLM_CPU_UNSUPPORTED,
                             "the bundle was compiled for %.40s and needs the CPU feature %.64s, which this processor "
                             "or system lacks; compile it for this board",
                             manifest->tier, manifest->features[i]);
        }
    }
    return ELLM_OK;
}

bool ellm_bundle_is_encrypted(const ellm_manifest_file *entry, uint64_t bytes) {
    return entry->is_weight && bytes != 0 && bytes == ellm_encrypted_bytes(entry->bytes);
}

const ellm_manifest_file *ellm_bundle_find(const ellm_bundle *bundle, const char *path) {
    for (size_t i = 0; i < bundle->manifest.n_files; i++) {
        if (strcmp(bundle->manifest.files[i].path, path) == 0) {
            return &bundle->manifest.files[i];
        }
    }
    return NULL;
}

/* ---- the verified stamp ---- */

/* Reads a decimal number and the blank behind it. */
static bool take_number(const char **at, const char *end, uint64_t *value) {
    const char *begin = *at;
    *value = 0;
    while (*at < end && **at >= '0' && **at <= '9') {
        if (__builtin_mul_overflow(*value, 10u, value)
            || __builtin_add_overflow(*value, (uint64_t)(**at - '0'), value)) {
            return false;
        }
        ++*at;
    }
    return *at > begin && *at < end && *(*at)++ == ' ';
}

/* Whether the text of a stamp vouches for every weight file as it is now. */
static bool stamp_vouches(const ellm_bundle *bundle, const char *at, size_t n_bytes) {
    const char *end = at + n_bytes;
    char first[96];
    int length = snprintf(first, sizeof first, "edgellm-verified 1 %s\n", bundle->sha256);
    if (length < 0 || n_bytes < (size_t)length || memcmp(at, first, (size_t)length) != 0) {
        return false;
    }
    at += length;
    /* The manifest's files are distinct JSON names of which the last counts, so lines follow its order or not, but
     * each weight file needs a line of its own. */
    size_t n_needed = 0, n_lines = 0;
    for (size_t i = 0; i < bundle->manifest.n_files; i++) {
        n_needed += bundle->manifest.files[i].is_weight;
    }
    const char *body = at;
    for (; at < end; n_lines++) {
        ellm_file_stamp line, now;
        if (!take_number(&at, end, &line.inode) || !take_number(&at, end, &line.bytes)
            || !take_number(&at, end, &line.ctime_ns)) {
            return false;
        }
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        char path[256];
        if (newline == NULL || (size_t)(newline - at) >= sizeof path) {
            return false;
        }
        memcpy(path, at, (size_t)(newline - at));
        path[newline - at] = '\0';
        at = newline + 1;
        const ellm_manifest_file *file = ellm_bundle_find(bundle, path);
        if (file == NULL || !file->is_weight /* its size is checked in any case */
            || ellm_file_stamp_read(bundle->directory, path, &now, NULL) != ELLM_OK || now.inode != line.inode
            || now.bytes != line.bytes || now.ctime_ns != line.ctime_ns) {
            return false;
        }
    }
    if (n_lines != n_needed) {
        return false;
    }
    for (size_t i = 0; i < bundle->manifest.n_files; i++) {
        const ellm_manifest_file *file = &bundle->manifest.files[i];
        char line_end[260];
        int n = snprintf(line_end, sizeof line_end, " %s\n", file->path);
        if (file->is_weight && (n < 0 || memmem(body, (size_t)(end - body), line_end, (size_t)n) == NULL)) {
            return false;
        }
    }
    return true;
}

bool ellm_bundle_is_vouched(const ellm_bundle *bundle) {
    ellm_file stamp;
    if (ellm_file_map(bundle->directory, stamp_path, &stamp, NULL) != ELLM_OK) {
        return false;
    }
    bool valid = stamp.data != NULL && stamp_vouches(bundle, (const char *)stamp.data, stamp.bytes);
    ellm_file_close(&stamp);
    return valid;
}

void ellm_bundle_vouch(const ellm_bundle *bundle, const ellm_file_stamp *stamps) {
    int file = openat(bundle->directory, stamp_new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0) {
        return;
    }
    bool good = dprintf(file, "edgellm-verified 1 %s\n", bundle->sha256) > 0;
    for (size_t i = 0; i < bundle->manifest.n_files; i++) {
        const ellm_manifest_file *entry = &bundle->manifest.files[i];
        if (entry->is_weight) {
            good = good
                   && dprintf(file, "%llu %llu %llu %s\n", (unsigned long long)stamps[i].inode,
                              (unsigned long long)stamps[i].bytes, (unsigned long long)stamps[i].ctime_ns, entry->path)
                          > 0;
        }
    }
    good = fsync(file) == 0 && good;
    good = close(file) == 0 && good;
    if (!good || renameat(bundle->directory, stamp_new_path, bundle->directory, stamp_path) != 0) {
        unlinkat(bundle->directory, stamp_new_path, 0);
    }
}

/* ---- hashing ---- */

typedef struct meter {
    uint64_t done, total;
    ellm_progress progress;
    void *user;
    ellm_sha256 empty; /* made once: asking a virtual processor what it can do takes long */
} meter;

static void tick(uint64_t n_bytes, void *user) {
    meter *m = user;
    m->done += n_bytes;
    if (m->progress != NULL) {
        m->progress(m->done, m->total, m->user);
    }
}

/* Hashes what an encrypted file holds. */
static ellm_status hash_encrypted(const ellm_bundle *bundle, const ellm_manifest_file *entry, const ellm_file *file,
                                  ellm_sha256 *sha, void (*counted)(uint64_t n_bytes, void *user), void *user,
                                  ellm_error *error) {
    ellm_status status = ellm_encrypted_check(file, entry->path, entry->bytes, &bundle->secret, error);
    uint8_t *plain = malloc(ELLM_ENCRYPTED_CHUNK);
    if (plain == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "%s: no memory to decrypt it", entry->path);
    }
    for (uint64_t left = entry->bytes, i = 0; left != 0 && status == ELLM_OK; i++) {
        size_t n = left < ELLM_ENCRYPTED_CHUNK ? (size_t)left : ELLM_ENCRYPTED_CHUNK;
        if (!ellm_encrypted_read(file, entry->bytes, &bundle->secret, i, plain)) {
            status = ellm_encrypted_changed(entry->path, error);
            break;
        }
        ellm_sha256_update(sha, plain, n);
        counted(n, user);
        left -= n;
    }
    free(plain);
    return status;
}

ellm_status ellm_bundle_check_file(const ellm_bundle *bundle, const ellm_manifest_file *entry, const ellm_sha256 *empty,
                                   void (*counted)(uint64_t n_bytes, void *user), void *user, ellm_error *error) {
    ellm_file file;
    ellm_status status = ellm_file_map(bundle->directory, entry->path, &file, error);
    if (status != ELLM_OK) {
        return status;
    }
    ellm_sha256 sha = *empty;
    for (size_t at = 0; at < file.bytes && file.bytes == entry->bytes;) {
        size_t piece = file.bytes - at < piece_bytes ? file.bytes - at : piece_bytes;
        ellm_sha256_update(&sha, file.data + at, piece);
        at += piece;
        counted(piece, user);
    }
    bool encrypted = ellm_bundle_is_encrypted(entry, file.bytes);
    if (encrypted) {
        status = hash_encrypted(bundle, entry, &file, &sha, counted, user, error);
    }
    char hex[65];
    ellm_sha256_hex(&sha, hex);
    if (status == ELLM_OK && ((file.bytes != entry->bytes && !encrypted) || strcmp(hex, entry->sha256) != 0)) {
        status = ellm_fail(error, ELLM_BUNDLE_CORRUPT,
                           "%s: does not match its SHA-256 in manifest.json; deploy the bundle again", entry->path);
    }
    ellm_file_close(&file);
    return status;
}

ellm_status ellm_bundle_check_files(const ellm_bundle *bundle, bool all, ellm_progress progress, void *user,
                                    ellm_error *error) {
    const ellm_manifest *manifest = &bundle->manifest;
    ellm_file_stamp *stamps = calloc(manifest->n_files + 1, sizeof *stamps);
    if (stamps == NULL) {
        return ellm_fail(error, ELLM_NO_MEMORY, "no memory to check %zu files", manifest->n_files);
    }
    ellm_status status = ELLM_OK;
    bool with_weights = all || !ellm_bundle_is_vouched(bundle);
    meter meter_now = {.progress = progress, .user = user};
    ellm_sha256_init(&meter_now.empty);
    for (size_t i = 0; i < manifest->n_files && status == ELLM_OK; i++) {
        const ellm_manifest_file *entry = &manifest->files[i];
        status = ellm_file_stamp_read(bundle->directory, entry->path, &stamps[i], error);
        if (status == ELLM_OK && stamps[i].bytes != entry->bytes && !ellm_bundle_is_encrypted(entry, stamps[i].bytes)) {
            status = ellm_fail(error, ELLM_BUNDLE_CORRUPT,
                               "%s: %llu bytes, manifest.json says %llu; deploy the bundle again", entry->path,
                               (unsigned long long)stamps[i].bytes, (unsigned long long)entry->bytes);
        }
        if (!entry->is_weight || with_weights) {
            meter_now.total += entry->bytes;
        }
    }
    for (size_t i = 0; i < manifest->n_files && status == ELLM_OK; i++) {
        if (!manifest->files[i].is_weight || with_weights) {
            status = ellm_bundle_check_file(bundle, &manifest->files[i], &meter_now.empty, tick, &meter_now, error);
        }
    }
    if (status == ELLM_OK && with_weights) {
        ellm_bundle_vouch(bundle, stamps);
    }
    free(stamps);
    return status;
}

ellm_status ellm_bundle_verify(const char *path, ellm_progress progress, void *user, ellm_error *error) {
    return ellm_bundle_verify_trusted(path, &(ellm_trust){.pinned = NULL}, progress, user, error);
}

ellm_status ellm_bundle_verify_trusted(const char *path, const ellm_trust *trust, ellm_progress progress, void *user,
                                       ellm_error *error) {
    ellm_bundle bundle;
    ellm_status status = ellm_bundle_open_trusted(path, trust, &bundle, error);
    if (status == ELLM_OK) {
        status = ellm_bundle_check_files(&bundle, true, progress, user, error);
        ellm_bundle_close(&bundle);
    }
    return status;
}
