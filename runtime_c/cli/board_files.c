/* Files and folders of a board: each change is on the disk when the call returns. */
#include "posix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "board.h"

ellm_status path_print(char path[path_cap], ellm_error *error, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(path, path_cap, format, arguments);
    va_end(arguments);
    return n >= 0 && n < path_cap ? ELLM_OK : ellm_fail(error, ELLM_IO, "%.80s...: the path is too long", path);
}

ellm_status path_failed(const char *path, const char *what, ellm_error *error) {
    return ellm_fail(error, errno == ENOMEM ? ELLM_NO_MEMORY : ELLM_IO, "%s: %s: %s", path, what, strerror(errno));
}

ellm_status folder_make(const char *path, ellm_error *error) {
    return mkdir(path, 0755) == 0 || errno == EEXIST ? ELLM_OK : path_failed(path, "cannot be made", error);
}

ellm_status folder_sync(const char *path, ellm_error *error) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* EINVAL: a file system whose directories need no flushing. */
    bool good = folder >= 0 && (fsync(folder) == 0 || errno == EINVAL);
    ellm_status status = good ? ELLM_OK : path_failed(path, "cannot be flushed to the disk", error);
    if (folder >= 0) {
        close(folder);
    }
    return status;
}

static uint64_t removed_bytes; /* nftw hands nothing on to its callback */

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *where) {
    (void)kind;
    (void)where;
    if (S_ISREG(status->st_mode) && status->st_nlink == 1) {
        removed_bytes += (uint64_t)status->st_blocks * 512;
    }
    return remove(path);
}

ellm_status tree_remove(const char *path, uint64_t *freed_bytes, ellm_error *error) {
    removed_bytes = 0;
    bool gone = nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT;
    if (freed_bytes != NULL) {
        *freed_bytes += removed_bytes;
    }
    return gone ? ELLM_OK : path_failed(path, "cannot be removed", error);
}

ellm_status folder_each(const char *path, entry_run *each, void *user, ellm_error *error) {
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return errno == ENOENT || errno == ENOTDIR ? ELLM_OK : path_failed(path, "cannot be read", error);
    }
    ellm_status status = ELLM_OK;
    /* Names first: what `each` does to the folder must not decide what is seen of it. */
    buffer names = {0};
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            buffer_put(&names, entry->d_name, strlen(entry->d_name) + 1);
        }
    }
    closedir(folder);
    for (size_t at = 0; at < names.n && status == ELLM_OK; at += strlen(names.data + at) + 1) {
        status = each(names.data + at, user, error);
    }
    buffer_free(&names);
    return status;
}

bool is_digits(const char *text, size_t n) {
    return strlen(text) == n && strspn(text, "0123456789abcdef") == n;
}

bool is_model(const char *name) {
    size_t n = strlen(name);
    return n > 0 && n <= name_cap && name[0] != '.' && name[0] != '-'
           && strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

bool link_read(const char *path, char slot[slot_digits + 1]) {
    char text[slot_digits + 2];
    ssize_t n = readlink(path, text, sizeof text);
    if (n != slot_digits) {
        return false;
    }
    memcpy(slot, text, slot_digits);
    slot[slot_digits] = '\0';
    return is_digits(slot, slot_digits);
}

ellm_status link_write(const char *folder, const char *name, const char *slot, ellm_error *error) {
    char path[path_cap], fresh[path_cap];
    ellm_status status = path_print(path, error, "%s/%s", folder, name);
    if (status == ELLM_OK) {
        status = path_print(fresh, error, "%s/.%s.new", folder, name);
    }
    if (status != ELLM_OK) {
        return status;
    }
    unlink(fresh);
    if (symlink(slot, fresh) != 0) {
        return errno == EPERM ? ellm_fail(error, ELLM_IO,
                                          "%s: this file system has no symbolic links, so nothing can be switched in "
                                          "one step; use a home on another one",
                                          folder)
                              : path_failed(fresh, "cannot be written", error);
    }
    if (rename(fresh, path) != 0) {
        status = path_failed(path, "cannot be written", error);
        unlink(fresh);
        return status;
    }
    return folder_sync(folder, error);
}
