/* bundle.h: a bundle directory and whether its files are what the manifest says. */
#ifndef ELLM_BUNDLE_H
#define ELLM_BUNDLE_H

#include "file.h"
#include "manifest.h"

typedef struct ellm_bundle {
    int directory;
    ellm_region region; /* of the manifest; the opened model adds to it */
    const char *text;   /* manifest.json, NUL-terminated */
    size_t text_bytes;
    char sha256[65]; /* of manifest.json */
    ellm_manifest manifest;
} ellm_bundle;

/* Reads and checks the manifest. On failure nothing stays open. */
ellm_status ellm_bundle_open(const char *path, ellm_bundle *bundle, ellm_error *error);
/* CPU_UNSUPPORTED, with the missing feature, if the bundle was compiled for another processor. */
ellm_status ellm_bundle_check_cpu(const ellm_bundle *bundle, ellm_error *error);
/* Hashes the files; weights only where `all` is set or the stamp does not vouch for them. Writes the stamp if
 * weights were hashed and the directory is writable. */
ellm_status ellm_bundle_check_files(const ellm_bundle *bundle, bool all, ellm_progress progress, void *user,
                                    ellm_error *error);
/* The entry of a file, NULL if the manifest has none. */
const ellm_manifest_file *ellm_bundle_find(const ellm_bundle *bundle, const char *path);
void ellm_bundle_close(ellm_bundle *bundle);

#endif
