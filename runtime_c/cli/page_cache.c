#include "posix.h"

#include "page_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"

enum { window_bytes = 64 << 20, least_page = 4096 };

/* Bytes of an open file that are in memory; all of them where the system does not say. */
static uint64_t resident_bytes(int file, uint64_t n_bytes) {
    static unsigned char pages[window_bytes / least_page];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), n_resident = 0;
    for (uint64_t at = 0; at < n_bytes; at += window_bytes) {
        size_t n = n_bytes - at < window_bytes ? (size_t)(n_bytes - at) : window_bytes;
        void *data = mmap(NULL, n, PROT_READ, MAP_SHARED, file, (off_t)at);
        if (data == MAP_FAILED || mincore(data, n, pages) != 0) {
            memset(pages, 1, sizeof pages);
        }
        for (uint64_t i = 0; i * page < n; i++) {
            uint64_t left = n - i * page;
            n_resident += (pages[i] & 1) == 0 ? 0 : left < page ? left : page;
        }
        if (data != MAP_FAILED) {
            munmap(data, n);
        }
    }
    return n_resident;
}

/* The regular files of a directory, and of its sub-directories down to `depth` levels. Closes `directory`. */
static ellm_status drop(int directory, int depth, const char *path, uint64_t *n_bytes, uint64_t *n_left,
                        ellm_error *error) {
    DIR *entries = directory < 0 ? NULL : fdopendir(directory);
    if (entries == NULL) {
        ellm_status status = ellm_fail(error, ELLM_IO, "%s: %s", path, strerror(errno));
        if (directory >= 0) {
            close(directory);
        }
        return status;
    }
    ellm_status status = ELLM_OK;
    const struct dirent *entry;
    while (status == ELLM_OK && (entry = readdir(entries)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        struct stat about;
        int file = openat(directory, entry->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (file < 0 || fstat(file, &about) != 0) {
            if (file >= 0) {
                close(file);
            }
            continue; /* a link, or not ours to read: then no weights */
        }
        if (S_ISDIR(about.st_mode) && depth > 0) {
            status = drop(file, depth - 1, entry->d_name, n_bytes, n_left, error);
            continue;
        }
        struct stat self;
        bool runs = stat("/proc/self/exe", &self) == 0 && self.st_dev == about.st_dev && self.st_ino == about.st_ino;
        if (S_ISREG(about.st_mode) && !runs) { /* this program itself cannot leave */
            (void)fsync(file);                 /* what is not on the disk yet cannot be dropped */
            (void)posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
            *n_bytes += (uint64_t)about.st_size;
            *n_left += resident_bytes(file, (uint64_t)about.st_size);
        }
        close(file);
    }
    closedir(entries);
    return status;
}

ellm_status page_cache_drop(const char *directory, uint64_t *n_bytes, uint64_t *n_left, ellm_error *error) {
    *n_bytes = *n_left = 0;
    return drop(open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), 1, directory, n_bytes, n_left, error);
}
