#include "posix.h"

#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "error.h"

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80 /* since Linux 6.14 */
#endif

ellm_status ellm_directory_open(const char *path, int *directory, ellm_error *error) {
    *directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*directory >= 0) {
        return ELLM_OK;
    }
    bool missing = errno == ENOENT || errno == ENOTDIR;
    return ellm_fail(error, missing ? ELLM_BUNDLE_MISSING : ELLM_IO,
                     missing ? "%s: %s; give the directory that `edgellm compile` wrote" : "%s: %s", path,
                     strerror(errno));
}

static ellm_status fail(const char *path, ellm_error *error) {
    if (errno == ENOENT || errno == ENOTDIR) {
        return ellm_fail(error, ELLM_BUNDLE_MISSING, "%s: the bundle lacks this file; deploy it again", path);
    }
    return ellm_fail(error, errno == ENOMEM ? ELLM_NO_MEMORY : ELLM_IO, "%s: %s", path, strerror(errno));
}

ellm_status ellm_file_map(int directory, const char *path, ellm_file *file, ellm_error *error) {
    *file = (ellm_file){.descriptor = openat(directory, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file->descriptor < 0) {
        return fail(path, error);
    }
    struct stat status;
    ellm_status result = ELLM_OK;
    if (fstat(file->descriptor, &status) != 0) {
        result = fail(path, error);
    } else if (!S_ISREG(status.st_mode)) {
        result = ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: not a regular file", path);
    } else if ((uint64_t)status.st_size > SIZE_MAX / 2) {
        result = ellm_fail(error, ELLM_NO_MEMORY, "%s: %llu bytes do not fit this processor's address space", path,
                           (unsigned long long)status.st_size);
    } else if (status.st_size > 0) {
        file->bytes = (size_t)status.st_size;
        void *data = mmap(NULL, file->bytes, PROT_READ, MAP_SHARED, file->descriptor, 0);
        if (data == MAP_FAILED) {
            result = fail(path, error);
        } else {
            file->data = data;
        }
    }
    if (result != ELLM_OK) {
        ellm_file_close(file);
    }
    return result;
}

static ssize_t read_at(int descriptor, void *bytes, size_t n, size_t at, bool *dropping) {
#ifdef SYS_preadv2
    const struct iovec piece = {.iov_base = bytes, .iov_len = n};
    if (*dropping) {
        ssize_t n_read = syscall(SYS_preadv2, descriptor, &piece, 1UL, (unsigned long)at, 0UL, RWF_DONTCACHE);
        if (n_read >= 0 || errno == EINTR) {
            return n_read;
        }
        *dropping = false; /* the system or the file system does not know it */
    }
#endif
    return pread(descriptor, bytes, n, (off_t)at);
}

ellm_status ellm_file_peek(const ellm_file *file, const char *path, void *bytes, size_t n, ellm_error *error) {
    bool dropping = true;
    posix_fadvise(file->descriptor, 0, 0, POSIX_FADV_RANDOM); /* no more than is asked for */
    for (size_t at = 0; at < n;) {
        ssize_t n_read = read_at(file->descriptor, (char *)bytes + at, n - at, at, &dropping);
        if (n_read == 0) {
            return ellm_fail(error, ELLM_IO, "%s: it became shorter while it was read", path);
        }
        if (n_read < 0 && errno != EINTR) {
            return fail(path, error);
        }
        at += n_read < 0 ? 0 : (size_t)n_read;
    }
    posix_fadvise(file->descriptor, 0, 0, POSIX_FADV_NORMAL);
    return ELLM_OK;
}

void ellm_file_release(ellm_file *file) {
    if (file->descriptor >= 0) {
        close(file->descriptor);
        file->descriptor = -1;
    }
}

static bool keeps_mapped;

void ellm_file_keep_mapped(void) {
    keeps_mapped = true;
}

void ellm_file_close(ellm_file *file) {
    if (file->data != NULL) {
        if (!keeps_mapped) {
            munmap((void *)(uintptr_t)file->data, file->bytes);
        }
        file->data = NULL;
        ellm_file_release(file);
    } else if (file->descriptor > 0) {
        ellm_file_release(file);
    }
    file->bytes = 0;
}

ellm_status ellm_key_file_read(const char *path, unsigned forbidden, void *bytes, size_t cap, size_t *n,
                               ellm_error *error) {
    struct stat status = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = file >= 0 && fstat(file, &status) == 0 ? read(file, bytes, cap) : -1;
    ellm_status result = got < 0 ? ellm_fail(error, ELLM_IO, "%.200s: %s", path, strerror(errno)) : ELLM_OK;
    if (got >= 0 && (status.st_mode & forbidden) != 0) {
        result = ellm_fail(error, ELLM_KEY_INVALID, "%.200s: open to others; chmod 600 it", path);
    }
    if (file >= 0) {
        close(file);
    }
    *n = got < 0 ? 0 : (size_t)got;
    return result;
}

ellm_status ellm_file_stamp_read(int directory, const char *path, ellm_file_stamp *stamp, ellm_error *error) {
    struct stat status;
    if (fstatat(directory, path, &status, 0) != 0) {
        return fail(path, error);
    }
    if (!S_ISREG(status.st_mode)) {
        return ellm_fail(error, ELLM_BUNDLE_FORMAT, "%s: not a regular file", path);
    }
    *stamp =
        (ellm_file_stamp){.inode = (uint64_t)status.st_ino,
                          .bytes = (uint64_t)status.st_size,
                          .ctime_ns = (uint64_t)status.st_ctim.tv_sec * 1000000000u + (uint64_t)status.st_ctim.tv_nsec};
    return ELLM_OK;
}
