#include "posix.h"

#include "gpu_note.h"

#ifdef ELLM_VULKAN

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char path[] = ".gpu", new_path[] = ".gpu.new";

void gpu_note_write(int directory, const char *manifest_sha256, const char *why) {
    int file = openat(directory, new_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (file < 0) {
        return;
    }
    bool good = dprintf(file, "edgellm-gpu 1 %s\n%.*s\n", manifest_sha256, (int)strcspn(why, "\n"), why) > 0;
    good = fsync(file) == 0 && good;
    good = close(file) == 0 && good;
    if (!good || renameat(directory, new_path, directory, path) != 0) {
        unlinkat(directory, new_path, 0);
    }
    (void)fsync(directory);
}

void gpu_note_clear(int directory) {
    unlinkat(directory, path, 0);
}

bool gpu_note_read(int directory, const char *manifest_sha256, char why[gpu_note_cap]) {
    char text[gpu_note_cap + 128], first[96];
    int file = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    ssize_t n = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    int length = snprintf(first, sizeof first, "edgellm-gpu 1 %s\n", manifest_sha256);
    if (n < length || length < 0 || memcmp(text, first, (size_t)length) != 0) {
        return false;
    }
    text[n] = '\0';
    snprintf(why, gpu_note_cap, "%.*s", (int)strcspn(text + length, "\n"), text + length);
    for (char *at = why; *at != '\0'; at++) {
        *at = *at >= ' ' && *at < 0x7f ? *at : '?'; /* nothing that a terminal obeys */
    }
    return true;
}

#else
typedef int gpu_note_none; /* ISO C forbids an empty file */
#endif
