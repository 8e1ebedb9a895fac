/* What lies beside a manifest: its signature, and which files of the store stand, encrypted, for which of its own. */
#include "posix.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "board.h"

enum { line_length = 2 * 65 }; /* of manifest.enc: "<SHA-256 of a file> <SHA-256 of its encrypted form>\n" */

const char *stored_sha256(const ellm_file *map, const ellm_manifest_file *file, uint64_t *bytes, char sha256[65]) {
    const char *line = (const char *)map->data;
    *bytes = file->bytes;
    for (size_t left = map->bytes; file->is_weight && left >= line_length; left -= line_length, line += line_length) {
        if (memcmp(line, file->sha256, 64) == 0) {
            *bytes = ellm_encrypted_bytes(file->bytes);
            memcpy(sha256, line + 65, 64); /* the store knows whether these are digits */
            sha256[64] = '\0';
            return sha256;
        }
    }
    return file->sha256;
}

/* What the words want `name` to be: the SHA-256 of manifest.NAME=SHA256, "" if none is about it. */
static const char *wanted(const char *name, int n, char **words) {
    size_t length = strlen(name);
    for (int i = 0; i < n; i++) {
        if (strncmp(words[i], name, length) == 0 && words[i][length] == '=') {
            return words[i] + length + 1;
        }
    }
    return "";
}

bool beside_has(const char *name, int n, char **words) {
    return wanted(name, n, words)[0] != '\0';
}

/* Whether a file of the slot is what the words want it to be. */
static bool is_same(int slot, const char *name, int n, char **words) {
    ellm_file file;
    char hex[65] = "";
    if (ellm_file_map(slot, name, &file, NULL) == ELLM_OK) {
        ellm_sha256 sha;
        ellm_sha256_init(&sha);
        ellm_sha256_update(&sha, file.data, file.bytes);
        ellm_sha256_hex(&sha, hex);
        ellm_file_close(&file);
    }
    return strcmp(hex, wanted(name, n, words)) == 0;
}

bool beside_is_same(int slot, int n, char **words) {
    return is_same(slot, "manifest.enc", n, words)
           && (!beside_has("manifest.sig", n, words) || is_same(slot, "manifest.sig", n, words));
}

ellm_status signature_prove(const char *manifest_sha256, const char *sha256, const char *pinned, ellm_error *error) {
    char path[path_cap];
    ellm_file manifest = {0};
    ellm_status status = path_print(path, error, STORE "/%s", manifest_sha256);
    status = status != ELLM_OK ? status : ellm_file_map(AT_FDCWD, path, &manifest, error);
    status = status != ELLM_OK ? status : path_print(path, error, STORE "/%s", sha256);
    status = status != ELLM_OK
                 ? status
                 : ellm_bundle_check_signature(AT_FDCWD, path, pinned, manifest.data, manifest.bytes, error);
    ellm_file_close(&manifest);
    return status;
}
