/* bundle.h: a bundle directory and whether its files are what the manifest says. */
#ifndef ELLM_BUNDLE_H
#define ELLM_BUNDLE_H

#include "encrypted.h"
#include "file.h"
#include "manifest.h"
#include "sha256.h"

typedef struct ellm_bundle {
    int directory;
    ellm_region region; /* of the manifest; the opened model adds to it */
    const char *text;   /* manifest.json, NUL-terminated */
    size_t text_bytes;
    char sha256[65]; /* of manifest.json */
    ellm_manifest manifest;
    ellm_secret secret; /* of encrypted weights; wiped when the bundle is closed */
} ellm_bundle;

/* Reads and checks the manifest. On failure nothing stays open. */
ellm_status ellm_bundle_open(const char *path, ellm_bundle *bundle, ellm_error *error);
/* The same for one that a pinned key must have signed: the signature is checked before anything is parsed. */
ellm_status ellm_bundle_open_trusted(const char *path, const ellm_trust *trust, ellm_bundle *bundle, ellm_error *error);
/* Whether the file `path` below `directory` holds a signature of a manifest by a key in the file `pinned_path`. */
ellm_status ellm_bundle_check_signature(int directory, const char *path, const char *pinned_path, const void *manifest,
                                        size_t manifest_bytes, ellm_error *error);
/* CPU_UNSUPPORTED, with the missing feature, if the bundle was compiled for another processor. */
ellm_status ellm_bundle_check_cpu(const ellm_bundle *bundle, ellm_error *error);
/* Hashes the files; weights only where `all` is set or the stamp does not vouch for them. Writes the stamp if
 * weights were hashed and the directory is writable. */
ellm_status ellm_bundle_check_files(const ellm_bundle *bundle, bool all, ellm_progress progress, void *user,
                                    ellm_error *error);
/* Whether a file with `bytes` bytes on the disk is the encrypted form of what the manifest lists. */
bool ellm_bundle_is_encrypted(const ellm_manifest_file *entry, uint64_t bytes);
/* Hashes one file. BUNDLE_CORRUPT, or BUNDLE_MISSING. `empty`: an initialised state; `counted`: called for each piece. */
ellm_status ellm_bundle_check_file(const ellm_bundle *bundle, const ellm_manifest_file *entry, const ellm_sha256 *empty,
                                   void (*counted)(uint64_t n_bytes, void *user), void *user, ellm_error *error);
/* Whether the stamp vouches for every weight file as it is now. */
bool ellm_bundle_is_vouched(const ellm_bundle *bundle);
/* Writes the stamp. `stamps`: one per file of the manifest, taken before its bytes were hashed. One that cannot be
 * written is no failure: the next open hashes again. */
void ellm_bundle_vouch(const ellm_bundle *bundle, const ellm_file_stamp *stamps);
/* The entry of a file, NULL if the manifest has none. */
const ellm_manifest_file *ellm_bundle_find(const ellm_bundle *bundle, const char *path);
void ellm_bundle_close(ellm_bundle *bundle);

#endif
