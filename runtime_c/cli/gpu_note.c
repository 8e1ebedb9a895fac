#include "posix.h"

#include "gpu_note.h"

#ifdef ELLM_VULKAN

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char note_path[] = ".gpu", note_kind[] = "gpu", proof_path[] = ".proven", proof_kind[] = "proven";

/* A file of two lines: what it is and of which manifest, then what it says. */
static bool write_lines(int directory, const char *path, const char *kind, const char *manifest_sha256,
                        const char *text) {
    char new_path[16];
    snprintf(new_path, sizeof new_path, "%s.new", path);
    int file = openat(directory, new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0) {
        return false;
    }
    bool good = dprintf(file, "edgellm-%s 1 %s\n%.*s\n", kind, manifest_sha256, (int)strcspn(text, "\n"), text) > 0;
    good = fsync(file) == 0 && good;
    good = close(file) == 0 && good;
    if (!good || renameat(directory, new_path, directory, path) != 0) {
        unlinkat(directory, new_path, 0);
        good = false;
    }
    (void)fsync(directory);
    return good;
}

/* The second line, if the first one fits. */
static bool read_line(int directory, const char *path, const char *kind, const char *manifest_sha256,
                      char line[gpu_note_cap]) {
    char text[gpu_note_cap + 128], first[96];
    int file = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    int length = snprintf(first, sizeof first, "edgellm-%s 1 %s\n", kind, manifest_sha256);
    if (n < length || length < 0 || memcmp(text, first, (size_t)length) != 0) {
        return false;
    }
    text[n] = '\0';
    snprintf(line, gpu_note_cap, "%.*s", (int)strcspn(text + length, "\n"), text + length);
    return true;
}

bool gpu_note_write(int directory, const char *manifest_sha256, const char *why) {
    return write_lines(directory, note_path, note_kind, manifest_sha256, why);
}

void gpu_note_clear(int directory) {
    unlinkat(directory, note_path, 0);
}

bool gpu_note_read(int directory, const char *manifest_sha256, char why[gpu_note_cap]) {
    if (!read_line(directory, note_path, note_kind, manifest_sha256, why)) {
        return false;
    }
    for (char *at = why; *at != '\0'; at++) {
        *at = *at >= ' ' && *at < 0x7f ? *at : '?'; /* nothing that a terminal obeys */
    }
    return true;
}

void gpu_proof_write(int directory, const char *manifest_sha256, const char *driver) {
    (void)write_lines(directory, proof_path, proof_kind, manifest_sha256, driver);
}

bool gpu_proof_is_other(int directory, const char *manifest_sha256, const char *driver) {
    char proven[gpu_note_cap];
    return read_line(directory, proof_path, proof_kind, manifest_sha256, proven) && strcmp(proven, driver) != 0;
}

#else
typedef int gpu_note_none; /* ISO C forbids an empty file */
#endif
